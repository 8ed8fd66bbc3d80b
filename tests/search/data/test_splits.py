import csv
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.decoding import DecodedImages
from search.data.image_files import DataError
from search.data.manifest import Manifest, check_counts
from search.data.splits import EXCLUDED, join_groups, read_split_csv, split, write_split_csv
from search.data.thumbnails import Thumbnails
from search.runs.validation import FolderError
from trainables.grouped_kfold import grouped_folds


def manifest_of(
    counts: dict[str, int], official: dict[str, dict[str, int]] | None = None, root: str = "/data"
) -> Manifest:
    """Make a manifest of images that do not exist: {class: count}, and {split: {class: count}}."""
    entries: list[tuple[str, str, str | None]] = [
        (f"{c}/{i:04d}.jpg", c, None) for c, n in counts.items() for i in range(n)
    ]
    entries += [
        (f"{part}/{c}/{i:04d}.jpg", c, part)
        for part, of_class in (official or {}).items()
        for c, n in of_class.items()
        for i in range(n)
    ]
    entries.sort(key=lambda entry: entry[0])
    classes = tuple(sorted({c for _, c, _ in entries}))
    return Manifest(
        classes=classes,
        names=tuple(name for name, *_ in entries),
        labels=np.array([classes.index(c) for _, c, _ in entries], dtype=np.int64),
        splits=tuple(part for *_, part in entries),
        paths=tuple(Path(root) / name for name, *_ in entries),
        images=None,
    )


def all_indices(manifest: Manifest) -> np.ndarray:
    return np.arange(len(manifest.names))


def divided(manifest: Manifest, seed: int = 0, folds: int = 2) -> dict[tuple[str, str], int]:
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed, folds)
    classes = (manifest.classes[label] for label in manifest.labels)
    return dict(Counter(zip(classes, (str(part) for part in parts), strict=True)))


# --- split -------------------------------------------------------------------------------------


def test_split_is_stratified() -> None:
    assert divided(manifest_of({"a": 100, "b": 50})) == {
        **{("a", "train"): 64, ("a", "val"): 16, ("a", "test"): 20},
        **{("b", "train"): 32, ("b", "val"): 8, ("b", "test"): 10},
    }


@pytest.mark.parametrize("count", range(3, 30))
@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.2, 0.2), (0.5, 0.5)])
def test_small_classes_are_in_every_split(count: int, fractions: tuple[float, float]) -> None:
    manifest = manifest_of({"a": count, "b": 40})
    parts = split(manifest, all_indices(manifest), *fractions, seed=3)
    assert set(parts[manifest.labels == 0]) == {"train", "val", "test"}


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("spare", range(1, 12))
def test_the_test_set_leaves_enough_for_the_folds(folds: int, spare: int) -> None:
    manifest = manifest_of({"a": folds + spare, "b": 40})
    check_counts(manifest, all_indices(manifest), folds)
    for fraction in (0.05, 0.2, 0.5):
        parts = split(manifest, all_indices(manifest), 0.2, fraction, seed=0, folds=folds)
        mine = parts[manifest.labels == 0]
        assert (mine != "test").sum() >= folds
        assert set(mine) == {"train", "val", "test"}


def test_tiny_classes_are_trained_on_first() -> None:
    assert divided(manifest_of({"a": 1, "b": 2})) == {
        **{("a", "train"): 1, ("b", "train"): 1, ("b", "val"): 1}
    }


def test_official_test_split_stays() -> None:
    manifest = manifest_of({}, {"train": {"a": 50, "b": 30}, "test": {"a": 7, "b": 1}})
    assert divided(manifest) == {
        **{("a", "train"): 40, ("a", "val"): 10, ("a", "test"): 7},
        **{("b", "train"): 24, ("b", "val"): 6, ("b", "test"): 1},
    }
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0)
    official = np.array(manifest.splits)
    assert ((parts == "test") == (official == "test")).all()


def test_official_splits_all_stay() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = manifest_of({}, official)
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0)
    assert tuple(parts) == manifest.splits


def test_official_val_split_stays_and_a_test_is_drawn() -> None:
    manifest = manifest_of({}, {"train": {"a": 40, "b": 3}, "val": {"a": 10, "b": 1}})
    assert divided(manifest) == {
        **{("a", "train"): 30, ("a", "val"): 10, ("a", "test"): 10},
        **{("b", "train"): 2, ("b", "val"): 1, ("b", "test"): 1},
    }


