import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.reporting.terminal import show_result
from search.runs.run_folder import RunFolder

CONFIG = {"backbone": "cnn", "lr": 0.00123456, "freeze_depth": 2, "mixup": 0.0}
SUMMARY: dict[str, Any] = {
    "settings": {"searched": {"backbone": "", "lr": "", "freeze_depth": ""}},
    "search": {"trials": 12, "complete": 5, "pruned": 6, "failed": 1},
    "stages": {"search": 200.0, "folds": 50.0},
    "test": {"accuracy": 0.98765, "accuracy_ci95": (0.9612, 0.9987), "n": 359},
    "kfold": {"folds": 5, "accuracy_mean": 0.9811, "accuracy_std": 0.0042},
    "best": {
        "trial": 7,
        "name": "trial 7, 8 epochs",
        "val_accuracy": 0.9912,
        "config": CONFIG,
    },
}


def shown(path: Path, width: int = 80, **more: Any) -> list[str]:
    """Return the lines that close a run."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    for section, values in {**SUMMARY, **more}.items():
        folder.note(section, values)
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_result(folder, console)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_accuracies_facts_files_and_the_next_commands(tmp_path: Path) -> None:
    path = tmp_path / "run-1"
    lines = shown(path)
    for line in (
        "accuracy 95 % interval images",
        "held out 0.9877 0.9612 to 0.9987 359",
        "5 folds 0.9811 ± 0.0042 (sd)",
        "in the search 0.9912",
        "winner trial 7, 8 epochs: backbone cnn, lr 0.00123, freeze_depth 2",
        "search 12 trials: 5 run in full, 6 stopped early, 1 failed; 4 min 10 s in all",
        f"report {path}/report.html",
        f"model {path}/model.pt",
        "go on with:",
        f"python -m search.predict {path} IMAGE…",
        f"python -m search.serve {path}",
        f"python -m search.report {path}",
        f"tensorboard --logdir {path}/tensorboard",
    ):
        assert line in lines
    assert not any("elsewhere" in line for line in lines)


def test_a_linear_probe_has_no_parameters(tmp_path: Path) -> None:
    best = {**SUMMARY["best"], "trial": None, "name": "linear probe of cnn"}
    assert "winner linear probe of cnn" in shown(tmp_path, best=best)


@pytest.mark.parametrize(
    ("external", "line"),
    [
        (
            {"n": 40, "n_labelled": 38, "accuracy": 0.975, "accuracy_ci95": (0.871, 0.9956)},
            "from elsewhere 0.9750 0.8710 to 0.9956 38",
        ),
        ({"n": 40, "accuracy": None}, "elsewhere 40 images predicted"),
    ],
)
def test_images_from_elsewhere(tmp_path: Path, external: dict[str, Any], line: str) -> None:
    assert line in shown(tmp_path, external=external)


def test_what_the_numbers_are_worth(tmp_path: Path) -> None:
    lines = shown(tmp_path, label_issues={"n": 3, "share": 0.01, "pairs": []})
    assert f"labels 3 labels look wrong: see {tmp_path}/folds/label_issues.csv" in lines


@pytest.mark.parametrize("width", [80, 30])
def test_a_path_can_be_copied_whole(tmp_path: Path, width: int) -> None:
    """However long it is, and whatever characters it has."""
    path = tmp_path / "my photos [old]" / ("deep " * 20).strip() / ":smile:"
    lines = shown(path, width)
    assert f"report {path}/report.html" in lines
    assert f"python -m search.predict '{path}' IMAGE…" in lines
    assert f"tensorboard --logdir '{path}/tensorboard'" in lines


def test_words_are_folded_for_a_person_and_not_for_a_pipe(tmp_path: Path) -> None:
    long = {**SUMMARY["best"], "name": "a long name " * 20}
    (piped,) = [line for line in shown(tmp_path, best=long) if line.startswith("winner")]
    assert piped.endswith("freeze_depth 2")
    console = Console(file=io.StringIO(), width=60, force_terminal=True, highlight=False)
    show_result(RunFolder.open(opened(tmp_path)), console)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "long name" in line]
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


def opened(path: Path) -> Path:
    """Add what a folder must have to be a run's."""
    (path / "environment.json").write_text('{"request": {}}')
    (path / "space.py").write_text("")
    return path


def test_the_table_fits_a_narrow_terminal(tmp_path: Path) -> None:
    lines = shown(tmp_path, width=60, external={"n": 9, "accuracy": 1.0, "accuracy_ci95": (0.7, 1)})
    assert "from elsewhere 1.0000 0.7000 to 1.0000 9" in lines
    assert not any(re.search("…$", line) for line in lines if "elsewhere" in line)
