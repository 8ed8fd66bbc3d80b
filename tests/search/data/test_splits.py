import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from search.data.class_folders import DataError
from search.data.manifest import Manifest, check_counts
from search.data.splits import OUT, read_split_csv, split, write_split_csv
from trainables.grouped_kfold import grouped_folds


def listing_of(
    counts: dict[str, int], official: dict[str, dict[str, int]] | None = None, root: str = "/data"
) -> Manifest:
    """List made-up images: {class: count}, and {split: {class: count}}."""
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


def everything(manifest: Manifest) -> np.ndarray:
    return np.arange(len(manifest.names))


def divided(manifest: Manifest, seed: int = 0, folds: int = 2) -> dict[tuple[str, str], int]:
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed, folds)
    classes = (manifest.classes[label] for label in manifest.labels)
    return dict(Counter(zip(classes, (str(part) for part in parts), strict=True)))


# --- split -------------------------------------------------------------------------------------


def test_split_is_stratified() -> None:
    assert divided(listing_of({"a": 100, "b": 50})) == {
        **{("a", "train"): 64, ("a", "val"): 16, ("a", "test"): 20},
        **{("b", "train"): 32, ("b", "val"): 8, ("b", "test"): 10},
    }


@pytest.mark.parametrize("count", range(3, 30))
@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.2, 0.2), (0.5, 0.5)])
def test_small_classes_are_in_every_split(count: int, fractions: tuple[float, float]) -> None:
    manifest = listing_of({"a": count, "b": 40})
    parts = split(manifest, everything(manifest), *fractions, seed=3)
    assert set(parts[manifest.labels == 0]) == {"train", "val", "test"}


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("spare", range(1, 12))
def test_the_test_split_leaves_enough_for_the_folds(folds: int, spare: int) -> None:
    manifest = listing_of({"a": folds + spare, "b": 40})
    check_counts(manifest, everything(manifest), folds)
    for fraction in (0.05, 0.2, 0.5):
        parts = split(manifest, everything(manifest), 0.2, fraction, seed=0, folds=folds)
        mine = parts[manifest.labels == 0]
        assert (mine != "test").sum() >= folds
        assert set(mine) == {"train", "val", "test"}


def test_tiny_classes_are_trained_on_first() -> None:
    assert divided(listing_of({"a": 1, "b": 2})) == {
        **{("a", "train"): 1, ("b", "train"): 1, ("b", "val"): 1}
    }


def test_official_test_split_stays() -> None:
    manifest = listing_of({}, {"train": {"a": 50, "b": 30}, "test": {"a": 7, "b": 1}})
    assert divided(manifest) == {
        **{("a", "train"): 40, ("a", "val"): 10, ("a", "test"): 7},
        **{("b", "train"): 24, ("b", "val"): 6, ("b", "test"): 1},
    }
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed=0)
    official = np.array(manifest.splits)
    assert ((parts == "test") == (official == "test")).all()


def test_official_splits_all_stay() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = listing_of({}, official)
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed=0)
    assert tuple(parts) == manifest.splits


def test_official_val_split_stays_and_a_test_is_drawn() -> None:
    manifest = listing_of({}, {"train": {"a": 40, "b": 3}, "val": {"a": 10, "b": 1}})
    assert divided(manifest) == {
        **{("a", "train"): 30, ("a", "val"): 10, ("a", "test"): 10},
        **{("b", "train"): 2, ("b", "val"): 1, ("b", "test"): 1},
    }


def test_split_depends_on_seed_and_names_alone() -> None:
    manifest = listing_of({"a": 60, "b": 60})
    kept = everything(manifest)
    first = split(manifest, kept, 0.2, 0.2, seed=0)
    moved = listing_of({"a": 60, "b": 60}, root="/elsewhere")
    np.testing.assert_array_equal(split(moved, kept, 0.2, 0.2, seed=0), first)
    assert (split(manifest, kept, 0.2, 0.2, seed=1) != first).any()


def test_an_unreadable_image_moves_few_others() -> None:
    manifest = listing_of({"a": 60, "b": 60})
    first = split(manifest, everything(manifest), 0.2, 0.2, seed=0)
    kept = np.delete(everything(manifest), 7)
    later = split(manifest, kept, 0.2, 0.2, seed=0)
    assert len(later) == 119
    assert (later != first[kept]).sum() <= 2


# --- near-duplicates ---------------------------------------------------------------------------


def groups_of(manifest: Manifest, *groups: str) -> np.ndarray:
    """Number the groups, each given as names with blanks between; others are on their own."""
    found = np.arange(len(manifest.names))
    for group in groups:
        rows = [manifest.names.index(name) for name in group.split()]
        found[rows] = rows[0]
    return found


