"""A run in TensorBoard, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from playwright.sync_api import Page, expect

from search.tuning.study import SECONDS, best_epoch, load_study

expect.set_options(timeout=20_000)
pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
PARAMETERS = {"augment", "backbone", "dropout", "freeze_depth", "lr", "weight_decay"}
STATUS = "status: 1 complete, 2 pruned, 3 failed, 0 running"
METRICS = ("best validation accuracy", "best epoch", "seconds", STATUS)
PARTS = ("test", "out_of_fold", "external")
STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield the address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr)
            address = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
            yield address.rstrip("/")
        finally:
            server.terminate()
            try:
                # What it says of the signal must have a reader, or it may go on for ever.
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def address(digits_run: Path) -> Iterator[str]:
    with tensorboard(digits_run / "tensorboard") as address:
        yield address


def open_tab(page: Page, address: str, tab: str) -> None:
    page.goto(f"{address}/#{tab}")
    expect(page.get_by_role("tab", name="hparams").first).to_be_visible()


def session_groups(page: Page, address: str) -> list[dict[str, Any]]:
    """Return the trials as the HPARAMS tab gets them from its server."""
    url = f"{address}/data/plugin/hparams/session_groups"
    asked = {
        "startIndex": 0,
        "sliceSize": 1000,
        "allowedStatuses": STATUSES,
        "includeMetrics": True,
    }
    groups: list[dict[str, Any]] = page.request.post(url, data=json.dumps(asked)).json()[
        "sessionGroups"
    ]
    return groups


def rows(page: Page, run: str) -> Any:
    return page.get_by_text(re.compile(rf"^\s*\d{{4}}/{run}\s*$"))


def trials_of(run: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of a run that have begun."""
    study = load_study(run)
    assert study is not None
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]


def test_hparams_shows_each_trial(
    page: Page, complaints: list[str], address: str, digits_run: Path
) -> None:
    open_tab(page, address, "hparams")
    expect(rows(page, "digits")).to_have_count(4)
    for name in (*PARAMETERS, *METRICS):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.get_by_text("PARALLEL COORDINATES VIEW").click()
    expect(page.locator("tf-hparams-parallel-coords-plot path:visible").first).to_be_visible()
    assert page.locator("tf-hparams-parallel-coords-plot .foreground path").count() == 4
    page.get_by_text("SCATTER PLOT MATRIX VIEW").click()
    expect(page.locator("tf-hparams-scatter-plot-matrix-plot svg").first).to_be_visible()

    trials = {f"{trial.number:04d}/digits": trial for trial in trials_of(digits_run)}
    groups = {group["name"]: group for group in session_groups(page, address)}
    assert groups.keys() == trials.keys()
    runs = page.request.get(f"{address}/data/runs").json()
    assert set(runs) == {"overview", *(f"trials/{one.number}" for one in trials.values())}
    for name, trial in trials.items():
        assert groups[name]["hparams"] == trial.params
        shown = [metric["value"] for metric in groups[name]["metricValues"]]
        state = {TrialState.COMPLETE: 1, TrialState.PRUNED: 2}[trial.state]
        seconds = trial.user_attrs[SECONDS]
        expected = [best_epoch(trial).val_accuracy, best_epoch(trial).epoch, seconds, state]
        assert shown == pytest.approx(expected)
    assert complaints == []


@pytest.mark.long
def test_hparams_shows_each_trial_during_the_run(
    page: Page, digits_run: Path, tmp_path: Path
) -> None:
    """The run is stopped for a moment, so that no trial begins between two readings."""
    run = Path(shutil.copytree(digits_run, tmp_path / "again"))
    command = ["--resume", str(run), "--trials", "500", "--quiet"]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "search.run", *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as search,
        tensorboard(run / "tensorboard") as address,
    ):
        try:
            wait_until(lambda: len(trials_of(run)) > 5 or search.poll() is not None, 120)
            for _ in range(5):
                search.send_signal(signal.SIGSTOP)
                names = [f"{trial.number:04d}/" for trial in trials_of(run)]
                time.sleep(2.5)  # TensorBoard reads again every second
                groups = session_groups(page, address)
                if len(groups) == len(names):
                    break
                # It was stopped between the beginning of a trial and that of its board.
                search.send_signal(signal.SIGCONT)
                time.sleep(0.3)
            assert search.poll() is None
            assert sorted(group["name"][:5] for group in groups) == names
            assert all(group["hparams"].keys() == PARAMETERS for group in groups)
            assert all(len(group["metricValues"]) == len(METRICS) for group in groups)
            open_tab(page, address, "hparams")
            expect(rows(page, "(digits|again)")).to_have_count(len(names))
        finally:
            search.send_signal(signal.SIGCONT)
            search.send_signal(signal.SIGINT)
            search.wait(60)


def wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


def test_scalars_have_a_point_an_epoch_of_every_trial(
    page: Page, complaints: list[str], address: str, digits_run: Path
) -> None:
    open_tab(page, address, "timeseries")
    for group in ("accuracy", "loss", "macro_f1", "training"):
        expect(page.get_by_text(group, exact=True).first).to_be_attached()
    expect(page.get_by_text("accuracy/validation").first).to_be_visible()
    for trial in trials_of(digits_run):
        for tag in ("loss/train", "loss/validation", "accuracy/train", "accuracy/validation",
                    "macro_f1/train", "macro_f1/validation", "training/learning_rate",
                    "training/images_per_second"):  # fmt: skip
            asked = f"{address}/data/plugin/scalars/scalars?run=trials/{trial.number}&tag={tag}"
            points = page.request.get(asked).json()
            assert [step for _, step, _ in points] == sorted(trial.intermediate_values)
    assert complaints == []


def test_images_show_augmentation_confusion_matrices_top_losses_and_predictions(
    page: Page, complaints: list[str], address: str
) -> None:
    tags = page.request.get(f"{address}/data/plugin/images/tags").json()["overview"]
    assert len([tag for tag in tags if tag.startswith("augmentation/strength_")]) == 3
    assert tags.keys() > {
        *(f"confusion/{part}" for part in PARTS),
        *(f"top_losses/{part}" for part in PARTS),
        "predictions/external",
    }
    open_tab(page, address, "images")
    for tag in ("augmentation/strength_0.60", "confusion/test"):
        card = page.locator("tf-image-loader").filter(has_text=tag).first
        card.scroll_into_view_if_needed()
        image = card.locator("img").first
        expect(image).to_be_visible()
        page.wait_for_function("one => one.naturalWidth > 300", arg=image.element_handle())
    assert complaints == []


def test_every_class_has_its_precision_recall_curve(
    page: Page, complaints: list[str], address: str
) -> None:
    tags = page.request.get(f"{address}/data/plugin/pr_curves/tags").json()["overview"]
    assert tags.keys() == {f"pr/{part}/{digit}" for part in PARTS for digit in range(10)}
    open_tab(page, address, "pr_curves")
    expect(page.locator("tf-pr-curve-card").first).to_be_visible()
    assert complaints == []


def test_the_projector_shows_features_of_the_test_set_coloured_by_class(
    page: Page, complaints: list[str], address: str
) -> None:
    open_tab(page, address, "projector")
    projector = page.frame_locator("iframe").frame_locator("iframe")
    expect(projector.get_by_text("Points: 60")).to_be_visible()
    sprite = f"{address}/data/plugin/projector/sprite_image?run=overview&name=test_features:00000"
    assert page.request.get(sprite).headers["content-type"] == "image/png"
    panel = projector.locator("vz-projector-data-panel")
    panel.locator("paper-dropdown-menu[label='Color by']").click()
    panel.locator("paper-item:visible").filter(has_text="class").first.click()
    expect(panel.locator("vz-projector-legend").get_by_text("class 7")).to_be_visible()
    assert complaints == []


def test_text_shows_configuration_and_environment(
    page: Page, complaints: list[str], address: str
) -> None:
    open_tab(page, address, "text")
    expect(page.get_by_text("tag: configuration")).to_be_visible()
    expect(page.get_by_text("tag: environment")).to_be_attached()
    expect(page.get_by_text("searched · lr")).to_be_visible()
    assert complaints == []


def test_all_runs_are_shown_side_by_side_and_trial_files_are_small(
    page: Page, digits_run: Path
) -> None:
    with tensorboard(digits_run.parent) as address:
        open_tab(page, address, "timeseries")
        expect(page.get_by_text("digits/tensorboard/trials/3").first).to_be_attached()
    files = list(digits_run.glob("tensorboard/trials/*/events*"))
    assert len(files) == 4
    assert max(path.stat().st_size for path in files) < 20_000
