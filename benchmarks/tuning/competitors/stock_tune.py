"""Stock Ray Tune on our trainable: OptunaSearch, ASHAScheduler and reused actors.

Images, feature cache, ranking of the backbones and heads to begin with are those of `search.run`,
of which only the search itself is replaced: so the two differ in what is proposed, what is stopped,
and what is made of the result. It has the space's first trials as `points_to_evaluate`. The best
trial's weights of its best epoch are the model, and the process ends there.

    python -m benchmarks.tuning.competitors.stock_tune JOB [words of search.run]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock
from zlib import crc32

from benchmarks.tuning.competitors.job import Job, read_job
from search.cluster.session import configure_ray
from search.run import main as run

configure_ray()  # before Ray is imported

import optuna  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402

from search.pipeline import flow  # noqa: E402
from search.pipeline.model_file import build_ensemble  # noqa: E402
from search.pipeline.preflight import RunPlan  # noqa: E402
from search.pipeline.prepare import PreparedData  # noqa: E402
from search.runs.run_folder import MODEL  # noqa: E402
from search.tuning.asha import REDUCTION_FACTOR  # noqa: E402
from search.tuning.samplers import draw_params  # noqa: E402
from spaces.base import Space  # noqa: E402
from trainables.models.model import save_model  # noqa: E402
from trainables.trial import ImageTrial  # noqa: E402
from trainables.worker import TrainingContext, resolve_config  # noqa: E402

CLOSING_SECONDS = 10.0
"""Kept for what follows Tune's own end: it lets workers end their epoch for up to 5 s, and the
model is read and written."""

MIN_SECONDS = 20.0
"""The search takes so long even where no time is left, as workers take ten seconds to start: it
overruns a short time, but has a trial."""

_METRIC, _BEST = "val_score", "best_val_score"
"""In our trainable's results: the space's metric, of an epoch and of the best epoch so far."""
_WEIGHTS = "weights.pt"


class StockTrial(ImageTrial):
    """Our trainable with a configuration as Optuna proposes it, and Tune's own checkpoints."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], context: TrainingContext, **shared: Any
    ) -> None:
        """Begin the worker's first trial."""
        self._epochs = context.epochs
        super().setup(self._as_ours(config), context, **shared)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        return super().reset_config(self._as_ours(new_config))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the weights of the best epoch so far."""
        torch.save(self._best_weights, Path(checkpoint_dir) / _WEIGHTS)

    def _as_ours(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration as `ImageTrial` takes it; its seed follows from its values."""
        number = crc32(repr(sorted(config.items())).encode())
        return {"number": number, "params": config, "epochs": self._epochs}


class NoCheckpoints:
    """A `trainables.worker.TrialCheckpoints` that keeps nothing: Tune has its own."""

    def would_keep(self, number: int, score: tuple[float, float]) -> bool:
        """Return False."""
        return False

    def submit(self, number: int, score: tuple[float, float], content: bytes) -> None:
        """Do nothing."""

    def save(self, number: int, content: bytes) -> None:
        """Do nothing."""

    def load_last(self, number: int) -> bytes | None:
        """Return None: there is no earlier checkpoint."""
        return None


def search(
    job: Job,
    run_plan: RunPlan,
    prepared: PreparedData,
    context: TrainingContext,
    *_: Any,
) -> NoReturn:
    """Run Tune until the time is up, write the best trial's model, and end the process.

    Its arguments after the job are those of `search.pipeline.trials.run_search`.
    """
    context = replace(context, run_id=run_plan.folder.environment.run_id)
    with tempfile.TemporaryDirectory(prefix="stock-tune-") as storage:
        results = _fit(job, prepared.space, context, prepared, storage)
        _print_failures(results)
        best = results.get_best_result(_BEST, "max")
        with best.checkpoint.as_directory() as folder:
            weights = torch.load(Path(folder) / _WEIGHTS, weights_only=True)
    print(f"{len(results)} trials; the best: {best.metrics[_BEST]:.4f} {best.config}")
    config = resolve_config(best.config)
    save_model(build_ensemble(prepared, config, [weights]), run_plan.folder.path / MODEL)
    raise SystemExit(0)


def _fit(
    job: Job, space: Space, context: TrainingContext, prepared: PreparedData, storage: str
) -> Any:
    trainable = tune.with_parameters(
        StockTrial,
        context=context,
        train_rows=prepared.rows("train"),
        val_rows=prepared.rows("val"),
        checkpoints=NoCheckpoints(),
    )
    searcher = OptunaSearch(
        space=partial(_draw, space),  # Optuna's define-by-run: some parameters depend on others
        metric=_METRIC,
        mode="max",
        points_to_evaluate=[
            {name: value for name, value in first.items() if name in space.distributions}
            for first in space.first_trials
        ],
        seed=job.seed,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric=_METRIC,
            mode="max",
            search_alg=searcher,
            scheduler=ASHAScheduler(
                time_attr="epoch", max_t=space.epochs, reduction_factor=REDUCTION_FACTOR
            ),
            num_samples=-1,
            max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
            time_budget_s=max(MIN_SECONDS, job.seconds_left() - CLOSING_SECONDS),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=storage,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            verbose=0,
        ),
    )
    return tuner.fit()


def _draw(space: Space, trial: optuna.Trial) -> dict[str, Any]:
    """Draw a trial's parameters, those that depend on others last; return all, and constants."""
    draw_params(trial, space)
    return dict(space.complete(trial.params))


def _print_failures(results: Any) -> None:
    """Print how many trials failed, and why the first did; ours report failures as results."""
    reasons = [result.error or (result.metrics or {}).get("failure") for result in results]
    failed = [str(reason) for reason in reasons if reason is not None]
    print(f"{len(results)} trials, of which {len(failed)} failed {failed[:1]}", file=sys.stderr)


def main() -> int:
    """Run `search.run` with the words after the job, and this search in place of its own."""
    job = read_job(sys.argv[1])
    with mock.patch.object(flow, "run_search", partial(search, job)):
        return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
