"""Look through a folder of images for what could mislead a training or its judgement.

```
python -m search.audit photos --external phone-photos
```

Every run does the same before it spends anything; this command does it alone, without Ray.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.cluster.parallel import on_all_cores
from search.console.arguments import Parser
from search.console.progress import Progress
from search.console.signals import INTERRUPTED
from search.data.audit import KINDS, Audit, Images, examine, sum_up, write_audit_csv
from search.data.class_folders import DataError
from search.data.exclusion import read_exclusion
from search.data.manifest import Manifest, Problem, find_images, scan_external
from search.data.thumbnails import Thumbnails
from search.pipeline.preflight import cache_folder
from spaces.base import SpaceError, load_space
from spaces.sources import SourceError, folder
from trainables.images import ImageError, read_image

_EXAMPLES = 3  # names shown of each kind


def look(manifest: Manifest, on_progress: Callable[[int], None]) -> Images:
    """Decode and sketch all images, on all cores.

    Args:
        manifest: The images.
        on_progress: Is told how many are done.
    """
    n = len(manifest.names)
    thumbnails = Thumbnails.empty(n)

    def draw(row: int) -> str | None:
        try:
            if manifest.paths is not None:
                image = read_image(manifest.paths[row])
            elif manifest.images is not None:
                image = Image.fromarray(manifest.images[row]).convert("RGB")
            else:
                raise ValueError("a listing has files or arrays")
        except ImageError as error:
            return error.reason
        thumbnails.draw(row, image)
        return None

    reasons: dict[int, str] = {}
    # Pillow lets other threads run while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for row, reason in enumerate(threads.map(draw, range(n))):
            if reason is not None:
                reasons[row] = reason
            on_progress(row + 1)
    kept = np.array([row for row in range(n) if row not in reasons], dtype=np.int64)
    unreadable = (Problem(manifest.names[row], "unreadable", why) for row, why in reasons.items())
    return Images(manifest, kept, thumbnails.take(kept), (*unreadable, *manifest.skipped))


def show(audit: Audit, images: Images, console: Console) -> None:
    """Print the classes, what was found, and a line that sums it up."""
    manifest, kept = images.manifest, images.kept
    parts = [part for part in ("train", "val", "test") if part in manifest.splits]
    splits = np.array([manifest.splits[i] or "" for i in kept], dtype="<U5")
    classes = Table("class", *parts, "images", box=None, pad_edge=False)
    for label, name in enumerate(manifest.classes):
        mine = manifest.labels[kept] == label
        counts = [int((mine & (splits == part)).sum()) for part in parts]
        classes.add_row(Text(name), *map(str, counts), str(int(mine.sum())))
    console.print(classes)
    console.print()
    found = Table("found", "n", "what", "such as", box=None, pad_edge=False)
    for kind, what in KINDS.items():
        problems = [problem for problem in audit.problems if problem.kind == kind]
        if problems:
            examples = [_example(problem) for problem in problems[:_EXAMPLES]]
            found.add_row(kind, str(len(problems)), what, Text("\n".join(examples)))
    if audit.problems:
        console.print(found)
        console.print()
    console.print(Text(sum_up(audit)), soft_wrap=True)


def _example(problem: Problem) -> str:
    return (
        f"{problem.name} = {problem.duplicate_of}"
        if problem.duplicate_of
        else problem.name or problem.detail
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (DataError, SourceError, SpaceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    space = None if options.space is None else load_space(options.space)
    source = folder() if space is None else space.source
    exclusion = None if options.exclude is None else read_exclusion(options.exclude)
    if not options.out.absolute().parent.is_dir():
        raise DataError(f"--out must lie in a folder that is there, but got {options.out}")
    manifest = find_images(source, options.data, cache_folder(), exclusion)
    listings = [manifest]
    if options.external is not None:
        listings.append(scan_external(options.external, manifest.classes, exclusion))
    with Progress() as progress:
        done = 0
        progress.begin("images", sum(len(one.names) for one in listings), "images")
        looked = []
        for one in listings:
            before = done
            looked.append(look(one, lambda n, before=before: progress.advance(before + n)))  # type: ignore[misc]
            done += len(one.names)
        audit = examine(
            looked[0],
            looked[1] if len(looked) > 1 else None,
            flip=True if space is None else space.flip,
            spread=on_all_cores,
        )
    try:
        write_audit_csv(options.out, audit.problems)
    except OSError as error:
        raise DataError(
            f"--out {options.out} cannot be written to: {error.strerror}; give another --out"
        ) from None
    console = Console(highlight=False)
    show(audit, looked[0], console)
    console.print(Text(str(options.out)), soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m search.audit",
        description="Look through images for files that cannot be read, near-duplicates within"
        " and across classes, splits and an external set, labels that contradict each other,"
        " classes out of balance, and odd images.",
    )
    parser.add_argument(
        "data",
        type=Path,
        metavar="DIR",
        help="images: a folder per class, or train/ [val/] test/ of those",
    )
    parser.add_argument(
        "--external", type=Path, metavar="DIR", help="images from elsewhere, compared with DIR's"
    )
    parser.add_argument(
        "--space", type=Path, help="space file: its classes, and whether it mirrors images"
    )
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE", help="images to leave out, as in search.run"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("audit.csv"),
        metavar="CSV",
        help="where every finding is written (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
