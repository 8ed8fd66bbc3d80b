import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from search.dataset import (
    DataError,
    Listing,
    Packed,
    Problem,
    as_tensor,
    check_counts,
    pack,
    scan,
    split,
    write_audit_csv,
    write_split_csv,
)
from spaces.sources import caltech101, digits, folder
from trainables.images import fit, read_picture


def listing_of(
    counts: dict[str, int], official: dict[str, dict[str, int]] | None = None, root: str = "/data"
) -> Listing:
    """List made-up pictures: {class: count}, and {split: {class: count}}."""
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
    return Listing(
        classes=classes,
        names=tuple(name for name, *_ in entries),
        labels=np.array([classes.index(c) for _, c, _ in entries], dtype=np.int64),
        splits=tuple(part for *_, part in entries),
        paths=tuple(Path(root) / name for name, *_ in entries),
        images=None,
    )


def everything(listing: Listing) -> np.ndarray:
    return np.arange(len(listing.names))


def divided(listing: Listing, seed: int = 0, folds: int = 2) -> dict[tuple[str, str], int]:
    parts = split(listing, everything(listing), 0.2, 0.2, seed, folds)
    classes = (listing.classes[label] for label in listing.labels)
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
    listing = listing_of({"a": count, "b": 40})
    parts = split(listing, everything(listing), *fractions, seed=3)
    assert set(parts[listing.labels == 0]) == {"train", "val", "test"}


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("spare", range(1, 12))
def test_the_test_split_leaves_enough_for_the_folds(folds: int, spare: int) -> None:
    listing = listing_of({"a": folds + spare, "b": 40})
    check_counts(listing, everything(listing), folds)
    for fraction in (0.05, 0.2, 0.5):
        parts = split(listing, everything(listing), 0.2, fraction, seed=0, folds=folds)
        mine = parts[listing.labels == 0]
        assert (mine != "test").sum() >= folds
        assert set(mine) == {"train", "val", "test"}


def test_tiny_classes_are_trained_on_first() -> None:
    assert divided(listing_of({"a": 1, "b": 2})) == {
        **{("a", "train"): 1, ("b", "train"): 1, ("b", "val"): 1}
    }


def test_official_test_split_stays() -> None:
    listing = listing_of({}, {"train": {"a": 50, "b": 30}, "test": {"a": 7, "b": 1}})
    assert divided(listing) == {
        **{("a", "train"): 40, ("a", "val"): 10, ("a", "test"): 7},
        **{("b", "train"): 24, ("b", "val"): 6, ("b", "test"): 1},
    }
    parts = split(listing, everything(listing), 0.2, 0.2, seed=0)
    official = np.array(listing.splits)
    assert ((parts == "test") == (official == "test")).all()


def test_official_splits_all_stay() -> None:
    official = {"train": {"a": 9, "b": 8}, "val": {"a": 4, "b": 2}, "test": {"a": 5, "b": 5}}
    listing = listing_of({}, official)
    parts = split(listing, everything(listing), 0.2, 0.2, seed=0)
    assert tuple(parts) == listing.splits


def test_official_val_split_stays_and_a_test_is_drawn() -> None:
    listing = listing_of({}, {"train": {"a": 40, "b": 3}, "val": {"a": 10, "b": 1}})
    assert divided(listing) == {
        **{("a", "train"): 30, ("a", "val"): 10, ("a", "test"): 10},
        **{("b", "train"): 2, ("b", "val"): 1, ("b", "test"): 1},
    }


def test_split_depends_on_seed_and_names_alone() -> None:
    listing = listing_of({"a": 60, "b": 60})
    kept = everything(listing)
    first = split(listing, kept, 0.2, 0.2, seed=0)
    moved = listing_of({"a": 60, "b": 60}, root="/elsewhere")
    np.testing.assert_array_equal(split(moved, kept, 0.2, 0.2, seed=0), first)
    assert (split(listing, kept, 0.2, 0.2, seed=1) != first).any()


def test_an_unreadable_picture_moves_few_others() -> None:
    listing = listing_of({"a": 60, "b": 60})
    first = split(listing, everything(listing), 0.2, 0.2, seed=0)
    kept = np.delete(everything(listing), 7)
    later = split(listing, kept, 0.2, 0.2, seed=0)
    assert len(later) == 119
    assert (later != first[kept]).sum() <= 2


# --- pack --------------------------------------------------------------------------------------


