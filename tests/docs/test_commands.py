"""Every command in the documentation is accepted by its program.

Quick commands run, on a small run. For the others (a cluster, a server, an account) the program's
own parser reads the line, and the files that it names exist.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest
from PIL import Image
from sqlalchemy.engine import make_url

from search.console.commands import COMMANDS as SEARCH_COMMANDS

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "clusters", "benchmarks")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def find_commands() -> list[tuple[str, str]]:
    """Return the commands of all pages, each with its page; a line ending in \\ continues."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
            if language in ("bash", "sh") or (
                not language and lines and program(lines[0]) in CHECKS
            ):
                found += [(str(page.relative_to(ROOT)), " ".join(line.split())) for line in lines]
    return [(page, line) for page, line in found if not line.startswith("#")]


def split_words(line: str) -> list[str]:
    """Return a command's words, without the variables that are set before it."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a drawing, not a command
        return [""]
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    return words or [""]


def program(line: str) -> str:
    return Path(split_words(line)[0]).name


@pytest.fixture(scope="module")
def place(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the files that the commands name exist."""
    place = tmp_path_factory.mktemp("place")
    for name in ("clusters", "spaces", "benchmarks", "scripts", "tests/system/faults"):
        shutil.copytree(ROOT / name, place / name)
    for name in ("Makefile", "cluster.yaml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place / name)
    shutil.copy(place / "spaces" / "products.py", place / "spaces" / "mine.py")
    shutil.copytree(digits_run, place / "results" / "RUN")
    images = (
        "photo.jpg",
        "other.jpg",
        "photos/cat/1.jpg",
        "folder-of-photos/1.jpg",
        "more/trip/1.png",
        "phone-photos/cat/1.jpg",
    )
    for name in images:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 120, 40)).save(place / name)
    return place


def check_python(words: Sequence[str], place: Path) -> None:
    if words[0] == "-m":
        check_module(words[1], words[2:], place)
        return
    check_options(words[1:], place / words[0])


def check_options(words: Sequence[str], *sources: Path) -> None:
    """Check that each option is defined in one of the files."""
    known = "".join(source.read_text() for source in sources)
    for word in words:
        assert not word.startswith("--") or f'"{word.split("=")[0]}"' in known, f"no {word}"


def check_module(module: str, arguments: Sequence[str], place: Path) -> None:
    """Run what is quick; let the program's own parser read other commands."""
    runs = module in ("search.predict", "search.report", "search.export")
    if runs and not {"--help", "-"} & {*arguments}:  # "-" reads names from another program
        assert importlib.import_module(module).main(arguments) == 0
    elif module == "search.run":
        request = importlib.import_module("search.pipeline.request")
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                request.parse_request(arguments)
            return
        asked = request.parse_request(arguments)
        assert asked.resume or asked.space.is_file(), f"there is no space {asked.space}"
    elif module == "pip":
        check_pip(arguments, place)
    elif module == "venv":
        assert len(arguments) == 1
    elif module.startswith("benchmarks."):
        script = (place / module.replace(".", "/")).with_suffix(".py")
        check_options(arguments, script, place / "benchmarks" / "harness" / "reporting.py")
    elif module.startswith("tests."):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    elif module == "pytest":
        assert all(word.startswith("-") or (ROOT / word).exists() for word in arguments)
    else:
        assert module.startswith("search.")
        importlib.import_module(module).create_parser().parse_args(arguments)


def check_command(words: Sequence[str], place: Path) -> None:
    check_module(f"search.{words[0]}", words[1:], place)