def test_groups_of_one_change_nothing() -> None:
    manifest = listing_of({"a": 60, "b": 7})
    kept = everything(manifest)
    alone = split(manifest, kept, 0.2, 0.2, seed=0, groups=1000 - kept)
    np.testing.assert_array_equal(alone, split(manifest, kept, 0.2, 0.2, seed=0))


def test_near_duplicates_of_test_images_leave_training() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = listing_of({}, official)
    groups = groups_of(
        manifest,
        "train/a/0001.jpg train/b/0002.jpg test/a/0000.jpg test/b/0001.jpg",
        "train/a/0003.jpg val/a/0001.jpg",
        "train/a/0004.jpg train/a/0005.jpg",
    )
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed=0, groups=groups)
    moved = [name for name, part in zip(manifest.names, parts, strict=True) if part == OUT]
    assert moved == ["train/a/0001.jpg", "train/a/0003.jpg", "train/b/0002.jpg"]
    stayed = parts != OUT
    assert (parts[stayed] == np.array(manifest.splits)[stayed]).all()


def test_validation_loses_the_near_duplicates_of_the_test() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    manifest = listing_of({}, official)
    groups = groups_of(manifest, "train/a/0001.jpg val/a/0001.jpg test/a/0001.jpg")
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed=0, groups=groups)
    moved = [name for name, part in zip(manifest.names, parts, strict=True) if part == OUT]
    assert moved == ["train/a/0001.jpg", "val/a/0001.jpg"]


def test_contradicting_labels_are_trained_on_while_others_can_be_judged() -> None:
    manifest = listing_of({"a": 20, "b": 20})
    groups = groups_of(manifest, *(f"a/{i:04d}.jpg b/{i:04d}.jpg" for i in range(8)))
    for seed in range(20):
        parts = split(manifest, everything(manifest), 0.2, 0.2, seed=seed, groups=groups)
        sizes = np.bincount(groups)[groups]
        assert set(parts[sizes == 2]) == {"train"}
        assert Counter(parts[sizes == 1].tolist()) == {"train": 10, "val": 6, "test": 8}


def test_a_class_that_is_all_in_another_is_still_in_every_part() -> None:
    manifest = listing_of({"a": 8, "b": 8})
    groups = groups_of(manifest, *(f"a/{i:04d}.jpg b/{i:04d}.jpg" for i in range(8)))
    parts = split(manifest, everything(manifest), 0.2, 0.2, seed=0, groups=groups)
    for label in (0, 1):
        assert set(parts[manifest.labels == label]) == {"train", "val", "test"}


def test_counts_take_near_duplicates_once() -> None:
    manifest = listing_of({"a": 20, "b": 9})
    check_counts(manifest, everything(manifest), 5)
    groups = groups_of(manifest, " ".join(f"b/{i:04d}.jpg" for i in range(2, 7)))
    message = r"at least 6 images \(5 folds.*, near-duplicates counted once.* but 'b' has 5"
    with pytest.raises(DataError, match=message):
        check_counts(manifest, everything(manifest), 5, groups)
    check_counts(manifest, everything(manifest), 4, groups)


def random_case(seed: int) -> tuple[Manifest, np.ndarray, int]:
    """Draw classes, groups of near-duplicates within and across them, and a number of folds."""
    rng = np.random.default_rng(seed)
    folds = int(rng.integers(2, 6))
    n_classes = int(rng.integers(2, 5))
    n_groups = rng.integers(folds + 1, 25, n_classes)
    sizes = [np.where(rng.random(n) < 0.3, rng.integers(2, 7, n), 1) for n in n_groups]
    manifest = listing_of({f"c{c}": int(of_class.sum()) for c, of_class in enumerate(sizes)})
    numbers = np.arange(n_groups.sum())
    groups = np.repeat(numbers, np.concatenate(sizes))
    # Names say nothing of groups, and a few groups hold two classes.
    for label in range(n_classes):
        rows = np.flatnonzero(manifest.labels == label)
        groups[rows] = rng.permutation(groups[rows])
    for _ in range(int(rng.integers(0, 3))):
        one, two = rng.choice(len(groups), 2)
        groups[groups == groups[one]] = groups[two]
    return manifest, groups, folds