def test_split_depends_on_seed_and_names_alone() -> None:
    manifest = manifest_of({"a": 60, "b": 60})
    indices = all_indices(manifest)
    first = split(manifest, indices, 0.2, 0.2, seed=0)
    moved = manifest_of({"a": 60, "b": 60}, root="/moved")
    np.testing.assert_array_equal(split(moved, indices, 0.2, 0.2, seed=0), first)
    assert (split(manifest, indices, 0.2, 0.2, seed=1) != first).any()


def test_an_unreadable_image_moves_few_others() -> None:
    manifest = manifest_of({"a": 60, "b": 60})
    first = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0)
    indices = np.delete(all_indices(manifest), 7)
    later = split(manifest, indices, 0.2, 0.2, seed=0)
    assert len(later) == 119
    assert (later != first[indices]).sum() <= 2


# --- near-duplicates ---------------------------------------------------------------------------


def groups_of(manifest: Manifest, *groups: str) -> np.ndarray:
    """Number the groups, each given as names with blanks between; others are on their own."""
    found = np.arange(len(manifest.names))
    for group in groups:
        rows = [manifest.names.index(name) for name in group.split()]
        found[rows] = rows[0]
    return found


def test_groups_of_one_change_nothing() -> None:
    manifest = manifest_of({"a": 60, "b": 7})
    indices = all_indices(manifest)
    alone = split(manifest, indices, 0.2, 0.2, seed=0, groups=1000 - indices)
    np.testing.assert_array_equal(alone, split(manifest, indices, 0.2, 0.2, seed=0))


def test_near_duplicates_of_test_images_are_excluded() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = manifest_of({}, official)
    groups = groups_of(
        manifest,
        "train/a/0001.jpg train/b/0002.jpg test/a/0000.jpg test/b/0001.jpg",
        "train/a/0003.jpg val/a/0001.jpg",
        "train/a/0004.jpg train/a/0005.jpg",
    )
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0, groups=groups)
    moved = [name for name, part in zip(manifest.names, parts, strict=True) if part == EXCLUDED]
    assert moved == ["train/a/0001.jpg", "train/a/0003.jpg", "train/b/0002.jpg"]
    stayed = parts != EXCLUDED
    assert (parts[stayed] == np.array(manifest.splits)[stayed]).all()


def test_validation_loses_near_duplicates_of_the_test_set() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = manifest_of({}, official)
    groups = groups_of(manifest, "train/a/0001.jpg val/a/0001.jpg test/a/0001.jpg")
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0, groups=groups)
    moved = [name for name, part in zip(manifest.names, parts, strict=True) if part == EXCLUDED]
    assert moved == ["train/a/0001.jpg", "val/a/0001.jpg"]


def test_contradicting_labels_are_trained_on_while_others_can_be_tested() -> None:
    manifest = manifest_of({"a": 20, "b": 20})
    groups = groups_of(manifest, *(f"a/{i:04d}.jpg b/{i:04d}.jpg" for i in range(8)))
    for seed in range(20):
        parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=seed, groups=groups)
        sizes = np.bincount(groups)[groups]
        assert set(parts[sizes == 2]) == {"train"}
        assert Counter(parts[sizes == 1].tolist()) == {"train": 10, "val": 6, "test": 8}


def test_a_class_whose_images_are_all_in_another_is_in_every_split() -> None:
    manifest = manifest_of({"a": 8, "b": 8})
    groups = groups_of(manifest, *(f"a/{i:04d}.jpg b/{i:04d}.jpg" for i in range(8)))
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed=0, groups=groups)
    for label in (0, 1):
        assert set(parts[manifest.labels == label]) == {"train", "val", "test"}


def test_near_duplicates_count_once() -> None:
    manifest = manifest_of({"a": 20, "b": 9})
    check_counts(manifest, all_indices(manifest), 5)
    groups = groups_of(manifest, " ".join(f"b/{i:04d}.jpg" for i in range(2, 7)))
    message = r"at least 6 images \(5 folds.*, near-duplicates counted once.* but 'b' has 5"
    with pytest.raises(DataError, match=message):
        check_counts(manifest, all_indices(manifest), 5, groups)
    check_counts(manifest, all_indices(manifest), 4, groups)


def test_groups_are_joined() -> None:
    near_duplicates = np.array([0, 1, 1, 3, 4, 5])
    assert join_groups(near_duplicates, None) is near_duplicates
    given = np.array([7, 7, 8, 9, 9, 2])
    assert join_groups(near_duplicates, given).tolist() == [0, 0, 0, 3, 3, 5]


