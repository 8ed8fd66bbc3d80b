"""Export a finished run's model to run without this program: ONNX, or a PyTorch program.

```
python -m search.export results/caltech-1            # export/model.onnx, checked
python -m search.export results/caltech-1 --int8     # export/model-int8.onnx, smaller and faster
python -m search.export results/caltech-1 --format pt2
```

The graph takes uint8 [N, H, W, 3] and gives probabilities [N, classes] and doubt [N]; see
docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from search.console.arguments import Parser, add_run, model_path, whole_number
from search.data.class_folders import DataError
from search.runs.run_folder import FolderError, RunFolder
from spaces.base import SpaceError
from spaces.sources import SourceError

if TYPE_CHECKING:
    from search.deployment.parity import Parity
    from trainables.models.ensemble import Ensemble

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_CALIBRATION_IMAGES = 256
_GENERATED_IMAGES = 32
RECORD = "export.json"


class ExportError(ValueError):
    """The model cannot be exported as asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking and options.format == "onnx":
        print(
            f"error: exporting to ONNX needs {', '.join(lacking)}:"
            " pip install 'classifier-search[export]'",
            file=sys.stderr,
        )
        return 2
    from trainables.models.ensemble import ModelError

    try:
        return _export(options)
    except (ExportError, ModelError, DataError, FolderError, SpaceError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _export(options: argparse.Namespace) -> int:
    """Write the file, check it, print and keep what the check found."""
    from search.deployment import parity
    from search.deployment.exporters import (
        run_onnx,
        run_program,
        write_int8,
        write_onnx,
        write_program,
    )
    from search.deployment.run_images import read_split
    from trainables.models.ensemble import load_model

    if options.int8 and options.format != "onnx":
        raise ExportError(f"--int8 goes with --format onnx, not with {options.format}")
    if options.int8 and not options.run.is_dir():
        raise ExportError(
            "--int8 needs the run's folder, whose training images set the ranges of its"
            f" integers, but {options.run} is a file"
        )
    ensemble = load_model(model_path(options.run))
    if options.member is not None:
        ensemble = one_member(ensemble, options.member)
    if options.run.is_dir():
        images = read_split(options.run, ensemble.card, "test", options.data)
        checked_on = "held-out"
    else:
        images = parity.generate_images(ensemble.card, _GENERATED_IMAGES)
        checked_on = "generated"
    path = options.out or _default_out(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_stem(path.stem + "-partial")  # torch.export reads no other suffix
    expected = parity.expected_outputs(ensemble, images.decoded)
    try:
        if options.int8:
            training = read_split(
                options.run, ensemble.card, "train", options.data, _CALIBRATION_IMAGES
            )
            write_int8(ensemble, training.decoded, partial)
        elif options.format == "onnx":
            write_onnx(ensemble, partial)
        else:
            write_program(ensemble, partial)
        run = run_program if options.format == "pt2" else run_onnx
        found = run(partial, parity.central_pixels(ensemble.card, images.decoded))
        result = parity.compare(expected, found, images, checked_on, options.int8)
        if not result.passed:
            print(f"error: {path.name} is not written: {result.in_words()}", file=sys.stderr)
            return 1
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"written  {path}  ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"checked  {result.in_words()}")
    if options.run.is_dir():
        if images.n_changed:
            print(
                f"warning: {images.n_changed} of {len(images.names)} held-out images are no"
                " longer the same as in the run",
                file=sys.stderr,
            )
        if path.parent == options.run / "export":
            _keep(options.run, path, result, ensemble.card.n_members)
    return 0


def one_member(ensemble: Ensemble, number: int) -> Ensemble:
    """Return an ensemble of one member alone, counted from 1.

    Raises:
        ExportError: there is no such member.
    """
    from trainables.models.ensemble import Ensemble

    n_members = ensemble.card.n_members
    if number > n_members:
        raise ExportError(f"1 <= --member <= {n_members} must hold, but got {number}")
    card = replace(ensemble.card, n_members=1)
    ood_score = None if ensemble.ood_scorer is None else ensemble.ood_scorer.for_member(number - 1)
    second = ensemble.center_crop_weights()
    if second is not None:
        second |= {key: second[key][number - 1 : number] for key in ("weight", "bias")}
    members = [ensemble.member_weights()[number - 1]]
    return Ensemble(card, ensemble.prefix, members, ood_score, second)


def _keep(run: Path, path: Path, result: Parity, n_members: int) -> None:
    """Put what the check found into the record beside the exported files."""
    record = run / "export" / RECORD
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
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


def _parser() -> Parser:
    parser = Parser(
        prog="python -m search.export",
        description="Export the model, and check the export against it on the held-out images.",
        epilog="The check runs the run's own space.py to find its images: export a run that you"
        " do not trust by its model.pt alone.",
    )
    add_run(parser)
    parser.add_argument(
        "--format",
        choices=("onnx", "pt2"),
        default="onnx",
        help="ONNX, or a program of torch.export (default: %(default)s)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="quantise: smaller, faster, a little less accurate"
    )
    parser.add_argument(
        "--member",
        type=whole_number(1),
        metavar="N",
        help="one fold's model alone (default: the ensemble of all)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the run's images are now, if they moved"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: export/ in the run's folder"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
