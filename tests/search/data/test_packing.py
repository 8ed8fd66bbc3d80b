import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from search.data import packing
from search.data.class_folders import DataError
from search.data.manifest import Manifest, check_counts, scan
from search.data.packing import DecodedImages, pack
from spaces.sources import caltech101, digits, folder
from trainables.images import as_tensor, read_image, to_square

# --- pack --------------------------------------------------------------------------------------


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


def quiet(done: int, total: int) -> None:
    pass


def table_of(decoded: DecodedImages) -> np.ndarray:
    table = ray.get(decoded.table)
    assert table.dtype == np.uint8
    assert table.flags.c_contiguous
    return table


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("block_size", [None, 1, 5, 100])
def test_pack_decodes_every_image_in_order(tmp_path: Path, block_size: int | None) -> None:
    manifest = scanned(save_images(tmp_path))
    decoded = pack(manifest, 16, quiet, image_size=13, block_size=block_size)
    table = table_of(decoded)
    assert table.shape == (12, 16, 16, 3)
    assert decoded.kept.tolist() == list(range(12))
    assert decoded.problems == ()
    assert manifest.paths is not None
    for row, path in enumerate(manifest.paths):
        np.testing.assert_array_equal(table[row], to_square(read_image(path), 16, 13))


@pytest.mark.usefixtures("ray_session")
def test_digests_tell_contents_whatever_the_times_of_files(tmp_path: Path) -> None:
    root = save_images(tmp_path)
    (root / "class 0" / "1.png").write_bytes(b"no image")
    manifest = scanned(root)
    began = pack(manifest, 16, quiet, block_size=5)
    assert len(set(began.digests)) == len(began.kept) == 11
    changed, copied = root / "class 0" / "2.png", root / "class 1" / "3.png"
    before = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")  # of the same size
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(copied, (1, 1))
    now = pack(manifest, 16, quiet, block_size=3, send_files=True)
    names = [manifest.names[i] for i in began.kept]
    pairs = zip(names, began.digests, now.digests, strict=True)
    assert [name for name, one, other in pairs if one != other] == ["class 0/2.png"]


@pytest.mark.usefixtures("ray_session")
def test_files_that_other_machines_do_not_have_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = scanned(save_images(tmp_path))
    here = table_of(pack(manifest, 16, quiet, block_size=5))
    decode = packing._decode_files

    def decode_elsewhere(files: list[Path | bytes], *sizes: Any) -> Any:
        missing = [file.with_name("not here") if isinstance(file, Path) else file for file in files]
        return decode(missing, *sizes)

    monkeypatch.setattr(packing, "_decode_files", decode_elsewhere)
    assert len(pack(manifest, 16, quiet, block_size=5).problems) == 12
    sent = pack(manifest, 16, quiet, block_size=5, send_files=True)
    np.testing.assert_array_equal(table_of(sent), here)
    (tmp_path / "class 0" / "0.png").unlink()
    (problem,) = pack(manifest, 16, quiet, block_size=5, send_files=True).problems
    assert problem.detail == "there is no such file"