def patients(sizes: list[tuple[int, int]]) -> tuple[Manifest, np.ndarray]:
    """Make a manifest of two classes, and its groups, by the images of each class in a group."""
    manifest = manifest_of({"a": sum(a for a, _ in sizes), "b": sum(b for _, b in sizes)})
    numbers = np.arange(len(sizes))
    groups = [np.repeat(numbers, [size[label] for size in sizes]) for label in (0, 1)]
    return replace(manifest, groups=tuple(map(str, np.concatenate(groups)))), np.concatenate(groups)


def test_groups_of_several_classes_are_drawn_as_others_are() -> None:
    manifest, groups = patients([(6, 4)] * 20)
    alone = all_indices(manifest)
    for seed in range(10):
        parts = split(manifest, alone, 0.25, 0.2, seed, 5, groups, near_duplicates=alone)
        for group in range(20):
            assert len(set(parts[groups == group])) == 1
        assert Counter(zip(manifest.labels.tolist(), parts.tolist(), strict=True)) == {
            **{(0, "train"): 72, (0, "val"): 24, (0, "test"): 24},
            **{(1, "train"): 48, (1, "val"): 16, (1, "test"): 16},
        }


def test_a_class_in_few_groups_of_both_classes_is_in_every_split_and_fold() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sizes = [(int(rng.integers(1, 30)), 0) for _ in range(12)]
        sizes += [(int(rng.integers(1, 9)), int(rng.integers(1, 9))) for _ in range(4)]
        manifest, groups = patients(sizes)
        alone = all_indices(manifest)
        check_counts(manifest, alone, 3, groups)
        parts = split(manifest, alone, 0.2, 0.2, seed, 3, groups, near_duplicates=alone)
        rows = np.flatnonzero(parts != "test")
        for label in (0, 1):
            assert set(parts[manifest.labels == label]) == {"train", "val", "test"}
            assert len(np.unique(groups[rows][manifest.labels[rows] == label])) >= 3
        for fold in grouped_folds(manifest.labels[rows], groups[rows], 3, seed):
            assert set(manifest.labels[rows][fold]) == {0, 1}


def test_contradicting_near_duplicates_keep_their_whole_group_in_training() -> None:
    manifest, groups = patients([(2, 2)] * 10)
    near_duplicates = all_indices(manifest)
    near_duplicates[np.flatnonzero(groups == 3)] = np.flatnonzero(groups == 3)[0]
    for seed in range(20):
        parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed, 2, groups, near_duplicates)
        assert set(parts[groups == 3]) == {"train"}


def test_too_few_groups() -> None:
    manifest, groups = patients([(5, 0), (5, 0), (5, 0), (5, 5), (0, 5)])
    with pytest.raises(DataError) as caught:
        check_counts(manifest, all_indices(manifest), 3, groups)
    assert str(caught.value) == (
        "every class needs at least 4 groups of images (3 folds and 1 for the test split; images of"
        " one group stay together), but 'b' has 2: make the groups smaller, add images, or remove"
        " the class"
    )


def random_case(seed: int) -> tuple[Manifest, np.ndarray, int]:
    """Draw classes, groups of near-duplicates within and across them, and a number of folds."""
    rng = np.random.default_rng(seed)
    folds = int(rng.integers(2, 6))
    n_classes = int(rng.integers(2, 5))
    n_groups = rng.integers(folds + 1, 25, n_classes)
    sizes = [np.where(rng.random(n) < 0.3, rng.integers(2, 7, n), 1) for n in n_groups]
    manifest = manifest_of({f"c{c}": int(of_class.sum()) for c, of_class in enumerate(sizes)})
    numbers = np.arange(n_groups.sum())
    groups = np.repeat(numbers, np.concatenate(sizes))
    # Names do not depend on groups, and a few groups have two classes.
    for label in range(n_classes):
        rows = np.flatnonzero(manifest.labels == label)
        groups[rows] = rng.permutation(groups[rows])
    for _ in range(int(rng.integers(0, 3))):
        one, two = rng.choice(len(groups), 2)
        groups[groups == groups[one]] = groups[two]
    return manifest, groups, folds