def save_pictures(root: Path, n_classes: int = 2, count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for c in range(n_classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20 + i, 25, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class {c}" / f"{i}.png")
    return root


def scanned(root: Path) -> Listing:
    return scan(folder(), root, root / "cache", folds=2, limit=None, seed=0)


def quiet(done: int, total: int) -> None:
    pass


def table_of(packed: Packed) -> np.ndarray:
    table = ray.get(packed.table)
    assert table.dtype == np.uint8
    assert table.flags.c_contiguous
    return table


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("block_size", [None, 1, 5, 100])
def test_pack_decodes_every_picture_in_order(tmp_path: Path, block_size: int | None) -> None:
    listing = scanned(save_pictures(tmp_path))
    packed = pack(listing, 16, quiet, image_size=13, block_size=block_size)
    table = table_of(packed)
    assert table.shape == (12, 16, 16, 3)
    assert packed.kept.tolist() == list(range(12))
    assert packed.problems == ()
    assert listing.paths is not None
    for row, path in enumerate(listing.paths):
        np.testing.assert_array_equal(table[row], fit(read_picture(path), 16, 13))


@pytest.mark.usefixtures("ray_session")
def test_pack_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(scanned(save_pictures(tmp_path)), 8, lambda *at: seen.append(at), block_size=5)
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    assert len(seen) == 4
    assert sorted(seen) == seen


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("block_size", [None, 2])
def test_unreadable_files_are_named_and_left_out(tmp_path: Path, block_size: int | None) -> None:
    save_pictures(tmp_path)
    good = (tmp_path / "class 0" / "3.png").read_bytes()
    (tmp_path / "class 0" / "0.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "class 0" / "9 größe.jpg").touch()
    (tmp_path / "class 1" / "2a.jpg").write_text("not a picture")
    (tmp_path / "class 1" / "notes.txt").write_text("by its name no picture")
    listing = scanned(tmp_path)
    packed = pack(listing, 16, quiet, block_size=block_size)
    assert [(problem.name, problem.kind) for problem in packed.problems] == [
        ("class 0/0.png", "unreadable"),
        ("class 0/9 größe.jpg", "unreadable"),
        ("class 1/2a.jpg", "unreadable"),
        ("class 1/notes.txt", "not a picture"),
    ]
    assert [problem.detail for problem in packed.problems[1:3]] == [
        "is empty (zero bytes)",
        "is not a picture, or of a format that cannot be read",
    ]
    table = table_of(packed)
    assert table.shape == (11, 16, 16, 3)
    assert listing.paths is not None
    assert [listing.names[i] for i in packed.kept] == [
        *(f"class 0/{i}.png" for i in (1, 2, 3, 4, 5)),
        *(f"class 1/{i}.png" for i in range(6)),
    ]
    for row, i in enumerate(packed.kept):
        np.testing.assert_array_equal(table[row], fit(read_picture(listing.paths[i]), 16))
    with pytest.raises(DataError, match="but 'class 0' has 5"):
        check_counts(listing, packed.kept, folds=5)


@pytest.mark.usefixtures("ray_session")
def test_nothing_readable_is_told_by_the_check_of_counts(tmp_path: Path) -> None:
    save_pictures(tmp_path, count=3)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    listing = scanned(tmp_path)
    packed = pack(listing, 16, quiet)
    assert table_of(packed).shape == (0, 16, 16, 3)
    assert len(packed.problems) == 6
    with pytest.raises(DataError, match="'class 0' has 0, 'class 1' has 0"):
        check_counts(listing, packed.kept, folds=2)


@pytest.mark.usefixtures("ray_session")
def test_pack_takes_every_format(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((30, 40, 3), (200, 100, 50), np.uint8))
    grey = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
    for c in ("a", "b"):
        at = tmp_path / c / "tief verschachtelt"
        at.mkdir(parents=True)
        for suffix in ("jpg", "PNG", "bmp", "gif", "webp", "tiff", "mpo"):
            image.save(at / f"picture of {suffix}.{suffix}")
        image.convert("L").save(at / "grey.jpg")
        image.convert("P").save(at / "palette.png")
        image.convert("RGBA").save(at / "alpha.png")
        image.convert("CMYK").save(at / "cmyk.jpg")
        grey.save(at / "16 bit.png")
    packed = pack(scanned(tmp_path), 32, quiet)
    assert packed.problems == ()
    assert table_of(packed).shape == (24, 32, 32, 3)
    flat = table_of(packed).reshape(24, -1)
    assert (flat.max(axis=1) > 100).all()


@pytest.mark.usefixtures("ray_session")
def test_pack_resizes_arrays(tmp_path: Path) -> None:
    listing = scan(digits(), None, tmp_path, folds=2, limit=300, seed=0)
    packed = pack(listing, 18, quiet, image_size=16, block_size=70)
    table = table_of(packed)
    assert table.shape == (300, 18, 18, 3)
    assert packed.problems == ()
    assert listing.images is not None
    for row in (0, 69, 70, 299):
        image = Image.fromarray(listing.images[row]).convert("RGB")
        np.testing.assert_array_equal(table[row], fit(image, 18, 16))


@pytest.mark.usefixtures("ray_session")
def test_pack_takes_colour_arrays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    names = tuple("abcde")
    listing = Listing(("x", "y"), names, np.zeros(5, np.int64), (None,) * 5, None, images)
    table = table_of(pack(listing, 7, quiet, image_size=7))
    np.testing.assert_array_equal(table, images[:, 1:8])


@pytest.mark.usefixtures("ray_session")
def test_the_table_is_read_without_a_copy(tmp_path: Path) -> None:
    packed = pack(scanned(save_pictures(tmp_path)), 64, quiet)
    one, two = ray.get(packed.table), ray.get(packed.table)
    assert one.ctypes.data == two.ctypes.data
    assert not one.flags.writeable
    tensor = as_tensor(one)
    assert tensor.data_ptr() == one.ctypes.data
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (12, 64, 64, 3)


def references() -> set[bytes]:
    """The objects that this process keeps alive."""
    core = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
    return set(core.get_all_reference_counts())


@pytest.mark.usefixtures("ray_session")
def test_nothing_but_the_table_is_kept_alive(tmp_path: Path) -> None:
    for listing in (scanned(save_pictures(tmp_path)), scan(digits(), None, tmp_path, 2, 99, 0)):
        before = references()
        packed = pack(listing, 16, quiet, block_size=5)
        expected = {packed.table.hex().encode()}
        until = time.monotonic() + 20  # Ray counts references a moment later
        while references() - before != expected and time.monotonic() < until:
            time.sleep(0.1)
        assert references() - before == expected


def test_decoding_imports_no_torch() -> None:
    code = "import sys, search.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("ray_session")
def test_real_pictures_of_all_kinds(shared_data: Path, tmp_path: Path) -> None:
    listing = scan(folder(), shared_data / "tools", tmp_path, folds=5, limit=None, seed=0)
    packed = pack(listing, 64, quiet)
    assert packed.problems == ()
    assert len(packed.kept) == len(listing.names) == 164


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_packing_caltech_takes_seconds(shared_data: Path, tmp_path: Path) -> None:
    six = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    listing = scan(caltech101(six), shared_data / "caltech101", tmp_path, 5, None, 0)
    start = time.perf_counter()
    packed = pack(listing, 256, quiet, image_size=224)
    seconds = time.perf_counter() - start
    assert len(packed.kept) == 988
    assert seconds < 15  # 1.0 to 1.5 s on two free cores


# --- files -------------------------------------------------------------------------------------

ODD_NAMES = ('a, "b"/мяу.jpg', 'a, "b"/größe 1\n2.jpg', "c/'; drop.jpg", "c/\udcff.jpg")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def test_split_csv_round_trips(tmp_path: Path) -> None:
    listing = Listing(
        classes=('a, "b"', "c"),
        names=ODD_NAMES,
        labels=np.array([0, 0, 1, 1]),
        splits=(None,) * 4,
        paths=tuple(Path(name) for name in ODD_NAMES),
        images=None,
    )
    path = tmp_path / "split.csv"
    write_split_csv(path, listing, np.array([0, 1, 3]), np.array(["train", "val", "test"]))
    assert rows_of(path) == [
        ["name", "label", "split"],
        [ODD_NAMES[0], 'a, "b"', "train"],
        [ODD_NAMES[1], 'a, "b"', "val"],
        [ODD_NAMES[3], "c", "test"],
    ]


def test_split_csv_needs_a_split_a_picture(tmp_path: Path) -> None:
    listing = listing_of({"a": 3})
    with pytest.raises(ValueError, match="shorter"):
        write_split_csv(tmp_path / "split.csv", listing, np.arange(3), ["train"])


def test_audit_csv_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    write_audit_csv(path, [Problem(name, "unreadable", 'is "empty", really') for name in ODD_NAMES])
    assert rows_of(path) == [
        ["name", "problem", "detail"],
        *([name, "unreadable", 'is "empty", really'] for name in ODD_NAMES),
    ]
    write_audit_csv(path, [])
    assert rows_of(path) == [["name", "problem", "detail"]]
