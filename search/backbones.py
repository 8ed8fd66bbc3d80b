"""List backbones: cost, accuracy on ImageNet, licence, and whether their weights are at hand.

```
python -m search.backbones
python -m search.backbones 'timm/convnextv2*' --measure
```
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from search.console.arguments import Parser, whole_number
from search.console.formatting import percent, printable
from search.console.output import command, print_error, table_console
from search.console.signals import INTERRUPTED
from spaces.downloads import cache_folder
from spaces.portfolio import PORTFOLIO
from trainables.pretrained.catalogue import (
    BackboneInfo,
    describe_backbones,
    find_names,
    similar_names,
)

_WIDTH_OF_A_FILE = 160
"""Columns of a table that is not shown on a terminal."""


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    if options.weights is not None and not options.weights.is_dir():
        print_error(f"--weights must be a folder, but got {options.weights}")
        return 2
    names = find_names(options.pattern)
    if not names:
        near = similar_names(options.pattern)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        print_error(
            f"there is no backbone {options.pattern!r}{hint} (timm's begin with timm/; patterns"
            " such as 'timm/convnext*' list several)"
        )
        return 2
    listed = describe_backbones(
        names, options.image_size, options.weights, cache_folder(), options.measure
    )
    if options.json:
        print(json.dumps([_as_json(one) for one in listed], indent=2, ensure_ascii=False))
        return 0
    console = table_console(_WIDTH_OF_A_FILE)
    rows = list(listed)
    console.print(_table(rows, options.measure))
    for line in _notes(rows, options):
        console.print(Text(line, style="dim"), soft_wrap=True)
    return 0


def _as_json(info: BackboneInfo) -> dict[str, Any]:
    licence = info.licence
    return {
        **asdict(info),
        "licence": licence.name or None,
        "restriction": licence.restriction or None,
        "weights": None if info.weights is None else str(info.weights),
    }


def _table(rows: Sequence[BackboneInfo], measured: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("backbone", overflow="fold")
    for title in ("parameters", "GFLOPs", *(["ms an image"] if measured else []), "ImageNet top-1"):
        table.add_column(title, justify="right")
    table.add_column("licence")
    table.add_column("weights")
    for one in rows:
        latency = [_number(one.latency_ms, 1)] if measured else []
        table.add_row(
            Text(printable(one.name)),
            "–" if one.parameters is None else f"{one.parameters / 1e6:.1f} M",
            _number(one.gflops, 2),
            *latency,
            "–" if one.imagenet_top1 is None else percent(one.imagenet_top1),
            Text(_licence(one), style="yellow" if one.licence.restriction else ""),
            _weights(one),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _licence(info: BackboneInfo) -> str:
    name, restriction = info.licence.name, info.licence.restriction
    return f"{name}: {restriction}" if restriction else name or "–"


def _weights(info: BackboneInfo) -> str:
    if info.weights is not None:
        return "at hand"
    return "download" if info.is_published else "none"


def _notes(rows: Sequence[BackboneInfo], options: argparse.Namespace) -> list[str]:
    """Return what a reader of the table needs to know, without what does not occur in it."""
    size = options.image_size
    notes = [
        "",
        f"GFLOPs: 10⁹ multiply-adds of an image of {size} × {size} pixels. Neither they nor the"
        " parameters include a classifier.",
    ]
    if any(one.parameters is None for one in rows):
        notes.append(
            "–: the network cannot take images of this size, or there was no time for it: a"
            " narrower pattern counts all."
        )
    if any(one.imagenet_top1 is None and one.name.startswith("timm/") for one in rows):
        notes.append("ImageNet top-1 is known for torchvision's weights and some of timm's.")
    if options.pattern is None:
        notes += [
            f"--backbones auto tries {', '.join(PORTFOLIO)}.",
            "All of timm's networks can be used as well: python -m search.backbones 'timm/*', or a"
            " narrower pattern such as 'timm/convnext*'.",
        ]
    return notes


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m search.backbones`."""
    parser = Parser(
        prog="python -m search.backbones",
        description="List backbones: parameters, operations, accuracy on ImageNet, licence, and"
        " whether their weights are on this machine. Nothing is downloaded.",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="a name, or a pattern such as 'timm/convnext*' (default: the portfolio, and all but"
        " timm's)",
    )
    parser.add_argument(
        "--image-size",
        type=whole_number(16, 2048),
        default=224,
        metavar="N",
        help="side in pixels of the images that operations and time are of (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the time of one image on this machine, in a batch of one",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="look for weights in this folder (default: where downloads are kept)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