def test_no_group_is_split_in_a_thousand_random_cases() -> None:
    for seed in range(1000):
        manifest, groups, folds = random_case(seed)
        indices = all_indices(manifest)
        parts = split(manifest, indices, 0.2, 0.2, seed, folds, groups)
        assert set(parts) == {"train", "val", "test"}
        for group in np.unique(groups):
            assert len(set(parts[groups == group])) == 1
        rows = np.flatnonzero(parts != "test")
        folds_rows = grouped_folds(manifest.labels[rows], groups[rows], folds, seed)
        fold_of = np.empty(len(rows), np.int64)
        for fold, positions in enumerate(folds_rows):
            fold_of[positions] = fold
        assert np.array_equal(np.sort(np.concatenate(folds_rows)), np.arange(len(rows)))
        for group in np.unique(groups[rows]):
            assert len(set(fold_of[groups[rows] == group])) == 1
        pure = [g for g in np.unique(groups) if len(set(manifest.labels[groups == g])) == 1]
        for label in range(len(manifest.classes)):
            mine = manifest.labels == label
            n_pure = len(np.unique(groups[mine & np.isin(groups, pure)]))
            if n_pure >= folds + 1:
                assert set(parts[mine]) == {"train", "val", "test"}
                left = mine & np.isin(groups, pure) & (parts != "test")
                assert len(np.unique(groups[left])) >= folds or n_pure < len(
                    np.unique(groups[mine])
                )
                if len(np.unique(groups[left])) >= folds:
                    assert set(fold_of[mine[rows]]) == set(range(folds))


OFFICIAL = st.sampled_from([(None,), (None, "test"), ("train", "val", "test")])


@settings(max_examples=100, deadline=None)
@given(official=OFFICIAL, data=st.data(), n_folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_no_group_is_in_two_parts_whatever_the_official_splits(
    official: tuple[str | None, ...], data: st.DataObject, n_folds: int, seed: int
) -> None:
    """Neither in two splits nor in two folds, and no image is lost but those that leak."""
    image = st.tuples(st.integers(0, 2), st.sampled_from(official), st.integers(0, 15))
    images = data.draw(st.lists(image, min_size=20, max_size=60))
    labels, given_splits, groups = (list(column) for column in zip(*images, strict=True))
    manifest = Manifest(
        classes=("a", "b", "c"),
        names=tuple(f"{i:02}.png" for i in range(len(images))),
        labels=np.array(labels),
        splits=tuple(given_splits),
        paths=(None,) * len(images),
        images=None,
    )
    group_of = np.array(groups)
    parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed, n_folds, group_of)
    for group in set(groups):
        assert len(set(parts[group_of == group]) - {EXCLUDED}) == 1
    for part, given_split in zip(parts, given_splits, strict=True):
        if given_split == "test":
            assert part == "test"
        elif part == EXCLUDED:
            assert "test" in given_splits
    rows = np.flatnonzero(np.isin(parts, ("train", "val")))
    if len(rows) and np.bincount(manifest.labels[rows]).max() >= n_folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes smaller than the folds
            folds = grouped_folds(manifest.labels[rows], group_of[rows], n_folds, seed)
        assert sorted(np.concatenate(folds)) == list(range(len(rows)))
        of_folds = [group for fold in folds for group in set(group_of[rows[fold]])]
        assert len(of_folds) == len(set(of_folds))


def test_class_fractions_are_near_those_requested() -> None:
    """Over many draws: a group of six that fits nowhere else moves a class by as much."""
    off: list[float] = []
    for seed in range(200):
        manifest, groups, folds = random_case(seed)
        parts = split(manifest, all_indices(manifest), 0.2, 0.2, seed, folds, groups)
        for label in range(len(manifest.classes)):
            mine = parts[manifest.labels == label]
            off.append((mine == "test").sum() - 0.2 * len(mine))
    assert abs(float(np.mean(off))) < 0.7
    assert float(np.quantile(np.abs(off), 0.9)) < 2.0


# --- files -------------------------------------------------------------------------------------

ODD_NAMES = (
    *('a, "b"/мяу.jpg', 'a, "b"/größe 1\n2.jpg', "c/'; drop.jpg", "c/\udcff.jpg"),
    *("c/NA", "c/nan", "c/1e5", "c/ 1\r.jpg ", "007", "NA", "1e5", "None", "\N{LINE SEPARATOR}"),
)
N_OF_FIRST_CLASS = 2