@pytest.mark.usefixtures("ray_session")
def test_pack_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(scanned(save_images(tmp_path)), 8, lambda *at: seen.append(at), block_size=5)
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    assert len(seen) == 4
    assert sorted(seen) == seen


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("block_size", [None, 2])
def test_unreadable_files_are_named_and_left_out(tmp_path: Path, block_size: int | None) -> None:
    save_images(tmp_path)
    good = (tmp_path / "class 0" / "3.png").read_bytes()
    (tmp_path / "class 0" / "0.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "class 0" / "9 größe.jpg").touch()
    (tmp_path / "class 1" / "2a.jpg").write_text("not an image")
    (tmp_path / "class 1" / "notes.txt").write_text("by its name no image")
    manifest = scanned(tmp_path)
    decoded = pack(manifest, 16, quiet, block_size=block_size)
    assert [(problem.name, problem.kind) for problem in decoded.problems] == [
        ("class 0/0.png", "unreadable"),
        ("class 0/9 größe.jpg", "unreadable"),
        ("class 1/2a.jpg", "unreadable"),
        ("class 1/notes.txt", "not an image"),
    ]
    assert [problem.detail for problem in decoded.problems[1:3]] == [
        "is empty (zero bytes)",
        "is not an image, or of a format that cannot be read",
    ]
    table = table_of(decoded)
    assert table.shape == (11, 16, 16, 3)
    assert manifest.paths is not None
    assert [manifest.names[i] for i in decoded.kept] == [
        *(f"class 0/{i}.png" for i in (1, 2, 3, 4, 5)),
        *(f"class 1/{i}.png" for i in range(6)),
    ]
    for row, i in enumerate(decoded.kept):
        np.testing.assert_array_equal(table[row], to_square(read_image(manifest.paths[i]), 16))
    with pytest.raises(DataError, match="but 'class 0' has 5"):
        check_counts(manifest, decoded.kept, folds=5)


@pytest.mark.usefixtures("ray_session")
def test_nothing_readable_is_told_by_the_check_of_counts(tmp_path: Path) -> None:
    save_images(tmp_path, count=3)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    manifest = scanned(tmp_path)
    decoded = pack(manifest, 16, quiet)
    assert table_of(decoded).shape == (0, 16, 16, 3)
    assert len(decoded.problems) == 6
    with pytest.raises(DataError, match="'class 0' has 0, 'class 1' has 0"):
        check_counts(manifest, decoded.kept, folds=2)


@pytest.mark.usefixtures("ray_session")
def test_pack_takes_every_format(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((30, 40, 3), (200, 100, 50), np.uint8))
    grey = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
    for c in ("a", "b"):
        at = tmp_path / c / "tief verschachtelt"
        at.mkdir(parents=True)
        for suffix in ("jpg", "PNG", "bmp", "gif", "webp", "tiff", "mpo"):
            image.save(at / f"image of {suffix}.{suffix}")
        image.convert("L").save(at / "grey.jpg")
        image.convert("P").save(at / "palette.png")
        image.convert("RGBA").save(at / "alpha.png")
        image.convert("CMYK").save(at / "cmyk.jpg")
        grey.save(at / "16 bit.png")
    decoded = pack(scanned(tmp_path), 32, quiet)
    assert decoded.problems == ()
    assert table_of(decoded).shape == (24, 32, 32, 3)
    flat = table_of(decoded).reshape(24, -1)
    assert (flat.max(axis=1) > 100).all()


@pytest.mark.usefixtures("ray_session")
def test_pack_resizes_arrays(tmp_path: Path) -> None:
    manifest = scan(digits(), None, tmp_path, folds=2, limit=300, seed=0)
    decoded = pack(manifest, 18, quiet, image_size=16, block_size=70)
    table = table_of(decoded)
    assert table.shape == (300, 18, 18, 3)
    assert decoded.problems == ()
    assert manifest.images is not None
    for row in (0, 69, 70, 299):
        image = Image.fromarray(manifest.images[row]).convert("RGB")
        np.testing.assert_array_equal(table[row], to_square(image, 18, 16))


@pytest.mark.usefixtures("ray_session")
def test_pack_takes_colour_arrays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    names = tuple("abcde")
    manifest = Manifest(("x", "y"), names, np.zeros(5, np.int64), (None,) * 5, None, images)
    table = table_of(pack(manifest, 7, quiet, image_size=7))
    np.testing.assert_array_equal(table, images[:, 1:8])


@pytest.mark.usefixtures("ray_session")
def test_the_table_is_read_without_a_copy(tmp_path: Path) -> None:
    decoded = pack(scanned(save_images(tmp_path)), 64, quiet)
    one, two = ray.get(decoded.table), ray.get(decoded.table)
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
    for manifest in (scanned(save_images(tmp_path)), scan(digits(), None, tmp_path, 2, 99, 0)):
        before = references()
        decoded = pack(manifest, 16, quiet, block_size=5)
        expected = {decoded.table.hex().encode()}
        until = time.monotonic() + 20  # Ray counts references a moment later
        while references() - before != expected and time.monotonic() < until:
            time.sleep(0.1)
        assert references() - before == expected


def test_decoding_imports_no_torch() -> None:
    code = "import sys, search.data.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("ray_session")
def test_real_images_of_all_kinds(shared_data: Path, tmp_path: Path) -> None:
    manifest = scan(folder(), shared_data / "tools", tmp_path, folds=5, limit=None, seed=0)
    decoded = pack(manifest, 64, quiet)
    assert decoded.problems == ()
    assert len(decoded.kept) == len(manifest.names) == 164


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_packing_caltech_takes_seconds(shared_data: Path, tmp_path: Path) -> None:
    six = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    manifest = scan(caltech101(six), shared_data / "caltech101", tmp_path, 5, None, 0)
    start = time.perf_counter()
    decoded = pack(manifest, 256, quiet, image_size=224)
    seconds = time.perf_counter() - start
    assert len(decoded.kept) == 988
    assert seconds < 15  # 1.0 to 1.5 s on two free cores