def test_no_group_straddles_in_a_thousand_random_cases() -> None:
    for seed in range(1000):
        manifest, groups, folds = random_case(seed)
        kept = everything(manifest)
        parts = split(manifest, kept, 0.2, 0.2, seed, folds, groups)
        assert set(parts) == {"train", "val", "test"}
        for group in np.unique(groups):
            assert len(set(parts[groups == group])) == 1
        rows = np.flatnonzero(parts != "test")
        held_out = grouped_folds(manifest.labels[rows], groups[rows], folds, seed)
        fold_of = np.empty(len(rows), np.int64)
        for fold, positions in enumerate(held_out):
            fold_of[positions] = fold
        assert np.array_equal(np.sort(np.concatenate(held_out)), np.arange(len(rows)))
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


def test_class_shares_stay_near_those_asked_for() -> None:
    """Over many draws; a group of six that fits nowhere else moves a share by as much."""
    off: list[float] = []
    for seed in range(200):
        manifest, groups, folds = random_case(seed)
        parts = split(manifest, everything(manifest), 0.2, 0.2, seed, folds, groups)
        for label in range(len(manifest.classes)):
            mine = parts[manifest.labels == label]
            off.append((mine == "test").sum() - 0.2 * len(mine))
    assert abs(float(np.mean(off))) < 0.7
    assert float(np.quantile(np.abs(off), 0.9)) < 2.0


# --- files -------------------------------------------------------------------------------------

ODD_NAMES = ('a, "b"/мяу.jpg', 'a, "b"/größe 1\n2.jpg', "c/'; drop.jpg", "c/\udcff.jpg")
DIGESTS = ["d0", "d1", "d2", "d3"]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def odd_listing() -> Manifest:
    return Manifest(
        classes=('a, "b"', "c"),
        names=ODD_NAMES,
        labels=np.array([0, 0, 1, 1]),
        splits=(None,) * 4,
        paths=tuple(Path(name) for name in ODD_NAMES),
        images=None,
    )


def test_split_csv_round_trips(tmp_path: Path) -> None:
    path, manifest, kept = tmp_path / "split.csv", odd_listing(), np.array([0, 1, 3])
    splits, groups = np.array(["train", "val", OUT]), np.array([0, 1, 0])
    write_split_csv(path, manifest, kept, splits, groups, DIGESTS[:3])
    assert rows_of(path) == [
        ["name", "label", "split", "group", "digest"],
        [ODD_NAMES[0], 'a, "b"', "train", "0", "d0"],
        [ODD_NAMES[1], 'a, "b"', "val", "1", "d1"],
        [ODD_NAMES[3], "c", "out", "0", "d2"],
    ]
    found_splits, found_groups = read_split_csv(path, manifest, kept, DIGESTS[:3])
    assert found_splits.tolist() == splits.tolist()
    assert found_groups.tolist() == groups.tolist()


def test_split_csv_of_other_images_is_refused(tmp_path: Path) -> None:
    path, manifest = tmp_path / "split.csv", odd_listing()
    write_split_csv(path, manifest, np.arange(4), ["train"] * 4, np.arange(4), DIGESTS)
    with pytest.raises(DataError) as error:
        read_split_csv(path, manifest, np.array([0, 1, 3]), DIGESTS[:3])
    assert str(error.value) == (
        f"the images are not those that the run began with: 1 lines of {path} differ, such as"
        ' "c/\'; drop.jpg,c"; give back the images, or begin a new run'
    )


def test_split_csv_of_images_with_other_contents_is_refused(tmp_path: Path) -> None:
    path, manifest = tmp_path / "split.csv", odd_listing()
    write_split_csv(path, manifest, np.arange(4), ["train"] * 4, np.arange(4), DIGESTS)
    with pytest.raises(DataError) as error:
        read_split_csv(path, manifest, np.arange(4), ["d0", "d1", "other", "d3"])
    assert str(error.value) == (
        "the images are not those that the run began with: these have other contents under the"
        " same names: c/'; drop.jpg; give back the images, or begin a new run"
    )


def test_split_csv_without_groups_is_one_of_images_on_their_own(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("name,label,split\na/0000.jpg,a,train\nb/0000.jpg,b,val\n")
    splits, groups = read_split_csv(path, listing_of({"a": 1, "b": 1}), np.arange(2), DIGESTS[:2])
    assert splits.tolist() == ["train", "val"]
    assert len(set(groups.tolist())) == 2


def test_split_csv_needs_a_split_a_image(tmp_path: Path) -> None:
    manifest = listing_of({"a": 3})
    with pytest.raises(ValueError, match="shorter"):
        write_split_csv(
            tmp_path / "split.csv", manifest, np.arange(3), ["train"], np.arange(3), DIGESTS[:3]
        )
