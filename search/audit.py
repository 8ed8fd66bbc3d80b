"""Audit a folder of images for what could mislead training or evaluation.

```
python -m search.audit photos --external phone-photos
```

Every run audits its images before it trains; this command does so alone, without Ray.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.cluster.parallel import thread_map
from search.console.arguments import Parser, add_labels, add_max_megapixels
from search.console.output import SafeConsole, command, print_error
from search.console.progress import Progress
from search.console.signals import INTERRUPTED
from search.data.audit import ISSUES, NOT_SEEN, Audit, audit_images, summarize, write_audit_csv
from search.data.decoding import DecodedImages, decode_images
from search.data.exclusion import read_exclusion
from search.data.image_files import DataError
from search.data.manifest import Issue
from search.data.scan import find_images, scan_external
from search.evaluation.sample_size import small_class_warnings
from spaces.archives import open_folder
from spaces.base import find_space, load_space
from spaces.downloads import cache_folder
from spaces.rules import SpaceError
from spaces.sources import SourceError, folder
from trainables.images import pixel_limit

_N_EXAMPLES = 3
"""Images that are named for each kind of issue."""


def print_audit(audit: Audit, images: DecodedImages, console: Console) -> None:
    """Print a table of the classes, a table of the issues, and a summary line."""
    manifest, labels = images.manifest, images.labels
    split_names = [name for name in ("train", "val", "test") if name in manifest.splits]
    splits = np.array([manifest.splits[i] or "" for i in images.indices], dtype="<U5")
    classes = Table("class", *split_names, "images", box=None, pad_edge=False)
    for label, name in enumerate(manifest.classes):
        counts = [int(((labels == label) & (splits == one)).sum()) for one in split_names]
        classes.add_row(Text(name), *map(str, counts), str(int((labels == label).sum())))
    console.print(classes)
    console.print()
    found = Table("issue", "n", "meaning", "such as", box=None, pad_edge=False)
    for kind, meaning in ISSUES.items():
        issues = [issue for issue in audit.issues if issue.issue == kind]
        if issues:
            examples = [_example(issue) for issue in issues[:_N_EXAMPLES]]
            found.add_row(kind, str(len(issues)), meaning, Text("\n".join(examples)))
    if audit.issues:
        console.print(found)
        console.print()
    for text in small_class_warnings(
        {
            name: Counter(one or "train" for one in splits[labels == label].tolist())
            for label, name in enumerate(manifest.classes)
        }
    ):
        console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)
    console.print(Text(summarize(audit)), soft_wrap=True)
    console.print(Text(NOT_SEEN), soft_wrap=True)


def _example(issue: Issue) -> str:
    if issue.duplicate_of:
        return f"{issue.image} = {issue.duplicate_of}"
    return issue.image or issue.detail


@command(continues=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        with pixel_limit(options.max_megapixels):
            return _run(options)
    except (DataError, SourceError, SpaceError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    space = None if options.space is None else load_space(options.space)
    source = folder() if space is None else space.source
    source = source.with_labels(
        options.labels,
        options.image_column,
        options.label_column,
        options.group_column,
        options.group_by,
    )
    exclusion = None if options.exclude is None else read_exclusion(options.exclude)
    if not options.out.absolute().parent.is_dir():
        raise DataError(f"--out must lie in a folder that exists, but got {options.out}")
    manifest = find_images(source, options.data, cache_folder(), exclusion)
    external = None
    if options.external is not None:
        found = open_folder(options.external, cache_folder(), "--external")
        external = scan_external(found, manifest.classes, exclusion)
    n_images = len(manifest.names)
    with Progress() as progress:
        progress.begin("data", n_images + (len(external.names) if external else 0), "images")
        images = decode_images(manifest, None, thread_map, progress.advance)
        external_images = None
        if external is not None:
            external_images = decode_images(
                external,
                None,
                thread_map,
                lambda n_done: progress.advance(n_images + n_done),
                levels=images.levels,
            )
        flip = True if space is None else space.flip
        audit = audit_images(images, external_images, flip, thread_map)
    try:
        write_audit_csv(options.out, audit.issues)
    except OSError as error:
        raise DataError(
            f"--out {options.out} cannot be written to: {error.strerror}; give another --out"
        ) from None
    console = SafeConsole(highlight=False)
    print_audit(audit, images, console)
    console.print(Text(str(options.out)), soft_wrap=True)
    return 0


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m search.audit`."""
    parser = Parser(
        prog="python -m search.audit",
        description="""\
Check images for what could mislead training or evaluation: files that cannot be read,
near-duplicates within and across classes, splits and an external test set, contradicting labels,
imbalanced classes, and odd images. Every run does so first; nothing is changed.""",
        epilog="""\
examples:
  python -m search.audit photos
  python -m search.audit photos --external phone-photos --out photos.csv
Then remove the lines of the table that you disagree with, and give it to a run:
  python -m search.run --data photos --exclude photos.csv""",
    )
    parser.add_argument(
        "data",
        type=Path,
        metavar="DIR",
        help="images: a folder per class, or train/ [val/] test/ of those; or an archive of it",
    )
    add_labels(parser)
    parser.add_argument(
        "--external", type=Path, metavar="DIR", help="external test set, compared with DIR"
    )
    parser.add_argument(
        "--space",
        type=find_space,
        metavar="SPACE",
        help="name or file of a space: its classes, and whether it mirrors images",
    )
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE", help="images to exclude, as in search.run"
    )
    add_max_megapixels(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("audit.csv"),
        metavar="CSV",
        help="table of all issues (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
