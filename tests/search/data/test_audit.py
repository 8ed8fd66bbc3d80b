from dataclasses import replace
from pathlib import Path

import numpy as np

from search.cluster.parallel import serial_map
from search.data.audit import audit_images, read_audit_csv, summarize, write_audit_csv
from search.data.decoding import DecodedImages, ResizeSpec, decode_images
from search.data.manifest import Issue, Manifest
from search.runs.summary import AuditCounts
from tests.fixtures.drawing import CHANGES, draw


def decode(counts: dict[str, int], grayscale: tuple[str, ...] = ()) -> DecodedImages:
    """Draw images of some classes; those of some classes have no colour."""
    drawn = [(name, seed) for name, n in counts.items() for seed in range(n)]
    images = [draw(100 * list(counts).index(name) + seed) for name, seed in drawn]
    manifest = Manifest(
        classes=tuple(counts),
        names=tuple(f"{name}/{seed:02}" for name, seed in drawn),
        labels=np.array([list(counts).index(name) for name, _ in drawn]),
        splits=(None,) * len(drawn),
        paths=None,
        images=np.stack(
            [
                np.asarray(CHANGES["grayscale"](image) if name in grayscale else image)
                for image, (name, _) in zip(images, drawn, strict=True)
            ]
        ),
    )
    return decode_images(manifest, ResizeSpec(8), serial_map)


def test_a_class_without_colour_and_an_imbalance_are_issues_of_the_whole_set() -> None:
    audit = audit_images(decode({"cat": 24, "dog": 4}, grayscale=("dog",)), None, flip=True)
    assert [issue for issue in audit.issues if not issue.image] == [
        Issue("", "grayscale class", "100% of 'dog' are grayscale, 0% of the others"),
        Issue("", "imbalance", "'cat' has 24 images, 'dog' 4: 6.0 times as many"),
    ]
    assert audit.count("grayscale") == 4
    assert summarize(audit) == (
        "4 grayscale among coloured, 100% of 'dog' are"
        " grayscale, 0% of the others, 'cat' has 24 images, 'dog' 4: 6.0 times as many"
    )
    assert audit.counts() == AuditCounts(
        groups=0,
        in_groups=0,
        external_near_duplicates=0,
        issues={"grayscale": 4, "grayscale class": 1, "imbalance": 1},
    )


def test_equal_arrays_are_exact_duplicates() -> None:
    images = decode({"cat": 3, "dog": 3})
    external = images.manifest.take(np.array([4]))
    audit = audit_images(images, decode_images(external, None, serial_map), flip=True)
    assert audit.external_near_duplicates.tolist() == [True]
    assert audit.issues == (
        Issue("external:dog/01", "external near-duplicate", "the same file", "dog/01", 1.0),
    )


def test_given_groups_in_several_official_splits_leave_training() -> None:
    images = decode({"cat": 4, "dog": 4})
    splits = ("train", "train", "test", "train", "train", "val", "train", "train")
    groups = ("p1", "p2", "p1", "", "p2", "p2", "", "p3")
    images = replace(images, manifest=replace(images.manifest, splits=splits, groups=groups))
    audit = audit_images(images, None, flip=True)
    assert [(issue.image, issue.detail) for issue in audit.issues] == [
        ("cat/00", "of group 'p1' that has test or validation images"),
        ("cat/01", "of group 'p2' that has test or validation images"),
        ("dog/00", "of group 'p2' that has test or validation images"),
    ]
    assert {issue.issue for issue in audit.issues} == {"excluded group"}
    assert audit.together.tolist() == [0, 1, 0, 3, 1, 1, 6, 7]
    assert audit.groups.tolist() == list(range(8))
    assert (audit.counts().given_groups, audit.counts().groups) == (2, 0)
    assert summarize(audit) == (
        "2 given groups kept together, 3 excluded from training by their groups"
    )


def test_a_group_reaches_over_near_duplicates() -> None:
    images = decode({"cat": 4, "dog": 4})
    manifest = images.manifest
    assert manifest.images is not None
    copied = manifest.images.copy()
    copied[1] = copied[0]
    splits = ("train", "train", "test", *("train",) * 5)
    manifest = replace(manifest, images=copied, splits=splits, groups=("p", "", "p", *[""] * 5))
    audit = audit_images(decode_images(manifest, ResizeSpec(8), serial_map), None, flip=True)
    assert audit.together.tolist() == [0, 0, 0, 3, 4, 5, 6, 7]
    assert [(issue.image, issue.issue, issue.detail) for issue in audit.issues] == [
        ("cat/00", "excluded group", "of group 'p' that has test or validation images"),
        (
            "cat/01",
            "excluded group",
            "a near-duplicate of one of a group that has test or validation images",
        ),
        ("cat/01", "exact duplicate", "the same file"),
    ]


def test_audit_csv_round_trips(tmp_path: Path) -> None:
    names = ('a, "b"/мяу.jpg', "c/1\n2.jpg", "c/\udcff.jpg", "NA", "nan", "None", "1e5", "007", "")
    issues = tuple(Issue(name, "blank", "it shows one colour") for name in names)
    issues += (Issue("1.0", "near-duplicate", "a changed copy", "00", 0.988),)
    write_audit_csv(tmp_path / "audit.csv", issues)
    assert read_audit_csv(tmp_path / "audit.csv") == issues
    header = (tmp_path / "audit.csv").read_bytes().splitlines()[0]
    assert header == b"image,issue,detail,duplicate_of,similarity"
    assert read_audit_csv(tmp_path / "none.csv") == ()


def test_an_audit_without_issues_is_a_header(tmp_path: Path) -> None:
    write_audit_csv(tmp_path / "audit.csv", ())
    assert read_audit_csv(tmp_path / "audit.csv") == ()
