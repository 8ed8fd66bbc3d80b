"""Pack what half an hour on a machine with a GPU needs into one archive of at most 64 MiB.

```
python scripts/gpu_bundle.py --weights W/mobilenet_v2.pth --images caltech101=D/caltech101
tar xzf gpu-bundle.tgz && bash gpu-bundle/run.sh     # there; `run.sh --dry-run` runs on a CPU
```

The archive has the project as it is here, weights, images as far as there is room (the same number
of each class), wheels that are given, a list of those that have to be at hand where there is no
network, and `scripts/gpu_run.sh` as `run.sh`: every step in the order of its worth, with a time
limit and a log. `results.tgz` is what to bring home.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAX_BYTES = 64 * 2**20
_MARGIN_BYTES = 2**20  # what is not written to the disk yet, and what compression adds to images
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_EXTRAS = ("dev", "export", "serve")
_FOLDER = "gpu-bundle"


def main() -> int:
    """Write the archive; return 2 where what is asked for does not exist or fit."""
    arguments = _parse()
    for path in (*arguments.weights, *(folder for _, folder in arguments.images)):
        if not path.exists():
            return _stop(f"there is no {path}; give files and folders that exist")
    wheels = sorted(arguments.wheels.glob("*.whl")) if arguments.wheels else []
    texts = {
        "run.sh": (ROOT / "scripts" / "gpu_run.sh").read_text(encoding="utf-8"),
        "WHEELS.txt": wheel_list(wheels),
    }
    with tarfile.open(arguments.out, "w:gz", compresslevel=6) as archive:
        for name, text in texts.items():
            _add_text(archive, name, text)
        for path in project_files():
            archive.add(ROOT / path, f"{_FOLDER}/project/{path}")
        for folder, files in (("weights", arguments.weights), ("wheels", wheels)):
            for path in files:
                archive.add(path, f"{_FOLDER}/{folder}/{path.name}")
        room = MAX_BYTES - _MARGIN_BYTES - arguments.out.stat().st_size
        if room < 0:
            arguments.out.unlink()
            return _stop(
                f"without any image the archive would be {-room / 2**20:.0f} MiB above"
                f" {MAX_BYTES / 2**20:.0f} MiB; give fewer weights or wheels"
            )
        counts = add_images(archive, arguments.images, room)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")
    for name, (n, total) in counts.items():
        print(f"  {name}: {n} of {total} images")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-bundle.tgz"))
    parser.add_argument("--weights", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument(
        "--images",
        type=_named_folder,
        nargs="*",
        default=[],
        metavar="NAME=FOLDER",
        help="class folders; run.sh searches those that are called caltech101 and grocery",
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels that fit")
    return parser.parse_args()


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER, but got {text!r}")
    return name, Path(folder)


def project_files() -> list[str]:
    """Return the paths of the working tree's files, but for those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return sorted(path for path in listed if path and (ROOT / path).is_file())


def wheel_list(given: list[Path]) -> str:
    """Return which wheels have to be at hand, with their pinned versions; * marks those given."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in _EXTRAS for line in extras[name])]
    names = sorted({canonicalize_name(Requirement(line).name) for line in wanted})
    pins = dict(re.findall(r"^([^=\s]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    here = {canonicalize_name(path.name.split("-")[0]) for path in given}
    lines = [f"{'*' if name in here else ' '} {name}=={versions.get(name, '?')}" for name in names]
    return "\n".join(
        [
            "Wheels that the steps need, beside what these need (those with * are in the archive).",
            "Where there is a network, and into a folder that travels with the machine's image:",
            "  pip download --constraint constraints.txt --dest wheels '.["
            + ",".join(_EXTRAS)
            + "]'",
            "",
            *lines,
            "",
        ]
    )


def add_images(
    archive: tarfile.TarFile, folders: list[tuple[str, Path]], room: int
) -> dict[str, tuple[int, int]]:
    """Add images, the same number of each class, until the room is used.

    Returns:
        By name, how many images were added, and how many there are.
    """
    counts = {}
    for position, (name, folder) in enumerate(folders):
        share = room // (len(folders) - position)
        files, used, n = _one_of_each_class(folder), 0, 0
        for path in files:
            size = path.stat().st_size + 1024
            if used + size > share:
                break
            archive.add(path, f"{_FOLDER}/images/{name}/{path.relative_to(folder)}")
            used, n = used + size, n + 1
        room -= used
        counts[name] = (n, len(files))
    return counts


def _one_of_each_class(folder: Path) -> list[Path]:
    """Return the images of a folder: the first of each subfolder, then the second ones."""
    by_class: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGES:
            by_class[path.parent].append(path)

    def in_turn() -> Iterator[Path]:
        for row in zip_longest(*by_class.values()):
            yield from (path for path in row if path is not None)

    return list(in_turn())


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(f"{_FOLDER}/{name}")
    content = text.encode()
    info.size, info.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
    archive.addfile(info, io.BytesIO(content))


def _stop(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
