"""Export a finished run's model to ONNX or to a torch.export program.

```
python -m search.export results/caltech-1            # export/model.onnx, checked
python -m search.export results/caltech-1 --int8     # export/model-int8.onnx, smaller and faster
python -m search.export results/caltech-1 --format pt2
```

The graph takes `images`, uint8 [N, H, W, 3], and returns `probabilities` [N, classes] and
`ood_score` [N]; see docs/deploy.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from search.console.arguments import Parser, add_run, model_path, whole_number
from search.console.formatting import printable_name
from search.console.output import command, print_error
from search.data.image_files import DataError
from search.runs.listing import find_run
from search.runs.run_folder import RunFolder
from search.runs.validation import FolderError
from spaces.errors import SearchError
from spaces.rules import SpaceError
from spaces.sources import SourceError
from trainables.atomic_write import write_atomically
from trainables.json_text import parse_json

if TYPE_CHECKING:
    from search.deployment.parity import Outputs, Parity
    from search.deployment.run_images import RunImages
    from trainables.models.ensemble import Ensemble
    from trainables.models.model import Model

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_CALIBRATION_IMAGES = 256
_GENERATED_IMAGES = 32
RECORD = "export.json"
"""In the export folder: the comparison of each exported file with PyTorch."""


class ExportError(SearchError):
    """The model cannot be exported as requested."""


class ParityError(Exception):
    """The outputs of the exported file differ from PyTorch's."""


@command(continues=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and options.format == "onnx":
        print_error(
            f"exporting to ONNX needs {', '.join(missing)}: pip install 'classifier-search[export]'"
        )
        return 2
    from trainables.models.model_card import ModelError

    try:
        options.run = find_run(options.run)
        _export(options)
    except ParityError as error:
        print_error(error)
        return 1
    except (ExportError, ModelError, DataError, FolderError, SpaceError, SourceError) as error:
        print_error(error)
        return 2
    return 0


def _export(options: argparse.Namespace) -> None:
    """Write the exported file, unless its outputs differ from PyTorch's.

    Raises:
        ParityError: they differ.
    """
    from search.deployment import parity
    from search.deployment.run_images import read_split
    from trainables.models.model import count_members, load_model

    if options.int8 and options.format != "onnx":
        raise ExportError(f"--int8 goes with --format onnx, not with {options.format}")
    if options.int8 and not options.run.is_dir():
        raise ExportError(
            "--int8 needs the run's folder, whose training images calibrate the ranges of the"
            f" integers, but {options.run} is a file"
        )
    model = load_model(model_path(options.run))
    if options.member is not None:
        model = one_member(model, options.member)
    generated = not options.run.is_dir()
    if generated:
        images = parity.generate_images(model.card, _GENERATED_IMAGES)
    else:
        images = read_split(options.run, model.card, "test", options.data)
    path = options.out or _default_out(options)
    # torch.export reads no other suffix.
    with write_atomically(path, partial=f".partial{path.suffix}") as partial:
        exported = _write_and_run(options, model, images, partial)
        expected = parity.expected_outputs(model, images.decoded)
        result = parity.compare_outputs(
            expected, exported, images, generated=generated, quantised=options.int8
        )
        if not result.passed:
            raise ParityError(f"{path.name} is not written: {result.in_words()}")
    print(f"written  {printable_name(path)}  ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"checked  {result.in_words()}")
    if images.n_changed:
        print(
            f"warning: {images.n_changed} of {len(images.names)} test images have changed since"
            " the run",
            file=sys.stderr,
        )
    if not generated and path.parent == options.run / "export":
        _record(options.run, path, result, count_members(model))


def _write_and_run(
    options: argparse.Namespace, model: Model, images: RunImages, path: Path
) -> Outputs:
    """Write the exported file; return its outputs for the images."""
    from search.deployment import exporters
    from search.deployment.parity import central_pixels
    from search.deployment.run_images import read_split

    pixels = central_pixels(model.card, images.decoded)
    if options.format == "pt2":
        exporters.write_program(model, path)
        return exporters.run_program(path, pixels)
    if options.int8:
        card = model.card
        training = read_split(options.run, card, "train", options.data, _CALIBRATION_IMAGES)
        exporters.write_int8(model, training.decoded, path)
    else:
        exporters.write_onnx(model, path)
    return exporters.run_onnx(path, pixels)


def one_member(model: Model, number: int) -> Ensemble:
    """Return one member alone, counted from 1 through the parts of the model.

    Raises:
        ExportError: there is no such member.
    """
    from trainables.models.ensemble import Ensemble

    members = [(part, place) for part in model.parts for place in range(part.card.n_members)]
    if number > len(members):
        raise ExportError(f"1 <= --member <= {len(members)} must hold, but got {number}")
    part, place = members[number - 1]
    card = replace(part.card, n_members=1)
    ood_scorer = None if part.ood_scorer is None else part.ood_scorer.for_member(place)
    center_crop = part.center_crop_weights()
    if center_crop is not None:
        center_crop |= {key: center_crop[key][place : place + 1] for key in ("weight", "bias")}
    return Ensemble(card, part.prefix, [part.member_weights()[place]], ood_scorer, center_crop)


def _record(run: Path, path: Path, result: Parity, n_members: int) -> None:
    """Write the comparison into the record beside the exported files."""
    record = run / "export" / RECORD
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        content = {}
    if not isinstance(content, dict):
        content = {}
    content[path.name] = {
        "members": n_members,
        "bytes": path.stat().st_size,
        **result.as_json(),
    }
    RunFolder(run).write_json(f"export/{RECORD}", content)


def _default_out(options: argparse.Namespace) -> Path:
    folder = options.run / "export" if options.run.is_dir() else options.run.parent
    member = f"-member{options.member}" if options.member else ""
    return Path(folder) / f"model{member}{'-int8' if options.int8 else ''}.{options.format}"


def create_parser() -> Parser:
    """Return the parser of `python -m search.export`."""
    parser = Parser(
        prog="python -m search.export",
        description="""\
Write a finished run's model as one file that other programs run, normalisation and all members of
the ensemble included, and compare it with the model on the run's test images before it is kept.""",
        epilog="""\
examples:
  python -m search.export results/RUN
  python -m search.export results/RUN --int8
  python -m search.export results/RUN --format pt2 --out model.pt2

The comparison executes the run's own space.py to find its images: export a run that you do not
trust by its model.pt alone.
exit codes: 0 written, 1 its outputs differ too much, 2 wrong request""",
    )
    add_run(parser)
    what = parser.add_argument_group("what to write")
    what.add_argument(
        "--format",
        choices=("onnx", "pt2"),
        default="onnx",
        help="ONNX, or a torch.export program (default: %(default)s)",
    )
    what.add_argument(
        "--int8",
        action="store_true",
        help="quantise to 8-bit integers: smaller, faster, a little less accurate",
    )
    what.add_argument(
        "--member",
        type=whole_number(1),
        metavar="N",
        help="the model of one fold alone (default: the ensemble of all)",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--data", type=Path, metavar="DIR", help="the folder of the run's images, if they moved"
    )
    where.add_argument(
        "--out", type=Path, metavar="FILE", help="default: export/ in the run's folder"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
