"""Log a search to Weights & Biases: a group with a run for the search and one for each trial.

By its own client, not by Ray's callback, which takes a resumed trial for a new one and needs an
actor for each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb

from search.reporting.trackers.base import FILES, TrackedSearch, TrackedTrial, Tracker, figures
from search.reporting.trackers.tracking_state import SentTrial, TrackingState
from search.runs.run_folder import MODEL
from search.runs.summary import RunSummary

PROJECT = "classifier-search"
"""The project that runs belong to, unless WANDB_PROJECT names another."""

_INTERRUPTED = 130
_MAX_ID = 24


class WandbTracker(Tracker):
    """Logs to Weights & Biases, or to files in the run's folder for `wandb sync`."""

    name = "Weights & Biases"

    def __init__(self, offline: bool) -> None:
        """Connect to nothing yet.

        Args:
            offline: Whether files are written that `wandb sync` sends later.
        """
        self._mode: Any = "offline" if offline else None
        self._search: TrackedSearch | None = None
        self._state = TrackingState(Path())
        self._parent: Any = None
        self._running: dict[int, Any] = {}

    def begin(self, search: TrackedSearch) -> str:
        """Begin the run of the search, or continue it."""
        self._search = search
        self._state = TrackingState.read(search.path / "wandb.json")
        self._state.key = search.run_id[:_MAX_ID]
        self._parent = self._init(self._state.key, search.name, "search", dict(search.settings))
        self._state.write()
        if self._parent.offline:
            return f"written to {search.path / 'wandb'}, for wandb sync"
        return str(self._parent.url)

    def update(self, trial: TrackedTrial) -> None:
        """Log what a trial has more than its run."""
        sent = self._state.trials.get(trial.number)
        if sent is None:
            key = f"{self._state.key}-{trial.name}"
            sent = self._state.trials[trial.number] = SentTrial(key)
        if sent.state == trial.state and trial.has_ended:
            return
        run = self._running.get(trial.number)
        if run is None:
            run = self._init(sent.key, trial.name, "trial", dict(trial.params))
            self._running[trial.number] = run
        for epoch in trial.epochs[sent.epochs :]:
            run.log({k: v for k, v in epoch.items() if k != "epoch"}, step=int(epoch["epoch"]))
        sent.epochs = len(trial.epochs)
        if trial.has_ended:
            run.summary.update({**trial.outcome, "state": trial.state, "reason": trial.reason})
            run.finish(exit_code=int(trial.state == "failed"))
            del self._running[trial.number]
            sent.state = trial.state
        self._state.write()

    def end(self, summary: RunSummary | None) -> None:
        """Log the results, the report and the model."""
        for run in self._running.values():
            run.summary.update({"state": "unfinished"})
            run.finish(exit_code=_INTERRUPTED)
        self._running.clear()
        if summary is None or self._search is None:
            self._parent.finish(exit_code=_INTERRUPTED)
            return
        path = self._search.path
        self._parent.summary.update(figures(summary))
        model = wandb.Artifact(f"model-{self._state.key}", "model")
        model.add_file(str(path / MODEL))
        self._parent.log_artifact(model)
        report = wandb.Artifact(f"report-{self._state.key}", "report")
        for name in FILES:
            if (path / name).is_file():
                report.add_file(str(path / name))
        self._parent.log_artifact(report)
        self._parent.finish()

    def _init(self, key: str, name: str, kind: str, config: dict[str, Any]) -> Any:
        if self._search is None:
            raise RuntimeError("the search has not begun")
        settings = wandb.Settings(silent=True, console="off", init_timeout=20, disable_git=True)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(self._search.path),
            id=key,
            name=name,
            group=self._search.name,
            job_type=kind,
            config=config,
            mode=self._mode,
            resume=None if self._mode == "offline" else "allow",
            reinit="create_new",
            settings=settings,
        )