def make_images(indices: list[int] | None = None, digests: str = "d") -> DecodedImages:
    """Images of odd names, of two classes with odd names."""
    manifest = Manifest(
        classes=('a, "b"', "007"),
        names=ODD_NAMES,
        labels=np.array([int(i >= N_OF_FIRST_CLASS) for i in range(len(ODD_NAMES))]),
        splits=(None,) * len(ODD_NAMES),
        paths=tuple(Path(name) for name in ODD_NAMES),
        images=None,
    )
    rows = np.arange(len(ODD_NAMES)) if indices is None else np.array(indices)
    return DecodedImages(
        manifest=manifest,
        indices=rows,
        pixels=np.zeros((len(rows), 0, 0, 3), np.uint8),
        thumbnails=Thumbnails.empty(len(rows)),
        digests=tuple(f"{digests}{row}" for row in rows),
        issues=(),
    )


def write(path: Path, images: DecodedImages) -> None:
    write_split_csv(path, images, ["train"] * len(images), np.arange(len(images)))


def test_split_csv_round_trips(tmp_path: Path) -> None:
    path, images = tmp_path / "split.csv", make_images([0, 1, 3])
    splits, groups = np.array(["train", "val", EXCLUDED]), np.array([0, 1, 0])
    write_split_csv(path, images, splits, groups)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [
            ["image", "label", "split", "group", "digest"],
            [ODD_NAMES[0], 'a, "b"', "train", "0", "d0"],
            [ODD_NAMES[1], 'a, "b"', "val", "1", "d1"],
            [ODD_NAMES[3], "007", "excluded", "0", "d3"],
        ]
    found_splits, found_groups = read_split_csv(path, images)
    assert found_splits.tolist() == splits.tolist()
    assert found_groups.tolist() == groups.tolist()


def test_odd_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, images = tmp_path / "split.csv", make_images()
    write(path, images)
    assert read_split_csv(path, images)[1].tolist() == list(range(len(ODD_NAMES)))


def test_digests_that_look_like_numbers_are_kept(tmp_path: Path) -> None:
    path, images = tmp_path / "split.csv", make_images(digests="0012e")
    write(path, images)
    assert read_split_csv(path, images)[0].tolist() == ["train"] * len(ODD_NAMES)


def test_split_csv_of_other_images_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    write(path, make_images([0, 1, 2, 3]))
    with pytest.raises(DataError) as error:
        read_split_csv(path, make_images([0, 1, 3]))
    assert str(error.value) == (
        f"the images are not those that the run began with: 1 lines of {path} differ, such as"
        ' "c/\'; drop.jpg,007"; restore the images, or begin a new run'
    )


def test_split_csv_of_images_with_other_contents_is_an_error(tmp_path: Path) -> None:
    path, images = tmp_path / "split.csv", make_images([0, 1, 2, 3])
    write(path, images)
    with pytest.raises(DataError) as error:
        read_split_csv(path, replace(images, digests=("d0", "d1", "other", "d3")))
    assert str(error.value) == (
        "the images are not those that the run began with: these have other contents under the"
        " same names: c/'; drop.jpg; restore the images, or begin a new run"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it lists 0 of the 4 images that the run began with"),
        (b"image,label\n1,2\n", "it has no column 'split'"),
        (b"image,label,split,group,digest\na,b,tra,0,x\n", "line 2: 'tra' is no split"),
        (b"image,label,split,group,digest\na,b,val,x,x\n", "line 2: invalid literal for int"),
        (b"image,label,split,group,digest\na,b,val\n", "line 2: "),
        (b"a,b\n1,2,3\n", "it is no table (Error tokenizing data"),
    ],
)
def test_a_damaged_split_csv_is_not_blamed_on_the_images(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path, images = tmp_path / "split.csv", make_images([0, 1, 2, 3])
    path.write_bytes(content)
    with pytest.raises(FolderError) as error:
        read_split_csv(path, images, n_images=4)
    assert str(error.value).startswith(f"{path} is damaged: {message}")
    assert str(error.value).endswith("; put a copy of it back, or begin a new run")


def test_half_a_split_csv_is_not_blamed_on_the_images(tmp_path: Path) -> None:
    path, images = tmp_path / "split.csv", make_images([0, 1, 2, 3])
    write(path, images)
    with pytest.raises(FolderError, match="lists 4 of the 8 images that the run began with"):
        read_split_csv(path, images, n_images=8)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FolderError, match=r"split\.csv is damaged: "):
            read_split_csv(path, images, n_images=4)


def test_split_csv_needs_a_split_for_each_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_split_csv(tmp_path / "split.csv", make_images(), ["train"], np.arange(3))
