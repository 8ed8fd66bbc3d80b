"""The audit command from end to end, on images that the tests draw."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.audit import main
from search.cluster.parallel import thread_map
from search.data.audit import audit_images, read_audit_csv
from search.data.decoding import decode_images
from search.data.exclusion import read_exclusion
from search.data.scan import find_images
from search.data.splits import EXCLUDED, split
from spaces.sources import folder
from tests.fixtures.drawing import CHANGES, draw, save
from trainables.grouped_kfold import grouped_folds


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """train/ and test/ of two classes; copies across splits, classes and the external set."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        part, name = ("train", "test")[seed >= 16], ("cat", "dog")[seed % 2]
        save(draw(seed), root / "in" / part / name / f"{seed:02}.png")
    at = root / "in" / "train"
    shutil.copy(at / "cat" / "00.png", at / "cat" / "same.png")
    save(CHANGES["cropped"](draw(2)), at / "cat" / "cropped.jpg")
    save(CHANGES["brightened"](draw(4)), at / "dog" / "was a cat.png")
    save(CHANGES["turned left"](draw(3)), at / "dog" / "turned.png")
    save(CHANGES["mirrored"](draw(17)), at / "dog" / "leaked.png")
    save(draw(50).point(lambda value: 9), at / "dog" / "blank.png")
    save(CHANGES["grayscale"](draw(51)), at / "dog" / "grayscale.png")
    save(draw(52, 600, 60), at / "dog" / "long.png")
    save(draw(53).resize((24, 24)), at / "cat" / "tiny.png")
    (at / "cat" / "torn.png").write_bytes((at / "cat" / "00.png").read_bytes()[:99])
    save(CHANGES["re-encoded"](draw(6)), root / "out" / "cat" / "taken.jpg")
    save(draw(60), root / "out" / "dog" / "new.jpg")
    return root


def test_classes_of_too_few_images_are_named(tmp_path, capsys):
    for seed in range(12):
        save(draw(seed), tmp_path / "in" / ("cat" if seed < 9 else "dog") / f"{seed}.png")
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "audit.csv")]) == 0
    assert (
        "warning: 2 classes have fewer than 10 images: 'dog' 3, 'cat' 9; recall, precision and F1"
        " of such a class say little; take more images of it\n" in capsys.readouterr().out
    )


def test_the_command_finds_all_planted_issues(photos, tmp_path, capsys):
    out = tmp_path / "audit.csv"
    code = main([str(photos / "in"), "--external", str(photos / "out"), "--out", str(out)])
    assert code == 0
    found = {(one.issue, one.image, one.duplicate_of) for one in read_audit_csv(out)}
    assert found == {
        ("conflict", "train/cat/04.png", "train/dog/was a cat.png"),
        ("conflict", "train/dog/was a cat.png", "train/cat/04.png"),
        ("excluded", "train/dog/leaked.png", "test/dog/17.png"),
        ("external near-duplicate", "external:cat/taken.jpg", "train/cat/06.png"),
        ("exact duplicate", "train/cat/same.png", "train/cat/00.png"),
        ("near-duplicate", "train/cat/cropped.jpg", "train/cat/02.png"),
        ("near-duplicate", "train/dog/turned.png", "train/dog/03.png"),
        ("unreadable", "train/cat/torn.png", ""),
        ("blank", "train/dog/blank.png", ""),
        ("odd size", "train/cat/tiny.png", ""),
        ("odd shape", "train/dog/long.png", ""),
        ("grayscale", "train/dog/grayscale.png", ""),
        ("grayscale", "train/dog/blank.png", ""),
    }
    shown = capsys.readouterr().out
    assert "5 groups of near-duplicates kept together, 2 images whose near-duplicates" in shown
    assert "1 excluded from training, 1 external images not evaluated, 1 unreadable" in shown
    assert "not seen: copies that were turned by other angles" in shown


