from pathlib import Path

import pytest

from search.console.formatting import some
from search.data.image_files import DataError
from search.data.layouts.class_folders import (
    ClassFolder,
    check_has,
    check_known,
    class_order,
    find_class_folders,
    unused_files,
)
from search.data.layouts.split_folders import official_splits


def make(root: Path, *paths: str) -> Path:
    """Make empty files, and folders where a path ends in `/`."""
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    return root


def message(root: Path, wanted: tuple[str, ...] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        find_class_folders(root, wanted, ())
    return str(caught.value).replace(str(root), "DIR")


CLASS_FOLDER = (
    "a class folder is named after its class and holds its images, such as"
    " DIR/cat/1.jpg and DIR/dog/1.jpg"
)


def test_class_folders_are_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b/", "a/", "C/", ".git/", "__MACOSX/", "notes.txt")
    classes, folders = find_class_folders(tmp_path, None, ())
    assert classes == ("C", "a", "b")
    assert folders == [
        ClassFolder(tmp_path / name, label, None) for label, name in enumerate(classes)
    ]


def test_wanted_classes_keep_their_order(tmp_path: Path) -> None:
    make(tmp_path, "a/", "b/", "c/")
    classes, folders = find_class_folders(tmp_path, ("c", "a"), ())
    assert classes == ("c", "a")
    assert [folder.path.name for folder in folders] == ["c", "a"]


def test_ignored_folders_are_classes_only_when_wanted(tmp_path: Path) -> None:
    make(tmp_path, "a/", "b/", "junk/")
    assert find_class_folders(tmp_path, None, ("junk",))[0] == ("a", "b")
    assert find_class_folders(tmp_path, ("a", "junk"), ("junk",))[0] == ("a", "junk")


def test_missing_classes_are_all_named(tmp_path: Path) -> None:
    make(tmp_path, "Faces/", "brain/")
    assert message(tmp_path, ("face", "brain", "zoo")) == (
        "DIR must have the classes that --classes or the space lists, but lacks"
        " 'face'; did you mean 'Faces'?, 'zoo' (it has Faces, brain):"
        " give another --data, or change that list"
    )


@pytest.mark.parametrize("odd", ["\udcff", "\x85", "\u2028", "\u2029", "\n", "\t", "\x1c", "\x1b"])
def test_a_class_whose_name_is_no_line_of_text(tmp_path: Path, odd: str) -> None:
    make(tmp_path, "größe/", f"im{odd}/")
    assert message(tmp_path) == (
        "the name of a class must be one line of UTF-8 without control characters, but DIR has"
        f" {'im' + odd!a}: rename it"
    )


def test_no_folders(tmp_path: Path) -> None:
    assert message(tmp_path) == f"DIR holds no images: {CLASS_FOLDER}"
    make(tmp_path, "1.JPG")
    table = "or give a table with the columns image,label by --labels"
    assert message(tmp_path) == f"DIR holds images but no class folders: {CLASS_FOLDER}; {table}"
    assert message(tmp_path, ("a", "b")).startswith("DIR holds images but no class folders")


def test_split_folders_without_class_folders(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{c}.{i}.jpg" for c in ("cat", "dog") for i in range(3)), "test/1.jpg")
    assert message(tmp_path) == (
        f"DIR holds images but no class folders: {CLASS_FOLDER}; if the names begin with the"
        " classes (cat, dog), move the images into folders, or list them in a table with the"
        " columns image,label for --labels"
    )


def test_what_lies_in_a_folder_without_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "images/1.jpg", "train.csv", "more.tar.gz")
    assert message(tmp_path).endswith(
        "; if train.csv names images and labels, give --labels DIR/train.csv; to use what is packed"
        " in more.tar.gz, give --data DIR/more.tar.gz"
    )


def test_whole_numbers_keep_their_order(tmp_path: Path) -> None:
    make(tmp_path, "10/", "2/", "1/", "-3/")
    assert find_class_folders(tmp_path, None, ())[0] == ("-3", "1", "2", "10")
    assert class_order(["10", "2", "a"]) == ("10", "2", "a")


def test_composed_and_decomposed_names_are_equal(tmp_path: Path) -> None:
    make(tmp_path, "train/cafe\u0301/", "train/b/", "test/caf\u00e9/", "test/b/")
    classes, found = find_class_folders(tmp_path, None, ())
    assert classes == ("b", "caf\u00e9")
    names = {(f.split, f.label): f.path.name for f in found}
    assert (names["train", 1], names["test", 1]) == ("cafe\u0301", "caf\u00e9")
    wanted = find_class_folders(tmp_path, ("cafe\u0301", "b"), ())
    assert wanted[0] == ("caf\u00e9", "b")
    make(tmp_path, "train/caf\u00e9/")
    assert "holds two folders named 'caf\u00e9'" in message(tmp_path)


def test_test_images_without_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/", "train/dog/", "test/1.jpg")
    assert message(tmp_path) == (
        "DIR/test must have class folders as DIR/train has, but holds images without labels: give"
        " --data DIR/train, and these images to search.predict afterwards, or as --external"
    )


def test_one_class(tmp_path: Path) -> None:
    make(tmp_path, "set/")
    assert message(tmp_path) == (
        f"there must be two classes or more, but DIR has one class folder, 'set' ({CLASS_FOLDER})"
    )
    make(tmp_path, "set/cat/", "set/dog/")
    assert "'set'; did you mean --data DIR/set, which has cat, dog? (" in message(tmp_path)


def test_one_class_beside_an_ignored_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/", "junk/")
    with pytest.raises(DataError, match="has one class folder, 'a'"):
        find_class_folders(tmp_path, None, ("junk",))


def test_wanted_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    make(tmp_path, "train/", "test/")
    assert find_class_folders(tmp_path, ("train", "test"), ())[0] == ("train", "test")


def test_split_folders_hold_the_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/", "train/dog/", "val/cat/", "val/dog/", "test/cat/", "test/dog/")
    classes, folders = find_class_folders(tmp_path, None, ())
    assert classes == ("cat", "dog")
    assert ClassFolder(tmp_path / "val" / "dog", 1, "val") in folders
    assert len(folders) == 6


def test_train_alone_is_a_split(tmp_path: Path) -> None:
    classes, folders = find_class_folders(make(tmp_path, "train/a/", "train/b/"), None, ())
    assert classes == ("a", "b")
    assert [folder.split for folder in folders] == ["train", "train"]


def test_split_folders_with_different_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/", "train/dog/", "test/cat/", "test/cow/")
    assert message(tmp_path) == (
        "DIR/train and DIR/test must have the same class folders, but 'dog' is only in DIR/train,"
        " 'cow' is only in DIR/test: add what is missing, or move the rest away"
    )


def test_split_folders_may_differ_in_unwanted_classes(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{c}/" for c in "abc"), *(f"test/{c}/" for c in "abd"))
    assert len(find_class_folders(tmp_path, ("a", "b"), ())[1]) == 4
    assert (
        "DIR/test must have the classes that --classes or the space lists, but lacks 'c'"
        in message(tmp_path, ("a", "c"))
    )


def test_split_folders_without_train(tmp_path: Path) -> None:
    make(tmp_path, "val/a/", "test/a/")
    assert message(tmp_path) == "DIR must have a train folder beside test, val, but has none"


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    make(tmp_path, "train/a/", "val/a/", "valid/a/")
    assert message(tmp_path) == (
        "DIR must have one val folder, but has val/ and valid/: merge them, or move one away"
    )


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be read: No such file or directory"):
        official_splits(tmp_path / "gone")


def test_unused_files(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/2.png", "test/a/3.jpg", "4.jpg", "README.md", "odd/")
    found = {
        path.relative_to(tmp_path).as_posix(): reason
        for path, reason in unused_files(tmp_path, official_splits(tmp_path))
    }
    assert found == {
        "4.jpg": "lies in no class folder",
        "train/2.png": "lies in no class folder",
        "odd": "lies beside the train folder",
    }


def test_all_unknown_classes_are_named() -> None:
    check_known("DIR", ["cat"], ("cat", "dog"))
    with pytest.raises(DataError) as caught:
        check_known("DIR", ["cats", "dog", "zoo"], ("cat", "dog"))
    assert str(caught.value) == (
        "every folder of DIR must be named after a class (cat, dog), but it has"
        " 'cats'; did you mean 'cat'?, 'zoo'; images of unknown class go in a folder without"
        " folders"
    )


def test_long_lists_are_cut() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcd", most=2) == "a, b and 2 more"
    with pytest.raises(DataError, match=r"k, l and 14 more\): give another"):
        check_has("DIR", list("abcdefghijklmnopqrstuvwxyz"), ("a", "B1"))
