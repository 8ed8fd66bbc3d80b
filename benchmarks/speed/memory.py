"""Measure the memory of a node by the number of trials: images and features are held once.

    python -m benchmarks.speed.memory [--quick] [--megabytes 256]

1, 2, 4 and 8 trials in parallel, each in its own worker, over one table of decoded images and one
feature cache in the object store, which `TrainingContext` opens: every trial trains an epoch on
some images, then reads every byte of both. While all of them keep the data open, the proportional
set size (PSS, which counts a page that k processes share as 1/k in each) of all of the node's Ray
processes is summed: the object store's memory, and the rest. The other side gives every trial its
own copy, as a Dataset that decodes into memory does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.logical_cpus import start_ray  # isort: skip  # quiets Ray

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress

import ray  # isort: skip

IMAGE_SIZE = 64
N_CLASSES = 4
N_VIEWS = 2
BACKBONE = "tinynet"
DEPTH = 1
N_TRAINED = 128
_SHARED_MEMORY = re.compile(r"/dev/shm/|/plasma|plasma")
_SPARE_BYTES = 512 * 2**20  # of the object store, for the feature cache and the weights
_SIZES = {"full": (256, (1, 2, 4, 8)), "quick": (64, (1, 2, 4)), "smoke": (8, (1, 2))}
"""Megabytes of the table, and numbers of trials in parallel."""


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes of a node's Ray processes, in MB.

    Attributes:
        store: The object store's shared memory.
        private: All other memory of the trials' workers.
        node: All of the node's Ray processes together.
    """

    store: float
    private: float
    node: float


class Trial:
    """A worker that opens the shared data as a trial does, and keeps it open."""

    def open(self, context: Any, n_images: int, as_copies: bool) -> int:
        """Train an epoch and read all of the data; return this worker's process id."""
        import torch

        from spaces.base import TrialConfig
        from trainables.worker import create_trainer

        torch.set_num_threads(1)
        self._table = context.images(torch.device("cpu")).table
        config = TrialConfig(BACKBONE, freeze_depth=DEPTH, augment=1.0)
        self._cache = context.cached_features(config)
        rows = torch.arange(min(N_TRAINED, n_images))
        self._trainer = create_trainer(context, config, rows, rows[:0], seed=0, epochs=1)
        self._trainer.run_epoch()
        data = [self._table, *_tensors(self._cache)]
        if as_copies:
            self._copies = [tensor.clone() for tensor in data]
            data = self._copies
        for tensor in data:
            for part in tensor.split(64):
                part.view(torch.uint8).max()
        return os.getpid()


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__)
    parser.add_argument("--megabytes", type=int, metavar="N", help="of the table (default: 256)")
    arguments = parser.parse_args()
    megabytes, counts = _SIZES[arguments.mode]
    megabytes = arguments.megabytes or megabytes
    report = Report("memory", "A node's memory by the number of trials that share data.")
    start_ray(max(counts), 2 * megabytes * 2**20 + _SPARE_BYTES)
    table = make_table(megabytes)
    context, data_mb = make_context(table)
    rows = []
    for as_copies in (False, True):
        for n_trials in counts:
            row = measure(context, len(table), n_trials, as_copies, data_mb)
            log_progress(f"{row['data']}, {n_trials} trials: {row['data MB']:.0f} MB of data")
            rows.append(row)
    ray.shutdown()
    report.tables["Proportional set size of the node's Ray processes"] = rows
    report.ratios += compare(rows, max(counts))
    report.notes.append(
        f"{len(table)} generated images, {table.nbytes / 2**20:.0f} MB, and a cache of {N_VIEWS}"
        f" views at depth {DEPTH}: {data_mb:.0f} MB together, once; {BACKBONE}, {IMAGE_SIZE} px"
    )
    report.publish(arguments)


def make_table(megabytes: int) -> np.ndarray:
    """Make images of random pixels: uint8 [N, S, S, 3]."""
    cache_size = round(IMAGE_SIZE / 0.875)
    n_images = max(64, megabytes * 2**20 // (cache_size**2 * 3))
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n_images, cache_size, cache_size, 3), np.uint8)


