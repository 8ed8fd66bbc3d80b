import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from search.cluster.parallel import ParallelMap, ray_map, serial_map, thread_map
from search.data.audit import audit_images
from search.data.decoding import (
    ResizeSpec,
    decode_images,
    image_digest,
    read_headers,
    read_images,
)
from search.data.image_files import DataError
from search.data.manifest import Manifest, check_counts
from search.data.scan import scan
from spaces.sources import caltech101, digits, folder
from trainables.images import ImageError, pixel_limit, read_image, to_square
from trainables.levels import Levels


def save_images(root: Path, n_classes: int = 2, count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for c in range(n_classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20 + i, 25, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class {c}" / f"{i}.png")
    return root


def scanned(root: Path) -> Manifest:
    return scan(folder(), root, root / "cache", folds=2, limit=None, seed=0)


# --- read_images -------------------------------------------------------------------------------


def test_files_bytes_and_arrays_are_read_alike(tmp_path: Path) -> None:
    save_images(tmp_path, 1, 2)
    first, second = (tmp_path / "class 0" / f"{i}.png" for i in (0, 1))
    pixels = np.asarray(read_image(first))
    read = list(read_images([first, second.read_bytes(), pixels, pixels[:, :, 0]]))
    assert [one.position for one in read] == [0, 1, 2, 3]
    images = [one.image for one in read]
    np.testing.assert_array_equal(np.asarray(images[0]), pixels)
    np.testing.assert_array_equal(np.asarray(images[1]), np.asarray(read_image(second)))
    np.testing.assert_array_equal(np.asarray(images[2]), pixels)
    np.testing.assert_array_equal(np.asarray(images[3])[:, :, 2], pixels[:, :, 0])
    contents = (first.read_bytes(), second.read_bytes(), pixels.tobytes())
    assert [one.digest for one in read[:3]] == [image_digest(content) for content in contents]


FILM = b"\0\0\0\x14ftypqt  \0\0\0\0qt  \0\0\0\x08wide"


def special_files(root: Path) -> dict[str, str]:
    """Make what is no image, and could not be read whole; return the reasons by name."""
    os.mkfifo(root / "pipe")
    for name, target in {"pipe.png": "pipe", "endless.png": "/dev/zero", "tty": "/dev/tty"}.items():
        (root / name).symlink_to(target)
    png = (root / "class 0" / "0.png").read_bytes()
    files = {"film.jpg": (FILM, 1), "film": (FILM, 1), "large.png": (png, 8), "long.jpg": (FILM, 8)}
    for name, (start, gib) in files.items():
        with (root / name).open("wb") as file:
            file.write(start)
            file.truncate(gib * 2**30)  # takes no room on the disk
    special = "is a pipe, a socket or a device"
    unknown = "is not an image, or of a format that cannot be read"
    too_large = "is larger than an image file may be: 8.0 GiB, and 1 GiB is the most"
    return {
        **dict.fromkeys(("pipe", "pipe.png", "endless.png", "tty"), special),
        **dict.fromkeys(("film.jpg", "film"), unknown),
        **dict.fromkeys(("large.png", "long.jpg"), too_large),
    }


@pytest.mark.parametrize("send_files", [False, True])
def test_films_pipes_and_devices_are_named_and_not_read(tmp_path: Path, send_files: bool) -> None:
    save_images(tmp_path, 2, 6)
    reasons = special_files(tmp_path)
    for name in reasons:
        (tmp_path / name).rename(tmp_path / "class 0" / name)
    tracemalloc.start()
    decoded = decode_images(scanned(tmp_path), ResizeSpec(8), serial_map, send_files=send_files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(decoded) == 12
    found = {issue.image.removeprefix("class 0/"): issue.detail for issue in decoded.issues}
    assert found == reasons
    assert peak < 50e6


def test_a_file_that_cannot_be_read_is_an_error_in_its_place(tmp_path: Path) -> None:
    save_images(tmp_path, 1, 1)
    missing, good = tmp_path / "gone.png", tmp_path / "class 0" / "0.png"
    one, two, three = read_images([missing, good, b"no image"])
    assert isinstance(one.image, ImageError)
    assert (one.image.reason, one.digest) == ("there is no such file", "")
    assert isinstance(two.image, Image.Image)
    assert isinstance(three.image, ImageError)
    assert three.image.reason == "is not an image, or of a format that cannot be read"


# --- decode_images -----------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("parallel_map", [serial_map, thread_map, ray_map])
@pytest.mark.parametrize("block_size", [None, 1, 5, 100])
def test_every_image_is_decoded_in_order(
    tmp_path: Path, parallel_map: ParallelMap, block_size: int | None
) -> None:
    manifest = scanned(save_images(tmp_path))
    decoded = decode_images(manifest, ResizeSpec(16, 13), parallel_map, block_size=block_size)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.shape == (12, 16, 16, 3)
    assert decoded.indices.tolist() == list(range(12))
    assert decoded.names == manifest.names
    assert decoded.labels.tolist() == manifest.labels.tolist()
    assert decoded.issues == ()
    assert manifest.paths is not None
    for row, path in enumerate(manifest.paths):
        np.testing.assert_array_equal(decoded.pixels[row], to_square(read_image(path), 16, 13))


def test_digests_depend_on_contents_not_on_file_times(tmp_path: Path) -> None:
    root = save_images(tmp_path)
    (root / "class 0" / "1.png").write_bytes(b"no image")
    manifest = scanned(root)
    before = decode_images(manifest, ResizeSpec(16), serial_map, block_size=5)
    assert len(set(before.digests)) == len(before) == 11
    changed, copied = root / "class 0" / "2.png", root / "class 1" / "3.png"
    times = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")  # of the same size
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(copied, (1, 1))
    after = decode_images(manifest, ResizeSpec(16), serial_map, send_files=True, block_size=3)
    digests = zip(before.names, before.digests, after.digests, strict=True)
    assert [name for name, one, other in digests if one != other] == ["class 0/2.png"]


def map_without_files(
    work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]
) -> Iterator[Any]:
    """Map on a machine that has none of the files."""
    for part in parts:
        yield work(shared, [c.with_name("not here") if isinstance(c, Path) else c for c in part])


def test_files_that_other_machines_do_not_have_are_sent(tmp_path: Path) -> None:
    manifest = scanned(save_images(tmp_path))
    resize = ResizeSpec(16)
    here = decode_images(manifest, resize, serial_map, block_size=5)
    assert len(decode_images(manifest, resize, map_without_files, block_size=5).issues) == 12
    sent = decode_images(manifest, resize, map_without_files, send_files=True, block_size=5)
    np.testing.assert_array_equal(sent.pixels, here.pixels)
    (tmp_path / "class 0" / "0.png").unlink()
    (issue,) = decode_images(
        manifest, resize, map_without_files, send_files=True, block_size=5
    ).issues
    assert issue.detail == "there is no such file"


@pytest.mark.usefixtures("ray_session")
def test_sent_files_are_decoded_by_ray_tasks(tmp_path: Path) -> None:
    manifest = scanned(save_images(tmp_path))
    here = decode_images(manifest, ResizeSpec(16), serial_map)
    sent = decode_images(manifest, ResizeSpec(16), ray_map, send_files=True, block_size=1)
    np.testing.assert_array_equal(sent.pixels, here.pixels)
    assert sent.digests == here.digests


def test_progress_is_reported_after_each_block(tmp_path: Path) -> None:
    seen: list[int] = []
    manifest = scanned(save_images(tmp_path))
    decode_images(manifest, ResizeSpec(8), serial_map, seen.append, block_size=5)
    assert seen == [0, 5, 10, 12]


@pytest.mark.parametrize("block_size", [None, 2])
def test_unreadable_files_are_named_and_excluded(tmp_path: Path, block_size: int | None) -> None:
    save_images(tmp_path)
    good = (tmp_path / "class 0" / "3.png").read_bytes()
    (tmp_path / "class 0" / "0.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "class 0" / "9 größe.jpg").touch()
    (tmp_path / "class 1" / "2a.jpg").write_text("not an image")
    (tmp_path / "class 1" / "notes.txt").write_text("by its name no image")
    manifest = scanned(tmp_path)
    decoded = decode_images(manifest, ResizeSpec(16), thread_map, block_size=block_size)
    assert [(issue.image, issue.issue) for issue in decoded.issues] == [
        ("class 0/0.png", "unreadable"),
        ("class 0/9 größe.jpg", "unreadable"),
        ("class 1/2a.jpg", "unreadable"),
        ("class 1/notes.txt", "not an image"),
    ]
    assert [issue.detail for issue in decoded.issues[1:3]] == [
        "is empty (zero bytes)",
        "is not an image, or of a format that cannot be read",
    ]
    assert decoded.pixels.shape == (11, 16, 16, 3)
    assert len(decoded.thumbnails) == len(decoded.digests) == len(decoded) == 11
    assert manifest.paths is not None
    assert decoded.names == (
        *(f"class 0/{i}.png" for i in (1, 2, 3, 4, 5)),
        *(f"class 1/{i}.png" for i in range(6)),
    )
    for row, i in enumerate(decoded.indices):
        square = to_square(read_image(manifest.paths[i]), 16)
        np.testing.assert_array_equal(decoded.pixels[row], square)
    with pytest.raises(DataError, match="but 'class 0' has 5"):
        check_counts(manifest, decoded.indices, folds=5)


def test_without_readable_images_the_check_of_counts_fails(tmp_path: Path) -> None:
    save_images(tmp_path, count=3)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    manifest = scanned(tmp_path)
    decoded = decode_images(manifest, ResizeSpec(16), serial_map)
    assert decoded.pixels.shape == (0, 16, 16, 3)
    assert len(decoded.issues) == 6
    with pytest.raises(DataError, match="'class 0' has 0, 'class 1' has 0"):
        check_counts(manifest, decoded.indices, folds=2)


def test_every_format_is_decoded(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((30, 40, 3), (200, 100, 50), np.uint8))
    wide = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
    for c in ("a", "b"):
        at = tmp_path / c / "tief verschachtelt"
        at.mkdir(parents=True)
        for suffix in ("jpg", "PNG", "bmp", "gif", "webp", "tiff", "mpo"):
            image.save(at / f"image of {suffix}.{suffix}")
        image.convert("L").save(at / "grayscale.jpg")
        image.convert("P").save(at / "palette.png")
        image.convert("RGBA").save(at / "alpha.png")
        image.convert("CMYK").save(at / "cmyk.jpg")
        wide.save(at / "16 bit.png")
    decoded = decode_images(scanned(tmp_path), ResizeSpec(32), thread_map)
    assert decoded.issues == ()
    assert decoded.pixels.shape == (24, 32, 32, 3)
    assert (decoded.pixels.reshape(24, -1).max(axis=1) > 100).all()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("parallel_map", [serial_map, ray_map])
def test_arrays_are_resized(tmp_path: Path, parallel_map: ParallelMap) -> None:
    manifest = scan(digits(), None, tmp_path, folds=2, limit=300, seed=0)
    decoded = decode_images(manifest, ResizeSpec(18, 16), parallel_map, block_size=30)
    assert decoded.pixels.shape == (300, 18, 18, 3)
    assert decoded.issues == ()
    assert manifest.images is not None
    for row in (0, 29, 30, 299):
        image = Image.fromarray(manifest.images[row]).convert("RGB")
        np.testing.assert_array_equal(decoded.pixels[row], to_square(image, 18, 16))


def test_colour_arrays_are_decoded() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    names = tuple("abcde")
    manifest = Manifest(("x", "y"), names, np.zeros(5, np.int64), (None,) * 5, None, images)
    decoded = decode_images(manifest, ResizeSpec(7, 7), serial_map)
    np.testing.assert_array_equal(decoded.pixels, images[:, 1:8])


def test_a_large_table_is_mapped_from_a_file(tmp_path: Path) -> None:
    root = save_images(tmp_path / "images")
    (root / "class 0" / "1.png").write_bytes(b"no image")
    manifest, file = scanned(root), tmp_path / "cache" / "images.npy"
    decoded = decode_images(manifest, ResizeSpec(16), serial_map, mapped_file=file)
    assert isinstance(decoded.pixels, np.memmap)
    in_memory = decode_images(manifest, ResizeSpec(16), serial_map)
    np.testing.assert_array_equal(decoded.pixels, in_memory.pixels)
    np.testing.assert_array_equal(np.load(file, mmap_mode="r")[: len(decoded)], in_memory.pixels)


def test_the_audit_needs_no_squares(tmp_path: Path) -> None:
    manifest = scanned(save_images(tmp_path))
    decoded = decode_images(manifest, None, thread_map)
    with_squares = decode_images(manifest, ResizeSpec(16), serial_map)
    assert decoded.pixels.size == 0
    assert decoded.digests == with_squares.digests
    np.testing.assert_array_equal(decoded.thumbnails.pixels, with_squares.thumbnails.pixels)


def references() -> set[bytes]:
    """The objects that this process keeps alive; Ray tells them publicly by its dashboard only."""
    core = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
    return set(core.get_all_reference_counts())


@pytest.mark.usefixtures("ray_session")
def test_nothing_is_kept_in_the_object_store(tmp_path: Path) -> None:
    for manifest in (scanned(save_images(tmp_path)), scan(digits(), None, tmp_path, 2, 99, 0)):
        before = references()
        kept = ray.put(b"")
        assert len(references() - before) == 1, "an object that is kept would be seen"
        del kept
        decode_images(manifest, ResizeSpec(16), ray_map, block_size=1)
        until = time.monotonic() + 20  # Ray counts references a moment later
        while references() - before and time.monotonic() < until:
            time.sleep(0.1)
        assert references() - before == set()


def test_decoding_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys, search.data.decoding, search.data.audit;"
        " sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_images_of_all_kinds(shared_data: Path, tmp_path: Path) -> None:
    manifest = scan(folder(), shared_data / "tools", tmp_path, folds=5, limit=None, seed=0)
    decoded = decode_images(manifest, ResizeSpec(64), thread_map)
    assert decoded.issues == ()
    assert len(decoded) == len(manifest.names) == 164


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_decode_all_of_caltech(shared_data: Path, tmp_path: Path) -> None:
    six = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    manifest = scan(caltech101(six), shared_data / "caltech101", tmp_path, 5, None, 0)
    decoded = decode_images(manifest, ResizeSpec(256, 224), ray_map)
    assert decoded.issues == ()
    assert len(decoded) == 988


def test_headers_of_a_few_images_are_read(tmp_path: Path) -> None:
    paths = []
    for index in range(100):
        paths.append(tmp_path / f"{index:03}.png")
        Image.new("RGB" if index % 2 else "L", (30 + index, 20)).save(paths[-1])
    paths[4].write_bytes(b"no image")
    headers = read_headers(tuple(paths))
    assert headers[0] == ((30, 20), False)
    assert ((34, 20), False) not in headers
    assert 20 <= len(headers) <= 48
    assert read_headers(paths[1:2]) == [((31, 20), True)]
    assert read_headers(()) == []


def save_deep_set(root: Path, n_bits: int, n: int = 4) -> np.ndarray:
    """Write images of some bits in files of 16, in train/ and test/; return them with 8 bits."""
    plain = np.random.default_rng(0).integers(0, 256, (2 * n, 24, 24))
    plain[:, 0, 0] = 255
    for split in ("train", "test"):
        for row, image in enumerate(plain):
            path = root / split / f"class {row % 2}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.rint(image / 255 * (2**n_bits - 1)).astype(np.uint16)
            Image.fromarray(values).save(path)
    return plain.astype(np.uint8)


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_black_and_white_are_those_of_the_set(tmp_path: Path, block_size: int) -> None:
    plain = save_deep_set(tmp_path, 12)
    bright = np.full((24, 24), 65535, np.uint16)
    Image.fromarray(bright).save(tmp_path / "test" / "class 0" / "bright.png")
    dark = np.full((24, 24), 100, np.uint16)
    Image.fromarray(dark).save(tmp_path / "train" / "class 0" / "dark.png")
    (tmp_path / "train" / "class 0" / "damaged.png").write_bytes(b"no image")
    manifest = scanned(tmp_path)
    images = decode_images(manifest, ResizeSpec(24, 24), thread_map, block_size=block_size)
    assert images.levels.integers == (0, 4095), "the test images choose nothing"
    row_of = {name: row for row, name in enumerate(images.names)}
    for row, image in enumerate(plain):
        decoded = images.pixels[row_of[f"train/class {row % 2}/{row}.png"]]
        assert np.abs(decoded[:, :, 0].astype(int) - image).max() <= 1
        thumbnail = images.thumbnails.pixels[row_of[f"test/class {row % 2}/{row}.png"]]
        assert thumbnail.max() > 150
    audit = audit_images(images, images, flip=True)
    odd = {i.image: i.detail for i in audit.issues if i.issue in ("bit depth", "odd levels")}
    light = "its levels end at 65535, above the white, 4095"
    nearly_black = "its levels end at 100, and 4095 is white: nearly black"
    assert odd == {
        "": "18 images of more than 8 bits, from black to white: 0 to 4095",
        "test/class 0/bright.png": light,
        "train/class 0/dark.png": nearly_black,
        "external:test/class 0/bright.png": light,
        "external:train/class 0/dark.png": nearly_black,
    }


def test_images_are_decoded_with_given_levels(tmp_path: Path) -> None:
    """As external ones, and those of a finished run, are with the levels of the search."""
    save_deep_set(tmp_path, 12)
    manifest = scanned(tmp_path)
    levels = Levels(integers=(0, 8191))
    images = decode_images(manifest, ResizeSpec(24, 24), serial_map, levels=levels)
    assert images.levels == levels
    assert images.pixels.max() == 127


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_holds_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers decode with the limit of the process that asks them, whatever theirs was before."""
    manifest = scanned(save_images(tmp_path, count=12))
    Image.new("L", (1500, 1000)).save(tmp_path / "class 0" / "0.png")

    def elsewhere(megapixels: int) -> ParallelMap:
        def run(function: Any, how: Any, blocks: Iterable[Any]) -> Iterator[Any]:
            for block in blocks:
                with pixel_limit(megapixels):
                    yield function(how, block)

        return run

    for ours, theirs, expected in ((2, 1, 24), (1, 2, 23)):
        with pixel_limit(ours):
            decoded = decode_images(manifest, None, elsewhere(theirs))
        assert len(decoded) == expected
    (issue,) = decoded.issues
    assert (issue.image, issue.issue) == ("class 0/0.png", "unreadable")
    assert (
        issue.detail
        == "has too many pixels: 1,500,000, and 1,000,000 are the most (--max-megapixels)"
    )