def test_listed_images_can_be_excluded(photos, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    external = ["--external", str(photos / "out")]
    assert main([str(photos / "in"), *external, "--out", str(first)]) == 0
    more = ["--exclude", str(first), "--out", str(second)]
    assert main([str(photos / "in"), *external, *more]) == 0
    assert read_audit_csv(first)
    assert read_audit_csv(second) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "--data must name a folder, but there is no"),
        (["{}/in", "--external", "{}/gone"], "--external must name a folder"),
        (["{}/in", "--exclude", "{}/gone.csv"], "--exclude must name a file"),
        (["{}/in", "--out", "{}/gone/audit.csv"], "--out must lie in a folder that exists"),
    ],
)
def test_mistakes_are_reported(photos, capsys, arguments, message):
    assert main([argument.format(photos) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown


def test_no_planted_copy_is_split_from_its_original_in_a_thousand_random_cases(tmp_path):
    """Images on disk, found and grouped; random classes, official splits, fractions and folds."""
    rng = np.random.default_rng(0)
    planted: dict[str, int] = {}
    for seed in range(60):
        for copy, change in enumerate(["", *rng.choice(list(CHANGES), rng.integers(0, 3), False)]):
            image = CHANGES[change](draw(seed)) if change else draw(seed)
            path = tmp_path / ("cat", "dog")[seed % 2] / f"{rng.integers(10**9)}-{copy}.png"
            save(image, path)
            planted[path.relative_to(tmp_path).as_posix()] = seed
    found = find_images(folder(), tmp_path, tmp_path)
    images = decode_images(found, None, thread_map)
    groups = audit_images(images, None, flip=True).groups
    origin = np.array([planted[name] for name in found.names])
    n_copies = len(origin) - 60
    assert n_copies > 50
    for case in range(1000):
        n_classes, folds = int(rng.integers(1, 4)), int(rng.integers(2, 4))
        official = [None, None, "test", "val"][: rng.choice([1, 3, 4])]
        manifest = replace(
            found,
            classes=tuple("abc"[:n_classes]),
            labels=rng.integers(0, n_classes, 60)[origin],
            splits=tuple(official[i] for i in rng.integers(0, len(official), len(origin))),
        )
        parts = split(manifest, images.indices, *rng.uniform(0.1, 0.3, 2), case, folds, groups)
        place = parts.astype("<U9")
        rows = np.flatnonzero(np.isin(parts, ("train", "val")))
        fold_rows = grouped_folds(manifest.labels[rows], groups[rows], folds, case)
        for fold, positions in enumerate(fold_rows):
            place[rows[positions]] = [f"{part} {fold}" for part in parts[rows[positions]]]
        used = parts != EXCLUDED
        places = {(one, at) for one, at in zip(origin[used], place[used], strict=True)}
        assert len(places) == len(set(origin[used].tolist()))


def test_the_real_near_duplicates_of_caltech_are_found(shared_data):
    root = shared_data / "caltech101" / "101_ObjectCategories"
    manifest = find_images(folder(("ketch", "watch")), root, root)
    audit = audit_images(decode_images(manifest, None, thread_map), None, flip=True)
    pairs = {(one.image, one.duplicate_of) for one in audit.issues if one.duplicate_of}
    assert pairs >= {
        ("ketch/image_0041.jpg", "ketch/image_0035.jpg"),
        ("watch/image_0211.jpg", "watch/image_0173.jpg"),
        ("watch/image_0212.jpg", "watch/image_0172.jpg"),
        ("watch/image_0160.jpg", "watch/image_0125.jpg"),
    }
    assert len(pairs) <= 5


def test_names_in_an_audit_are_read_as_exclusions(photos, tmp_path):
    out = tmp_path / "audit.csv"
    main([str(photos / "in"), "--external", str(photos / "out"), "--out", str(out)])
    assert "external:cat/taken.jpg" in read_exclusion(out).names


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_names_the_option_that_reads_it(tmp_path, capsys):
    for seed in range(12):
        save(draw(seed), tmp_path / "in" / ("cat", "dog")[seed % 2] / f"{seed}.png")
    save(draw(12, 1500, 1000), tmp_path / "in" / "cat" / "large.png")
    out = tmp_path / "audit.csv"
    for limit, expected in ((1, ["cat/large.png"]), (2, [])):
        assert main([str(tmp_path / "in"), "--out", str(out), f"--max-megapixels={limit}"]) == 0
        unreadable = [one for one in read_audit_csv(out) if one.issue == "unreadable"]
        assert [one.image for one in unreadable] == expected
        assert all("are the most (--max-megapixels)" in one.detail for one in unreadable)
