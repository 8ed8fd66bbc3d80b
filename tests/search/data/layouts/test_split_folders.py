from pathlib import Path

import pytest

from search.data.image_files import DataError
from search.data.layouts.split_folders import official_splits, split_named

KINDS = ("a", "b")


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


def of_classes(*folders: str) -> list[str]:
    """Return the paths of an image of each class in each folder."""
    return [f"{folder}/{kind}/1.jpg" for folder in folders for kind in KINDS]


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        official_splits(root)
    return str(caught.value).replace(str(root), "DIR")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train/", "test/"), {"train", "test"}),
        (("Train/", "VAL/", "Test/"), {"train", "val", "test"}),
        (("training/", "validation/", "testing/"), {"train", "val", "test"}),
        (("train/", "valid/"), {"train", "val"}),
        (("train/",), {"train"}),
        (("train/", "test/", "annotations/"), {"train", "test"}),
        (("train/", "car/"), {None}),
        (("test/", "control/"), {None}),
        (("a/", "b/"), {None}),
    ],
)
def test_official_splits(tmp_path: Path, folders: tuple[str, ...], splits: set[str | None]) -> None:
    assert official_splits(make(tmp_path, *folders)).keys() == splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("TRAIN", "Valid", "TESTING"),
        ("train", "dev", "eval"),
        ("training", "validation", "hold_out"),
        ("training_set", "", "test_set"),
        ("seg_train", "", "seg_test"),
        ("train_data", "val_data", ""),
        ("trainData", "devData", ""),
        ("flowers-train", "", "flowers-holdout"),
        ("train_images", "val_imgs", "test1"),
    ],
)
def test_split_folders_by_other_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    named = {"train": train, "val": val, "test": test}
    expected = {split: tmp_path / name for split, name in named.items() if name}
    make(tmp_path, *of_classes(*filter(None, named.values())))
    assert official_splits(tmp_path) == expected
    make(tmp_path, "seg_pred/1.jpg", "notes/a.txt")
    if train != "train_images":  # a rule of its own: see below
        assert official_splits(tmp_path) == expected


def test_a_split_folder_may_hold_one_that_holds_the_classes(tmp_path: Path) -> None:
    make(tmp_path, *of_classes("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/x/1.jpg")
    assert official_splits(tmp_path) == {
        "train": tmp_path / "seg_train" / "seg_train",
        "test": tmp_path / "seg_test" / "seg_test",
    }


def test_classes_with_words_of_splits(tmp_path: Path) -> None:
    make(tmp_path, "train_station/1.jpg", "test_tube/1.jpg")
    assert official_splits(tmp_path) == {None: tmp_path}
    make(tmp_path, *of_classes("bullet_train", "steam_train"))
    (tmp_path / "steam_train" / "b" / "1.jpg").rename(tmp_path / "steam_train" / "1.jpg")
    (tmp_path / "steam_train" / "b").rmdir()
    assert official_splits(tmp_path) == {None: tmp_path}


def test_folders_with_the_same_folders_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, *of_classes("part1", "part2"))
    assert message(tmp_path).startswith(
        "DIR/part1 and DIR/part2 hold the same folders (a, b), so that they are no classes: name"
        " them train, val and test"
    )
    assert official_splits(tmp_path, ("part1", "part2")) == {None: tmp_path}
    (tmp_path / "part1" / "a").rename(tmp_path / "part1" / "other")
    assert official_splits(tmp_path) == {None: tmp_path}


def test_one_folder_in_each_class_is_usual(tmp_path: Path) -> None:
    make(tmp_path, "a/images/1.jpg", "b/images/1.jpg")
    assert official_splits(tmp_path) == {None: tmp_path}


def test_a_folder_of_the_classes_beside_it_is_no_class(tmp_path: Path) -> None:
    make(tmp_path, *of_classes(".", "test"))
    assert message(tmp_path).startswith(
        "DIR/test holds folders that DIR holds as well (a, b), so that it is no class: "
    )


def test_a_train_folder_beside_other_folders(tmp_path: Path) -> None:
    make(tmp_path, *of_classes("train"), "annotations/1.xml")
    assert official_splits(tmp_path) == {"train": tmp_path / "train"}
    make(tmp_path, "samples/1.jpg")
    assert message(tmp_path) == (
        "DIR must hold either splits or classes, but train/ holds a, b, and beside it samples has"
        " images: give --data DIR/train, or list all with --classes if it is one"
    )
    assert official_splits(tmp_path, ("train", "samples")) == {None: tmp_path}


def test_a_class_called_train_that_holds_images(tmp_path: Path) -> None:
    make(tmp_path, "train/1.jpg", "train/x/2.jpg", "train/y/3.jpg", "car/1.jpg")
    assert official_splits(tmp_path) == {None: tmp_path}


def test_words_for_splits() -> None:
    words = ("Train", "VALID", "hold-out", "trainer", "fold1")
    assert [split_named(word) for word in words] == ["train", "val", "test", None, None]