def make_context(table: np.ndarray) -> tuple[Any, float]:
    """Put images and cached features into the object store; return the context and their MB."""
    from dataclasses import replace

    from search.cluster.feature_cache_client import start_feature_cache
    from search.cluster.feature_cache_plan import FeatureCachePlan
    from search.cluster.shared_file import StoredObject
    from trainables.feature_cache import bytes_per_image
    from trainables.worker import TrainingContext, clone_backbone

    import torch  # isort: skip

    context = TrainingContext(
        table=StoredObject.put(table),
        image_size=IMAGE_SIZE,
        flip=True,
        weights={},
        seed=0,
        labels=np.arange(len(table)) % N_CLASSES,
        n_classes=N_CLASSES,
        epochs=1,
        patience=None,
        heads={},
        feature_source=None,
    )
    rows = np.arange(min(len(table), 1024))
    backbone = clone_backbone(context, BACKBONE, 5, torch.device("cpu"))
    view_bytes = tuple(s * len(rows) for s in bytes_per_image(backbone, IMAGE_SIZE))
    plan = FeatureCachePlan(
        context=ray.put(context),
        seed=0,
        rows=rows,
        n_views=N_VIEWS,
        n_drawn=N_VIEWS,
        view_bytes={BACKBONE: view_bytes},
        budget_bytes=10 * N_VIEWS * sum(view_bytes),
        gpus_per_task=0.0,
    )
    features = start_feature_cache(plan)
    features.build({BACKBONE: (DEPTH,)}, N_VIEWS, lambda n_built, n_blocks: None)
    context = replace(context, feature_source=features)
    return context, (table.nbytes + plan.size(BACKBONE, DEPTH)) / 2**20


def _tensors(cache: Any) -> list[Any]:
    """Return the tensors of a feature cache."""
    return [] if cache is None else [block for view in cache.views for block in view]


def measure(
    context: Any, n_images: int, n_trials: int, as_copies: bool, data_mb: float
) -> dict[str, Any]:
    """Let n trials keep the data open in parallel; sum their memory."""
    actor = ray.remote(num_cpus=1)(Trial)
    trials = [actor.remote() for _ in range(n_trials)]
    workers = ray.get([trial.open.remote(context, n_images, as_copies) for trial in trials])
    memory = node_memory(set(workers))
    for trial in trials:
        ray.kill(trial)
    copies_mb = data_mb * n_trials if as_copies else 0.0
    data = copies_mb if as_copies else memory.store
    return {
        "data": "a copy per trial" if as_copies else "shared (ours)",
        "trials": n_trials,
        "data MB": data,
        "copies of the data": data / data_mb,
        "object store MB": memory.store,
        "workers' other MB": memory.private - copies_mb,
        "other MB per worker": (memory.private - copies_mb) / n_trials,
        "node MB": memory.node,
    }


def compare(rows: list[dict[str, Any]], n_trials: int) -> list[Ratio]:
    """Compare both sides with n trials in parallel."""
    ours, copied = (
        next(r for r in rows if r["trials"] == n_trials and r["data"].startswith(kind))
        for kind in ("shared", "a copy")
    )
    return [
        Ratio(f"copies of the data with {n_trials} trials", ours["copies of the data"], 1.1, False),
        Ratio("data memory, ours over a copy per trial", ours["data MB"] / copied["data MB"]),
        Ratio(
            "the whole node's memory, ours over a copy per trial",
            ours["node MB"] / copied["node MB"],
        ),
    ]


def node_memory(workers: set[int]) -> Memory:
    """Sum the memory of this session's Ray processes, without the driver.

    Args:
        workers: Process ids of the trials' workers.
    """
    store = private = node = 0.0
    for process in _descendants(os.getpid()):
        in_store, other = _pss_mb(process)
        store += in_store
        node += in_store + other
        private += other if process in workers else 0.0
    # The driver may map the store as well: that part of its memory belongs to the node.
    in_store, _ = _pss_mb(os.getpid())
    return Memory(store + in_store, private, node + in_store)


def _descendants(parent: int) -> list[int]:
    """Return the process ids of all children, and of theirs."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # it has ended
        children.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(
            int(path.parent.name)
        )
    found, waiting = [], [parent]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _pss_mb(process: int) -> tuple[float, float]:
    """Return a process's PSS in the object store's memory, and elsewhere, in MB."""
    in_store = other = 0
    is_store = False
    try:
        lines = Path(f"/proc/{process}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0.0, 0.0  # it has ended
    for line in lines:
        if line.startswith("Pss:"):
            kilobytes = int(line.split()[1])
            in_store, other = (
                (in_store + kilobytes, other) if is_store else (in_store, other + kilobytes)
            )
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_store = bool(_SHARED_MEMORY.search(line))
    return in_store / 1024, other / 1024


if __name__ == "__main__":
    main()
