import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.data.image_files import DataError
from search.data.manifest import Issue, Manifest, check_counts
from search.data.scan import find_images, scan, scan_external
from spaces.sources import (
    Arrays,
    Source,
    SourceError,
    caltech101,
    digits,
    fashion_mnist,
    folder,
    from_csv,
    from_table,
)


def make(root: Path, **counts: int) -> Path:
    """Make files named as images: `train__cat=3` is train/cat/0.jpg to train/cat/2.jpg."""
    for name, count in counts.items():
        target = root.joinpath(*name.split("__"))
        target.mkdir(parents=True)
        for i in range(count):
            (target / f"{i}.jpg").touch()
    return root


def listed(
    data: Path | None, source: Source | None = None, folds: int = 2, limit: int | None = None
) -> Manifest:
    cache = Path("/nonexistent")
    manifest = scan(source or folder(), data, cache, folds=folds, limit=limit, seed=0)
    assert list(manifest.names) == sorted(set(manifest.names))
    assert len(manifest.names) == len(manifest.labels) == len(manifest.splits)
    assert manifest.labels.dtype == np.int64
    return manifest


def message(data: Path, folds: int = 2, limit: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        listed(data, folds=folds, limit=limit)
    return str(caught.value).replace(str(data), "DIR")


def counts_of(manifest: Manifest) -> dict[tuple[str | None, str], int]:
    counts: dict[tuple[str | None, str], int] = {}
    for label, part in zip(manifest.labels, manifest.splits, strict=True):
        key = part, manifest.classes[label]
        counts[key] = counts.get(key, 0) + 1
    return counts


# --- images that are found ---------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    make(tmp_path, dog=3, cat=4)
    manifest = listed(tmp_path)
    assert manifest.classes == ("cat", "dog")
    assert manifest.names == (
        *("cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/3.jpg"),
        *("dog/0.jpg", "dog/1.jpg", "dog/2.jpg"),
    )
    assert manifest.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert manifest.splits == (None,) * 7
    assert manifest.images is None
    assert manifest.paths == tuple(tmp_path / name for name in manifest.names)


def test_nested_folders_and_odd_names_belong_to_their_class(tmp_path: Path) -> None:
    make(tmp_path, cat=3, dog=3)
    (tmp_path / "cat" / "große Kätzchen" / "2, zwei").mkdir(parents=True)
    (tmp_path / "cat" / "große Kätzchen" / "2, zwei" / "мяу мяу.PNG").touch()
    manifest = listed(tmp_path)
    assert "cat/große Kätzchen/2, zwei/мяу мяу.PNG" in manifest.names
    assert manifest.labels.tolist().count(0) == 4


def test_a_class_list_filters_and_orders(tmp_path: Path) -> None:
    make(tmp_path, a=3, b=3, c=3)
    manifest = listed(tmp_path, folder(("c", "a")))
    assert manifest.classes == ("c", "a")
    assert manifest.names[0] == "a/0.jpg"
    assert manifest.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_split_folders(tmp_path: Path) -> None:
    make(tmp_path, train__a=3, train__b=3, val__a=1, val__b=1, test__a=2, test__b=2)
    manifest = listed(tmp_path)
    assert manifest.classes == ("a", "b")
    assert counts_of(manifest) == {
        **{("train", "a"): 3, ("train", "b"): 3, ("val", "a"): 1, ("val", "b"): 1},
        **{("test", "a"): 2, ("test", "b"): 2},
    }
    assert manifest.names[0] == "test/a/0.jpg"


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    make(tmp_path, a=3, b=3)
    for name in ("a/notes.txt", "b/README", "b/.DS_Store", "a/Thumbs.db", "stray.png", "LIESMICH"):
        (tmp_path / name).touch()
    manifest = listed(tmp_path)
    assert len(manifest.names) == 6
    assert set(manifest.skipped) == {
        Issue("a/notes.txt", "not an image", "its name is not that of an image"),
        Issue("b/README", "not an image", "its name is not that of an image"),
        Issue("stray.png", "not used", "lies in no class folder"),
    }


def test_files_that_may_be_images_are_listed(tmp_path: Path) -> None:
    make(tmp_path, a=3, b=3)
    (tmp_path / "a" / "image_0001").touch()
    assert "a/image_0001" in listed(tmp_path).names


def test_arrays_with_an_official_split(shared_data: Path) -> None:
    manifest = listed(shared_data, fashion_mnist())
    assert manifest.paths is None
    assert manifest.images is not None
    assert manifest.images.shape == (70_000, 28, 28)
    assert counts_of(manifest)["test", "Bag"] == 1000
    arrays = fashion_mnist().open(shared_data, shared_data)
    assert isinstance(arrays, Arrays)
    row = arrays.names.index("train/00007")
    ours = manifest.names.index("train/00007")
    np.testing.assert_array_equal(arrays.images[row], manifest.images[ours])
    assert arrays.labels[row] == manifest.labels[ours]


def test_arrays_filtered_by_class() -> None:
    source = digits()
    some = type(source)(source.name, classes=("7", "1"))
    manifest = listed(None, some)
    assert manifest.classes == ("7", "1")
    assert set(manifest.labels) == {0, 1}
    whole = listed(None, source)
    assert (manifest.labels == 0).sum() == (whole.labels == 7).sum()


def test_arrays_without_a_wanted_class() -> None:
    source = digits()
    with pytest.raises(DataError, match=r"handwritten digits must have the classes .* lacks 'ten'"):
        listed(None, type(source)(source.name, classes=("1", "ten")))


def test_real_caltech(shared_data: Path) -> None:
    six = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    manifest = listed(shared_data / "caltech101", caltech101(six), folds=5)
    assert len(manifest.names) == 988
    assert np.bincount(manifest.labels).tolist() == [50, 98, 435, 239, 114, 52]
    all_there = listed(shared_data / "caltech101" / "101_ObjectCategories", caltech101())
    assert len(all_there.names) == 988
    assert "BACKGROUND_Google" not in all_there.classes


def test_real_cats_and_dogs(shared_data: Path) -> None:
    manifest = listed(shared_data / "cats_dogs", folds=5)
    assert counts_of(manifest)["train", "cats"] == 300
    assert counts_of(manifest)["test", "dogs"] == 150


def test_scanning_needs_neither_ray_nor_torch() -> None:
    code = "import sys, search.data.scan; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- errors ------------------------------------------------------------------------------------


def test_source_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--data must name a folder"):
        listed(tmp_path / "missing")


def test_empty_class_folders(tmp_path: Path) -> None:
    make(tmp_path, a=0, b=0)
    assert message(tmp_path) == "DIR has class folders (a, b), but no images in them"


def test_classes_smaller_than_the_folds_are_all_named(tmp_path: Path) -> None:
    make(tmp_path, cat=6, cow=5, dog=4)
    assert message(tmp_path, folds=5) == (
        "every class needs at least 6 images (5 folds and 1 for the test split), but 'cow' has 5,"
        " 'dog' has 4: use fewer --folds, add images, or remove the class"
    )
    listed(tmp_path, folds=3)


def test_official_test_images_fill_no_fold(tmp_path: Path) -> None:
    make(tmp_path, train__a=3, train__b=4, test__a=9, test__b=9)
    assert message(tmp_path, folds=4) == (
        "every class needs at least 4 images (4 folds, test split aside), but 'a' has 3:"
        " use fewer --folds, add images, or remove the class"
    )
    listed(tmp_path, folds=3)


def test_an_official_split_needs_every_class(tmp_path: Path) -> None:
    make(tmp_path, train__a=3, train__b=4, test__a=9, test__b=0)
    assert message(tmp_path) == (
        "every class needs an image in its official test split, but 'b' has 0:"
        " add images, or remove the class"
    )


def test_counts_are_checked_again_for_what_could_be_read(tmp_path: Path) -> None:
    manifest = listed(make(tmp_path, a=6, b=6), folds=5)
    check_counts(manifest, np.arange(12), folds=5)
    with pytest.raises(DataError, match="but 'a' has 4: use fewer --folds"):
        check_counts(manifest, np.arange(2, 12), folds=5)
    with pytest.raises(DataError, match="but 'a' has 0, 'b' has 0: add images, or"):
        check_counts(manifest, np.zeros(0, np.int64), folds=5)


def test_given_classes_may_look_like_splits(tmp_path: Path) -> None:
    make(tmp_path, part1__a=3, part1__b=3, part2__a=3, part2__b=3, val=3, test=3)
    with pytest.raises(DataError, match="hold the same folders"):
        listed(tmp_path)
    assert listed(tmp_path, folder(("part2", "part1"))).classes == ("part2", "part1")
    for name in ("part1", "part2"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(DataError, match="must have a train folder beside test, val"):
        listed(tmp_path)
    assert listed(tmp_path, folder(("val", "test"))).classes == ("val", "test")
    assert scan_external(tmp_path, ("val", "test")).labels.tolist() == [1, 1, 1, 0, 0, 0]


# --- tables and groups -------------------------------------------------------------------------


def flat(root: Path, n: int = 12) -> Path:
    """Make a folder of images with a table of labels and groups in it."""
    root.mkdir(exist_ok=True)
    lines = ["file,kind,patient"]
    for i in range(n):
        (root / f"{i:02}.jpg").touch()
        lines.append(f"{i:02}.jpg,{'ab'[i % 2]},p{i // 4}")
    (root / "t.csv").write_text("\n".join(lines))
    return root


def test_a_table_in_a_space(tmp_path: Path) -> None:
    flat(tmp_path / "data")
    source = from_csv("t.csv", label="kind", group="patient")
    manifest = listed(tmp_path / "data", source)
    assert manifest.classes == ("a", "b")
    assert manifest.labels.tolist() == [0, 1] * 6
    assert manifest.groups == tuple(f"p{i // 4}" for i in range(12))
    assert manifest.group_numbers(np.array([0, 3, 4])).tolist() == [0, 0, 1]  # type: ignore[union-attr]
    assert manifest.describe() == [
        "2 classes: a, b",
        "12 images",
        "3 groups of images, kept together",
        "t.csv: images in column 'file', labels in 'kind', groups in 'patient'",
    ]
    assert listed(None, from_csv(tmp_path / "data" / "t.csv", label="kind")).names == manifest.names
    ordered = listed(tmp_path / "data", from_csv("t.csv", label="kind", classes=("b", "a")))
    assert ordered.classes == ("b", "a")
    with pytest.raises(
        DataError, match=r"t.csv must have the classes .* lacks 'c' \(it has a, b\)"
    ):
        listed(tmp_path / "data", from_csv("t.csv", label="kind", classes=("c", "a")))


def test_a_table_of_one_class(tmp_path: Path) -> None:
    make(tmp_path, x=2)
    table = pd.DataFrame({"image": ["0", "1"], "label": ["cat", "cat"]})
    with pytest.raises(DataError, match="two classes or more, but the table has 'cat'"):
        listed(tmp_path, from_table(table))


def test_groups_by_pattern_and_too_few_of_them(tmp_path: Path) -> None:
    make(tmp_path, cat=12, dog=12)
    source = folder(group_by=r"^(\d)\d?\.")
    manifest = listed(tmp_path, source)
    assert manifest.groups[:3] == ("0", "1", "1")
    assert manifest.take(np.array([2, 0])).groups == ("1", "0")
    with pytest.raises(DataError, match=r"at least 11 groups .* 'cat' has 10, 'dog' has 10"):
        listed(tmp_path, source, folds=10)
    with pytest.raises(DataError, match="groups come from a column or from --group-by"):
        listed(flat(tmp_path / "t"), from_csv("t.csv", None, "kind", None, "patient", None, r"\d"))


def test_metadata_of_hugging_face_is_read_as_it_is(tmp_path: Path) -> None:
    flat(tmp_path)
    lines = ["file_name,label", *(f"{i:02}.jpg,{i % 3}" for i in range(12))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    manifest = listed(tmp_path)
    assert manifest.classes == ("0", "1", "2")
    external = scan_external(tmp_path, ("2", "1", "0", "9"))
    assert external.labels.tolist()[:4] == [2, 1, 0, 2]
    with pytest.raises(DataError, match=r"must be a class \(1, 2\), but it has '0'"):
        scan_external(tmp_path, ("1", "2"))


def test_a_table_for_external_images(tmp_path: Path) -> None:
    flat(tmp_path)
    table = from_csv("t.csv", label="kind").table
    assert scan_external(tmp_path, ("b", "a"), table=table).labels.tolist() == [1, 0] * 6


# --- a limit -----------------------------------------------------------------------------------


def test_limit_keeps_proportions(tmp_path: Path) -> None:
    make(tmp_path, train__a=80, train__b=40, test__a=40, test__b=20)
    assert counts_of(listed(tmp_path, limit=90)) == {
        **{("train", "a"): 40, ("train", "b"): 20, ("test", "a"): 20, ("test", "b"): 10}
    }


@pytest.mark.parametrize("limit", [14, 15, 37, 100, 149, 150, 1000])
def test_limit_is_met_exactly(tmp_path: Path, limit: int) -> None:
    make(tmp_path, a=120, b=23, c=7)
    manifest = listed(tmp_path, limit=limit, folds=2)
    assert len(manifest.names) == min(limit, 150)
    assert np.bincount(manifest.labels).min() >= 3


def test_limit_leaves_enough_of_a_small_class(tmp_path: Path) -> None:
    make(tmp_path, large=500, small=8)
    counts = counts_of(listed(tmp_path, limit=50, folds=5))
    assert counts == {(None, "large"): 44, (None, "small"): 6}


def test_limit_too_low_for_the_folds(tmp_path: Path) -> None:
    make(tmp_path, a=20, b=20)
    assert message(tmp_path, folds=5, limit=11) == (
        "--limit >= 12 must hold, so that each of 2 classes fills 5 folds and the test split, but"
        " got 11: raise it, or use fewer --folds"
    )
    assert len(listed(tmp_path, folds=5, limit=12).names) == 12


def test_limit_depends_on_seed_and_names_alone(tmp_path: Path) -> None:
    here, there = make(tmp_path / "here", a=50, b=50), make(tmp_path / "there", a=50, b=50)
    cache = tmp_path / "cache"
    first = scan(folder(), here, cache, 2, 20, seed=1).names
    assert scan(folder(), there, cache, 2, 20, seed=1).names == first
    assert scan(folder(), here, cache, 2, 20, seed=2).names != first


def test_limit_of_arrays() -> None:
    manifest = listed(None, digits(), limit=200, folds=5)
    assert manifest.images is not None
    assert manifest.images.shape == (200, 8, 8)
    assert np.bincount(manifest.labels).tolist() == pytest.approx([20] * 10, abs=1)


# --- external images ---------------------------------------------------------------------------


def test_flat_external_images_are_unlabelled(tmp_path: Path) -> None:
    for name in ("b.jpg", "a b.png", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    manifest = scan_external(tmp_path, ("cat", "dog"))
    assert manifest.names == ("a b.png", "b.jpg")
    assert manifest.labels.tolist() == [-1, -1]
    assert manifest.classes == ("cat", "dog")
    assert [issue.image for issue in manifest.skipped] == ["notes.txt"]


def test_external_class_folders_are_labelled_and_may_be_few(tmp_path: Path) -> None:
    make(tmp_path, dog=2, cow=1, empty=0)
    (tmp_path / "stray.jpg").touch()
    manifest = scan_external(tmp_path, ["cat", "cow", "dog"])
    assert manifest.names == ("cow/0.jpg", "dog/0.jpg", "dog/1.jpg")
    assert manifest.labels.tolist() == [1, 2, 2]
    assert manifest.splits == (None,) * 3
    assert manifest.skipped == (Issue("stray.jpg", "not used", "lies in no class folder"),)


def test_external_folder_that_is_no_class(tmp_path: Path) -> None:
    make(tmp_path, dogs=2)
    with pytest.raises(DataError, match="but it has 'dogs'; did you mean 'dog'"):
        scan_external(tmp_path, ("cat", "dog"))


def test_external_folder_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^--external must name a folder, but .*/gone is none$"):
        scan_external(tmp_path / "gone", ("cat", "dog"))
    with pytest.raises(DataError, match=r"^--external must hold images, .* has none$"):
        scan_external(tmp_path, ("cat", "dog"))


def test_external_arrays_take_the_classes_of_the_search() -> None:
    arrays = Arrays(
        images=np.arange(3, dtype=np.uint8).reshape(3, 1, 1),
        labels=np.array([0, 1, 1]),
        classes=("dog", "cat"),
        names=("z", "y", "x"),
        splits=(None,) * 3,
    )
    manifest = scan_external(arrays, ("cat", "cow", "dog"))
    assert manifest.names == ("x", "y", "z")
    assert manifest.labels.tolist() == [0, 0, 2]
    assert manifest.images is not None
    assert manifest.images.ravel().tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="the external set must be named after a class"):
        scan_external(arrays, ("cat", "cow"))
    assert scan_external(arrays, ("cat", "cow"), ignores_others=True).names == ("x", "y")
    with pytest.raises(DataError, match="the external set must be named after a class"):
        scan_external(arrays, ("ant", "cow"), ignores_others=True)


def test_external_images_of_classes_that_were_not_chosen_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, dog=2, cow=1)
    manifest = scan_external(tmp_path, ("cat", "dog"), ignores_others=True)
    assert manifest.names == ("dog/0.jpg", "dog/1.jpg")
    with pytest.raises(DataError, match="must be named after a class"):
        scan_external(tmp_path, ("cat", "ant"), ignores_others=True)
    (tmp_path / "metadata.csv").write_text("file_name,label\ncow/0.jpg,cow\ndog/1.jpg,dog\n")
    manifest = scan_external(tmp_path, ("cat", "dog"), ignores_others=True)
    assert (manifest.names, manifest.labels.tolist()) == (("dog/1.jpg",), [1])
    for classes, chosen in ((("cat", "dog"), False), (("cat", "ant"), True)):
        with pytest.raises(DataError, match="must be a class"):
            scan_external(tmp_path, classes, ignores_others=chosen)


def test_real_external(shared_data: Path) -> None:
    six = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    manifest = scan_external(shared_data / "external" / "caltech6", six)
    assert np.bincount(manifest.labels, minlength=6).tolist() == [3, 0, 32, 40, 4, 2]


def test_a_label_with_control_characters(tmp_path: Path) -> None:
    """In a table and among arrays as in the name of a folder."""
    rows = tuple((f"{i}.png", ("a", "b\x85c")[i % 2]) for i in range(8))
    for image, _ in rows:
        (tmp_path / image).touch()
    table = from_table(pd.DataFrame(rows, columns=["image", "label"]))
    with pytest.raises(DataError, match=r"the table has 'b\\x85c': rename it"):
        find_images(table, tmp_path, tmp_path)
