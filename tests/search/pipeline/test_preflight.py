"""Checks of a request before anything costly starts."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from search.data.image_files import DataError
from search.data.scan import find_images
from search.deployment.run_images import read_split
from search.pipeline.preflight import RunPlan, check_fit, prepare_run
from search.pipeline.request import RequestError, load_requested_space, parse_request
from search.runs.run_folder import RunFolder
from search.runs.summary import ProbeScore, SearchCounts
from search.runs.validation import FolderError
from search.runs.warm_start import WARM_START_FILE
from search.tuning.study import open_storage, open_study
from spaces.errors import SourceError
from spaces.portfolio import PORTFOLIO
from tests.fixtures.handmade_run import make_run
from trainables.models.ensemble import ModelCard
from trainables.pretrained.weights import WeightsError

OWN_SPACE = """
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(source=folder(), params={"backbone": "cnn"}, image_size=48)
"""


def fit(tmp_path: Path, size: int, *arguments: str, mode: str = "RGB") -> tuple[str, ...]:
    """Check the fit of a space to ten images of one size; return the warnings."""
    for index in range(10):
        path = tmp_path / "photos" / f"class {index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (2 * size, size)).save(path)
    (tmp_path / "photos" / "class 0" / "0.png").write_bytes(b"no image")
    (tmp_path / "mine.py").write_text(OWN_SPACE)
    request = parse_request(["--data", str(tmp_path / "photos"), *arguments])
    space = load_requested_space(request)
    manifest = find_images(space.source, request.data, tmp_path)
    return check_fit(request, space, manifest)


def test_a_small_space_of_the_package_refuses_photos(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        fit(tmp_path, 400, "--space", "digits")
    assert str(caught.value) == (
        f"the space digits shows 32 × 32 pixels to a network, but the images in {tmp_path}/photos"
        " are much larger (typically 400 pixels on the shorter side), and little of them would be"
        " left: omit --space, or use --space photos, or give --image-size, such as 224"
    )
    with pytest.raises(RequestError, match="the space fashion_mnist shows 28 × 28 pixels"):
        fit(tmp_path, 57, "--space", "fashion_mnist", mode="L")


@pytest.mark.parametrize(
    ("size", "mode", "words"),
    [
        (400, "RGB", ""),
        (4000, "RGB", "--space tools"),
        (64, "L", "--space digits"),
        (400, "L", "--space digits --image-size 64"),
        (28, "RGB", "--space fashion_mnist"),
        (400, "RGB", "--space digits --image-size 224 --backbones resnet18"),
        (400, "RGB", "--backbones cnn"),
        (90, "RGB", "--space mine.py"),
        (400, "RGB", "--space mine.py --image-size 32"),
    ],
)
def test_other_spaces_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, size, *words.split(), mode=mode) == ()


def test_what_a_user_decided_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (warning,) = fit(tmp_path, 100, "--space", "mine.py")
    assert warning.startswith("the space mine.py shows 48 × 48 pixels to a network, but")
    assert warning.endswith("; give --image-size, or change image_size in the space")
    for words in ("--space digits --image-size 224", "--space spaces/digits.py --image-size 32"):
        (warning,) = fit(tmp_path, 100, *words.split())
        assert warning.startswith("the space digits has networks for small grayscale images only")


def test_a_space_with_images_of_its_own_fits_them(tmp_path: Path) -> None:
    request = parse_request([])
    space = load_requested_space(request)
    manifest = find_images(space.source, None, tmp_path)
    assert check_fit(request, space, manifest) == ()


def plan_of(tmp_path: Path, *arguments: str) -> RunPlan:
    """Prepare a run of ten images, with a folder of weights that holds what `weights/` does."""
    for index in range(20):
        path = tmp_path / "photos" / f"class {index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    (tmp_path / "weights").mkdir(exist_ok=True)
    words = ["--data", str(tmp_path / "photos"), "--weights", str(tmp_path / "weights")]
    where = ["--out", str(tmp_path / "results"), "--name", "run"]
    return prepare_run(parse_request([*words, *where, *arguments]))


@pytest.mark.parametrize("arguments", [["--backbones", "auto"], []])
def test_a_portfolio_goes_on_with_the_weights_that_there_are(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "weights").mkdir()
    for name in ("squeezenet1_0.pth", "tf_efficientnet_lite2.safetensors"):
        (tmp_path / "weights" / name).touch()
    plan = plan_of(tmp_path, *arguments)
    found = {"timm/tf_efficientnet_lite2", "squeezenet1_0"}
    assert set(plan.space.backbones) == plan.weights.keys() == found
    assert plan.space.first_trials[0]["backbone"] in found
    assert plan.available.unavailable.keys() == PORTFOLIO.keys() - found
    assert "no mobilenet_v2.pth in it" in plan.available.unavailable["mobilenet_v2"]()


def test_a_portfolio_without_any_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="mobilenet_v2: looked in"):
        plan_of(tmp_path, "--backbones", "auto")


def test_weights_of_backbones_that_are_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "squeezenet1_0.pth").touch()
    with pytest.raises(WeightsError, match="resnet18: looked in"):
        plan_of(tmp_path, "--backbones", "squeezenet1_0,resnet18")


def test_a_resumed_run_has_the_backbones_that_stayed(tmp_path: Path) -> None:
    """Also where those that left have no weights any more, and others have."""
    (tmp_path / "weights").mkdir()
    for name in ("squeezenet1_0", "mobilenet_v2", "resnet50"):
        (tmp_path / "weights" / f"{name}.pth").touch()
    folder = plan_of(tmp_path, "--backbones", "auto").folder
    scores = {
        "squeezenet1_0": ProbeScore(accuracy=0.9),
        "resnet50": ProbeScore(accuracy=0.85),
        "mobilenet_v2": ProbeScore(accuracy=0.5, excluded="behind"),
        "timm/tf_efficientnet_lite0": ProbeScore(excluded="no weights"),
    }
    folder.write_summary(replace(folder.summary, linear_probe=scores))
    (tmp_path / "weights" / "mobilenet_v2.pth").unlink()
    (tmp_path / "weights" / "vgg16_bn.pth").touch()
    again = prepare_run(parse_request(["--resume", str(folder.path)]))
    assert again.space.backbones == ("squeezenet1_0", "resnet50")
    assert again.available.unavailable == {}
    (tmp_path / "weights" / "resnet50.pth").unlink()
    with pytest.raises(WeightsError, match="resnet50: looked in"):
        prepare_run(parse_request(["--resume", str(folder.path)]))


def test_a_run_begins_and_is_resumed_with_what_the_command_line_changes(tmp_path: Path) -> None:
    words = "--classes 3,1 --image-size 48 --set lr=1 --set class_weights=true --batch-size 16"
    begun = prepare_run(parse_request([*words.split(), "--out", str(tmp_path), "--name", "run"]))
    resumed = prepare_run(parse_request(["--resume", str(tmp_path / "run"), "--trials", "20"]))
    for plan in (begun, resumed):
        assert plan.manifest.classes == ("3", "1")
        assert plan.external is not None
        assert (plan.external.classes, set(plan.external.labels)) == (("3", "1"), {0, 1})
        assert (plan.space.image_size, plan.space.cache_size) == (48, 48)
        constants = {"lr": 1.0, "class_weights": True, "batch_size": 16, "scheduler": "cosine"}
        assert plan.space.constants == constants
        assert {type(plan.space.constants[name]) for name in ("lr", "class_weights")} == {
            *(float, bool)
        }
        assert plan.space.first_trials[0]["lr"] == 1.0
    assert (begun.space.trials, resumed.space.trials) == (12, 20)


def test_a_finished_run_with_an_open_end_gets_more_trials_only_if_it_is_given_time(
    tmp_path: Path,
) -> None:
    words = ["--time-budget", "3m", "--out", str(tmp_path), "--name", "run"]
    begun = prepare_run(parse_request(words))
    assert begun.request.has_open_end
    folder = begun.folder

    def resume(*more: str) -> RunPlan:
        plan = prepare_run(parse_request(["--resume", str(folder.path), *more]))
        plan.accept()
        return plan

    assert resume().request.has_open_end, "nothing has ended yet"
    open_study(open_storage(folder.path))
    counts = SearchCounts(trials=7, complete=5, pruned=2, failed=0, unfinished=1, seconds=1.0)
    folder.write_summary(replace(folder.summary, search=counts))
    assert resume().request.has_open_end, "it was interrupted"
    tested = RunFolder.open(make_run(tmp_path / "tested", n_trials=2)).summary.test
    folder.write_summary(replace(folder.summary, test=tested))
    for _ in range(2):
        again = resume()
        assert not again.request.has_open_end
        assert again.space.trials == 7
    assert resume("--time-budget", "5m").request.has_open_end
    more = resume("--trials", "9")
    assert (more.request.has_open_end, more.space.trials) == (False, 9)


def test_earlier_runs_begin_a_run_as_they_begin_a_resumed_one(tmp_path: Path) -> None:
    """What they have is copied: the earlier run may be gone when the new one is resumed."""
    words = ["--space", "digits", "--out", str(tmp_path), "--limit", "60"]
    with pytest.raises(FolderError, match="is no run"):
        prepare_run(parse_request([*words, "--warm-start", str(tmp_path / "gone")]))
    empty = make_run(tmp_path / "empty", n_trials=0)
    with pytest.raises(FolderError, match="empty has no trial to begin with: give a run that has"):
        prepare_run(parse_request([*words, "--warm-start", str(empty)]))
    earlier = make_run(tmp_path / "earlier")
    begun = prepare_run(parse_request([*words, "--name", "new", "--warm-start", str(earlier)]))
    assert len(begun.warm_start) == 3
    assert all({"backbone", "lr", "freeze_depth"} <= set(one) for one in begun.warm_start)
    shutil.rmtree(earlier)
    resumed = prepare_run(parse_request(["--resume", str(tmp_path / "new")]))
    assert resumed.warm_start == begun.warm_start
    (tmp_path / "new" / WARM_START_FILE).write_text('[{"lr": []}]')
    with pytest.raises(FolderError, match=r"warm_start.json is damaged: 0.lr"):
        prepare_run(parse_request(["--resume", str(tmp_path / "new")]))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of images and a table of their labels, in a folder with a space."""
    monkeypatch.setenv("CLASSIFIER_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN_SPACE)
    lines = ["id;label;patient", *(f"{i};{'ab'[i % 2]};p{i // 4}" for i in range(24))]
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        archive.writestr("shop/labels.csv", "\n".join(lines))
        for i in range(24):
            with archive.open(f"shop/images/{i}.png", "w") as file:
                Image.new("RGB", (60, 50), (10 * i, 0, 99)).save(file, "PNG")
    return tmp_path / "shop.zip"


def test_a_table_and_groups_in_an_archive(shop: Path, tmp_path: Path) -> None:
    words = "--data shop.zip --labels labels.csv --group-column patient --space mine.py --folds 3"
    plan = prepare_run(parse_request([*words.split(), "--name", "run"]))
    assert plan.manifest.classes == ("a", "b")
    assert plan.manifest.groups[:3] == ("p0", "p0", "p2")  # of images 0, 1 and 10
    run = tmp_path / "results" / "run"
    again = prepare_run(parse_request(["--resume", str(run)]))
    assert again.manifest.groups == plan.manifest.groups
    assert again.request.data == shop
    with pytest.raises(RequestError, match="--group-by of a run cannot change"):
        prepare_run(parse_request(["--resume", str(run), "--group-by", "x"]))
    with pytest.raises(DataError, match=r"at least 8 groups of images \(7 folds"):
        prepare_run(parse_request([*words.split()[:-1], "7"]))

    # A later command finds the images again.
    names = plan.manifest.names
    labels = plan.manifest.labels.tolist()
    rows = [f"{name},{'ab'[i]},test,0,x" for name, i in zip(names, labels, strict=True)]
    (run / "split.csv").write_text("\n".join(["image,label,split,group,digest", *rows, ""]))
    card = SimpleNamespace(
        classes=("a", "b"), levels=None, to_square=lambda image: np.asarray(image)
    )
    found = read_split(run, cast(ModelCard, card), "test", None)
    assert found.names == names
    assert found.n_missing == 0


def test_external_images_in_an_archive(shop: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("out/a/1.jpg", b"")
    words = "--data shop.zip --labels labels.csv --space mine.py --name x --external out.zip"
    plan = prepare_run(parse_request(["--folds", "3", *words.split()]))
    assert plan.external is not None
    assert plan.external.labels.tolist() == [0]
    with pytest.raises(SourceError, match="--external must name a folder, but there is no none"):
        prepare_run(parse_request([*words.split()[:-1], "none", "--name", "y", "--folds", "3"]))


def test_a_resumed_run_keeps_the_pixel_limit(tmp_path: Path) -> None:
    words = ["--max-megapixels", "300", "--out", str(tmp_path), "--name", "run"]
    assert prepare_run(parse_request(words)).request.max_megapixels == 300
    resumed = ["--resume", str(tmp_path / "run")]
    assert prepare_run(parse_request(resumed)).request.max_megapixels == 300
    with pytest.raises(RequestError, match="--max-megapixels of a run cannot change: it began wi"):
        prepare_run(parse_request([*resumed, "--max-megapixels", "200"]))