def check_make(words: Sequence[str], place: Path) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def check_tensorboard(words: Sequence[str], place: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what its plugins import
        from tensorboard import default, program

        program.TensorBoard(default.get_plugins()).configure(["tensorboard", *words])
    check_present(words[words.index("--logdir") + 1], place)


def check_dashboard(words: Sequence[str], place: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra 'dashboard' is not installed")
    if words[-1].startswith("sqlite:"):
        assert make_url(words[-1]).database  # `--study` creates it
        return
    check_present(words[-1], place)


def check_mlflow(words: Sequence[str], place: Path) -> None:
    """Check the options; `test_mlflow_tracker` runs a server, and loads a model."""
    cli = pytest.importorskip("mlflow.cli", reason="the extra 'mlflow' is not installed").cli
    with cli.make_context("mlflow", list(words), resilient_parsing=True) as context:
        command, rest = context.command, list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context(words[0], rest)


def check_present(name: str, place: Path) -> None:
    """Check that a file of this machine exists; those of cluster nodes begin with ~."""
    assert name.startswith("~") or (place / name).exists(), f"there is no {name}"


def check_pip(words: Sequence[str], place: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert words[0] in ("install", "wheel")
    for word in words[1:]:
        if named := re.search(r"\[(.+)\]", word):
            assert set(named[1].split(",")) <= extras.keys(), f"no extra {named[1]}"


def check_ray(words: Sequence[str], place: Path) -> None:
    """Let Ray's own command line read it, and check the command for the cluster as well."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, list(rest), resilient_parsing=False)
    for word in rest:
        if word.endswith(".yaml"):
            check_present(word, place)
    inner = " ".join(rest[rest.index("--") + 1 :]) if "--" in rest else ""
    for part in [inner, *(word for word in rest if " " in word)]:
        for line in part.split("&&"):
            if program(line) in ("python", "tensorboard"):
                CHECKS[program(line)](split_words(line)[1:], place)


def check_aws(words: Sequence[str], place: Path) -> None:
    """Check the JSON that AWS' program reads; the program itself needs an account."""
    assert words[0] in ("s3", "iam", "ssm", "ec2")
    for word in words:
        if word.startswith("file://"):
            json.loads((place / word.removeprefix("file://")).read_text())
        elif word.startswith("{"):
            json.loads(word)


def check_curl(words: Sequence[str], place: Path) -> None:
    """Send it to the server's application, on the port where it listens."""
    from search.deployment.predictor import load
    from search.deployment.server.middleware import Limits
    from tests.fixtures.serving import serving

    if any(":5001/invocations" in word for word in words):  # of `mlflow models serve`
        json.loads(words[-1])
        return
    if shutil.which("curl") is None:
        check_plain(words, place)
        return
    with serving(load(place / "results" / "RUN"), Limits()) as url:
        sent = [re.sub("^http://127.0.0.1:8000", url, word) for word in words]
        assert url in sent[-1]
        done = subprocess.run(
            ["curl", "--silent", "--fail", *sent], cwd=place, check=True, capture_output=True
        )
    assert len(json.loads(done.stdout)["predictions"]) == max(
        1, words.count("-F")
    )  # --data-binary has one


def check_ssh(words: Sequence[str], place: Path) -> None:
    if shutil.which("ssh") is None:
        assert "-L" not in words or re.fullmatch(r"\d+:[\d.]+:\d+", words[words.index("-L") + 1])
        return
    subprocess.run(["ssh", "-G", *words], check=True, capture_output=True)


def check_sed(words: Sequence[str], place: Path) -> None:
    before = (place / words[-1]).read_text()
    subprocess.run(["sed", *words], cwd=place, check=True)
    assert (place / words[-1]).read_text() != before


def check_plain(words: Sequence[str], place: Path) -> None:
    """Check that the project's files in a command exist."""
    for word in words:
        if re.fullmatch(r"[\w./-]+\.(py|sh|yaml|yml|service|conf|json|toml)", word):
            check_present(word, place if (place / word).exists() else ROOT)


CHECKS: dict[str, Callable[[Sequence[str], Path], None]] = {
    "python": check_python,
    "python3": check_python,
    "python3.11": check_python,
    "classifier-search": check_command,
    "conda": check_plain,
    "make": check_make,
    "tensorboard": check_tensorboard,
    "optuna-dashboard": check_dashboard,
    "mlflow": check_mlflow,
    "pip": check_pip,
    "ray": check_ray,
    "aws": check_aws,
    "ssh": check_ssh,
    "sed": check_sed,
    "curl": check_curl,
    **dict.fromkeys(
        (
            "docker",
            "podman",
            "systemctl",
            "sudo",
            "cp",
            "cd",
            "git",
            "export",
            "pre-commit",
            "rsync",
            "find",
        ),
        check_plain,
    ),
}
"""By program, the function that checks its arguments; any other program fails the test."""

COMMANDS = find_commands()


def test_commands_are_found_in_the_pages() -> None:
    pages = {page for page, _ in COMMANDS}
    assert pages >= {"README.md", "docs/writing-a-space.md", "docs/dashboards.md"}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}: {c[:50]}" for p, c in COMMANDS])
def test_a_command_is_accepted(
    page: str, line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for part in re.split(r"\s(?:&&|\|)\s", line) if program(line) != "ray" else [line]:
        name = program(part)
        assert name in CHECKS, f"{page}: {name!r} has no check; add it to CHECKS"
        words = split_words(part)
        words = words[: words.index(">")] if ">" in words else words
        CHECKS[name](words[1:], place)


def parser_of(command: str) -> argparse.ArgumentParser:
    where = "search.console.run_options" if command == "run" else f"search.{command}"
    parser: argparse.ArgumentParser = importlib.import_module(where).create_parser()
    return parser


@pytest.mark.parametrize("command", [name for name in SEARCH_COMMANDS if name != "report"])
def test_examples_in_the_help_are_accepted(command: str) -> None:
    shown = parser_of(command).format_help()
    examples = re.findall(r"^  .*python -m search\.(\w+)(.*)$", shown, re.MULTILINE)
    for name, arguments in examples:
        parser_of(name).parse_args(shlex.split(arguments))
    assert examples or command not in ("run", "audit", "export", "serve")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_the_examples_in_python_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.export import main
    from search.predict import load

    monkeypatch.chdir(place)
    assert main(["results/RUN"]) == 0
    capsys.readouterr()
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for example in examples:
        exec(example, {})
    (made,) = load("results/RUN").predict(["photo.jpg"], top=1)
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["photo.jpg", made.classes[0]]
    assert last.split()[0] == made.classes[0]
    assert len(examples) == 2


def test_the_example_space_is_valid(tmp_path: Path) -> None:
    from spaces.base import load_space
    from spaces.rules import RULES

    text = (ROOT / "docs" / "writing-a-space.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    path = tmp_path / "mine.py"
    path.write_text(example)
    assert load_space(path).trials == 24
    described = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert described >= RULES.keys()
