"""What every benchmark prints and keeps: tables, ratios against their targets, versions, machine.

A ratio has both sides measured in one run on one machine. The JSON beside the table is
`benchmarks/results/<name>.json`; a quick run writes `<name>-quick.json`, so that it never takes the
place of a full one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
DEFAULT_DATA = ROOT.parent / "shared" / "data"
_RESULTS = Path(__file__).parents[1] / "results"
_PACKAGES = ("ray", "torch", "torchvision", "optuna", "scikit-learn", "numpy", "pillow")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A comparison of two sides, and what is asked of it.

    Attributes:
        name: What over what.
        value: The ratio; NaN where it could not be measured.
        target: Its bound; None asks for nothing.
        at_least: Whether the target bounds the ratio from below; else from above.
    """

    name: str
    value: float
    target: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """Say whether the target is met."""
        if self.target is None:
            return ""
        bound = f"target {'≥' if self.at_least else '≤'} {self.target:g}"
        if math.isnan(self.value):
            return f"{bound}: not measured"
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return f"{bound}: {'met' if met else 'MISSED'}"


@dataclass
class Report:
    """What a benchmark found.

    Attributes:
        name: Of the benchmark: its file's stem.
        claim: What is measured, in one line.
        tables: Rows by title; the keys of the first row are the columns, units in their names.
        ratios: The comparisons.
        notes: Lines a reader must know, such as what is extrapolated.
        extra: What is kept in the JSON alone.
    """

    name: str
    claim: str
    tables: dict[str, Sequence[Row]] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def publish(self, arguments: argparse.Namespace) -> None:
        """Print the tables and write the JSON."""
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
        path = arguments.out or _default_out(self.name, arguments.mode)
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
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(content), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def command_line(doc: str, data: bool = False) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks take.

    Args:
        doc: The benchmark's docstring.
        data: Whether it works on images and pretrained weights.
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
            help=f"holds caltech101/101_ObjectCategories (default: {DEFAULT_DATA})",
        )
        parser.add_argument(
            "--weights",
            type=Path,
            metavar="DIR",
            help="<backbone>.pth files (default: weights/ in --data)",
        )
    return parser


def stop(message: str, code: int = 2) -> NoReturn:
    """End with one clear message: the request was wrong."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def say(text: str) -> None:
    """Print how far a long benchmark is."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def describe_setting(name: str, mode: str, seconds: float) -> dict[str, Any]:
    """Return the command, the versions and the machine that figures belong to."""
    arguments = [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *arguments]),
        "mode": mode,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "machine": describe_machine(),
        "load_at_end": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
    }


def describe_machine() -> str:
    """Name the processor, its cores, its bfloat16, the memory and the graphics cards."""
    import torch

    parts = [f"{_processor()}, {len(os.sched_getaffinity(0))} cores"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        parts.append("bfloat16")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts.append(f"{memory_bytes / 2**30:.0f} GB")
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(parts)}; {platform.system()} {platform.release()}"


def format_table(rows: Sequence[Row]) -> str:
    """Lay rows out as text, one line each, numbers to the right."""
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
    """Show a value with four significant digits at the most."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(content: Any) -> Any:
    """Make JSON of it: no NaN, no NumPy, no paths."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, str | int | bool | None) else str(content)


def _default_out(name: str, mode: str) -> Path | None:
    names = {"full": f"{name}.json", "quick": f"{name}-quick.json"}
    return _RESULTS / names[mode] if mode in names else None


def _versions_line(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in setting["versions"].items())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Name the processor, as Linux does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
