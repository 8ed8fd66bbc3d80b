import os
from pathlib import Path

import pytest

from search.data.image_files import (
    NOT_AN_IMAGE,
    DataError,
    find_image_files,
    folders,
    why_no_image,
)

LITTER = (
    *(".DS_Store", ".ipynb_checkpoints", "__MACOSX", "._cat.jpg", "Thumbs.db", "desktop.ini"),
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    "__pycache__",
)


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_images_at_any_depth(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "x/y/2.HEIC", "x/3", "notes.txt", ".hidden.jpg", ".x/4.jpg")
    found = find_image_files(tmp_path)
    assert found.images == [tmp_path / "1.jpg", tmp_path / "x" / "3", tmp_path / "x/y/2.HEIC"]
    assert found.others == [(tmp_path / "notes.txt", NOT_AN_IMAGE)]


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_neither_an_image_nor_a_class(tmp_path: Path, name: str) -> None:
    make(tmp_path, "cat/1.jpg", f"{name}/2.jpg", f"cat/{name.upper()}/3.jpg")
    assert folders(tmp_path) == [tmp_path / "cat"]
    assert find_image_files(tmp_path) == ([tmp_path / "cat" / "1.jpg"], [])


def test_links_are_followed_but_not_in_a_cycle(tmp_path: Path) -> None:
    make(tmp_path, "linked/1.jpg", "class/2.jpg")
    (tmp_path / "class" / "more").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "up").symlink_to(tmp_path / "class")
    found = find_image_files(tmp_path / "class").images
    assert [path.name for path in found] == ["2.jpg", "1.jpg"]


@pytest.mark.parametrize("target", ["..", ".", "../..", "../more"])
def test_a_link_to_a_folder_that_it_lies_in_brings_no_images(tmp_path: Path, target: str) -> None:
    """Those of the other classes would be this one's, too."""
    make(tmp_path, "photos/cat/1.jpg", "photos/dog/2.jpg")
    (tmp_path / "photos" / "more").mkdir()
    (tmp_path / "photos" / "more" / "up").symlink_to(tmp_path / "photos")
    up = tmp_path / "photos" / "cat" / "up"
    up.symlink_to(target)
    found = find_image_files(tmp_path / "photos" / "cat")
    assert found.images == [tmp_path / "photos" / "cat" / "1.jpg"]
    reported = up / "up" if target == "../more" else up
    assert found.others == [(reported, "is a link to a folder that it lies in")]


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg")
    (tmp_path / "dog").symlink_to("moved/dog")
    (tmp_path / "photo.jpg").symlink_to("gone.jpg")
    with pytest.raises(DataError) as caught:
        folders(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds 'dog', a link to 'moved/dog', which cannot be read: restore it,"
        " or remove it"
    )
    (tmp_path / "dog").unlink()
    assert folders(tmp_path) == [tmp_path / "cat"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="'loop', a link to 'loop', which"):
        folders(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_folder_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a/x/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "x").chmod(0)
    with pytest.raises(DataError, match="a/x cannot be read: Permission denied"):
        find_image_files(tmp_path / "a")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be read: No such file or directory"):
        find_image_files(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, NOT_AN_IMAGE) for name in ("README", "labels.CSV", "Readme.md", "clip.MOV")),
        ("x.NEF", "is a camera's raw file"),
        ("x.dcm", "is a DICOM file"),
        ("x.jxl", "is a JPEG XL image"),
    ],
)
def test_names_that_rule_an_image_out(name: str, reason: str) -> None:
    assert str(why_no_image(name)).startswith(reason)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "readme.jpg", "image_0001", "a.heic", "x.odd"])
def test_any_other_file_may_be_an_image(name: str) -> None:
    assert why_no_image(name) is None


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    images, others = find_image_files(tmp_path)
    assert images == [tmp_path / "gone.jpg"]
    assert others == [(tmp_path / "pipe.jpg", "is a pipe, a socket or a device")]
