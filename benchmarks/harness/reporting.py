"""Print and write a benchmark's results: tables, ratios against targets, versions, machine.

Both sides of a ratio are measured in one run on one machine. The results are written to
`benchmarks/results/<name>.json`; a quick run writes `<name>-quick.json`, so that it never replaces
a full one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean, mean, stdev
from typing import Any, NoReturn

import numpy as np
from scipy.stats import t as student

ROOT = Path(__file__).parents[2]
DEFAULT_DATA = ROOT.parent / "shared" / "data"
_RESULTS = Path(__file__).parents[1] / "results"
_PACKAGES = ("ray", "torch", "torchvision", "optuna", "scikit-learn", "numpy", "pillow")
_N_DRAWS = 4000

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two measurements, with its target.

    Attributes:
        name: What over what.
        value: The ratio; NaN where it could not be measured.
        target: The bound to meet; None for no target.
        at_least: Whether the target is a lower bound; otherwise an upper one.
    """

    name: str
    value: float
    target: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """Describe the target and whether it is met."""
        if self.target is None:
            return ""
        bound = f"target {'≥' if self.at_least else '≤'} {self.target:g}"
        if math.isnan(self.value):
            return f"{bound}: not measured"
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return f"{bound}: {'met' if met else 'MISSED'}"


@dataclass
class Report:
    """The results of a benchmark.

    Attributes:
        name: The benchmark's module name, without its package.
        claim: What is measured, in one line.
        tables: Rows by title; the keys of the first row are the columns, units in their names.
        ratios: The comparisons.
        notes: What a reader must know, such as what is extrapolated.
        extra: Details that only the JSON holds.
    """

    name: str
    claim: str
    tables: dict[str, Sequence[Row]] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def publish(self, arguments: argparse.Namespace) -> None:
        """Print the tables and write the JSON file."""
        seconds = round(time.perf_counter() - self.started, 1)
        setting = describe_setting(self.name, arguments.mode, seconds)
        print(self.claim)
        for title, rows in self.tables.items():
            print(f"\n{title}\n{format_table(rows)}")
        print()
        for ratio in self.ratios:
            print(f"ratio  {ratio.name}: {_cell(ratio.value)}  {ratio.verdict}".rstrip())
        if arguments.mode == "smoke":
            print("note   a smoke run only shows that the benchmark runs: its figures mean nothing")
        for note in self.notes:
            print(f"note   {note}")
        print(f"\n{setting['machine']}\n{_versions_line(setting)}\n{setting['command']}", end="")
        print(f"  ({arguments.mode}, {seconds:,.0f} s)")
        path = arguments.out or default_output(self.name, arguments.mode)
        if path is not None:
            self._write(path, setting)
            print(f"written to {path}")

    def _write(self, path: Path, setting: Mapping[str, Any]) -> None:
        ratios = [{**vars(ratio), "verdict": ratio.verdict} for ratio in self.ratios]
        content = {
            **setting,
            "claim": self.claim,
            "ratios": ratios,
            "tables": self.tables,
            "notes": self.notes,
            **self.extra,
        }
        write_result(path, content)


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def command_line(doc: str, data: bool = False) -> argparse.ArgumentParser:
    """Create a parser with the options that all benchmarks share.

    Args:
        doc: The benchmark's docstring.
        data: Whether it reads images and pretrained weights.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--quick", dest="mode", action="store_const", const="quick", help="a few minutes"
    )
    mode.add_argument(
        "--smoke",
        dest="mode",
        action="store_const",
        const="smoke",
        help="seconds: only shows that it runs",
    )
    parser.set_defaults(mode="full")
    parser.add_argument("--out", type=Path, metavar="JSON", help="instead of benchmarks/results/")
    if data:
        parser.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="folder with caltech101/101_ObjectCategories (default: ../shared/data)",
        )
        parser.add_argument(
            "--weights",
            type=Path,
            metavar="DIR",
            help="<backbone>.pth files (default: weights/ in --data)",
        )
    return parser


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of values and its 95% confidence interval by Student's t."""
    center = mean(values)
    reach = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return center, center - reach, center + reach


def bootstrap_interval(differences: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the mean of differences and its 95% bootstrap interval, for a few photo sets.

    Sets are drawn with replacement, and within each drawn set its differences.

    Args:
        differences: Of each set, those of its seeds; all sets weigh the same.

    Returns:
        The mean, and the interval's ends; they are NaN for a single difference.
    """
    center = fmean(fmean(of_set) for of_set in differences)
    if sum(map(len, differences)) == 1:
        return center, np.nan, np.nan
    rng = np.random.default_rng(0)
    means = np.zeros(_N_DRAWS)
    for _ in differences:
        drawn = [rng.choice(of_set, (_N_DRAWS, len(of_set))).mean(1) for of_set in differences]
        means += np.stack(drawn)[rng.integers(len(drawn), size=_N_DRAWS), np.arange(_N_DRAWS)]
    low, high = np.quantile(means / len(differences), [0.025, 0.975])
    return center, float(low), float(high)


def stop(message: str, code: int = 2) -> NoReturn:
    """Print one error message and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def log_progress(text: str) -> None:
    """Print a line about a long benchmark's progress, with the time, to stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def describe_setting(name: str, mode: str, seconds: float) -> dict[str, Any]:
    """Return the command, the versions and the machine of a measurement."""
    arguments = [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return {
        "benchmark": name,
        "command": " ".join(["python", "-m", _main_module(), *arguments]),
        "mode": mode,
        "commit": describe_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "machine": describe_machine(),
        "load_at_end": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
    }


def describe_commit() -> str | None:
    """Return the commit that is measured, with a "+" where files differ; None outside a clone."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed.strip() else "")


def describe_machine() -> str:
    """Describe the processor, its cores and bfloat16 support, the memory and the GPUs."""
    import torch

    parts = [f"{_processor()}, {len(os.sched_getaffinity(0))} cores"]
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        parts.append("bfloat16")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts.append(f"{memory_bytes / 2**30:.0f} GB")
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(parts)}; {platform.system()} {platform.release()}"


def format_table(rows: Sequence[Row]) -> str:
    """Format rows as text, one line each, numbers aligned right."""
    if not rows:
        return "  (none)"
    names = list(rows[0])
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    to_left = [isinstance(rows[0][name], str) for name in names]
    lines = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        )
        for line in cells
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    """Format a value with at most four significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(content: Any) -> Any:
    """Convert to what JSON can hold: no NaN, no NumPy, no paths."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, str | int | bool | None) else str(content)


def default_output(name: str, mode: str) -> Path | None:
    """Return where results are written; None for a smoke run, whose figures mean nothing."""
    names = {"full": f"{name}.json", "quick": f"{name}-quick.json"}
    return _RESULTS / names[mode] if mode in names else None


def _main_module() -> str:
    """Return the dotted name of the module that `python -m` runs."""
    spec = sys.modules["__main__"].__spec__
    return Path(sys.argv[0]).name if spec is None else spec.name


def _versions_line(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in setting["versions"].items())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
