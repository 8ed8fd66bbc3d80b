"""Break the code in small, plausible ways, and check that tests notice each.

```
make mutants
python -m tests.system.mutants --only seed-ignored
```

First all named tests must pass on a copy of the tree as it is. Then one mutant after the other is
applied to the copy and its tests run: one that fails kills the mutant. A line per mutant says by
which test, and in how many seconds. The exit code is 1 where a mutant survives, or where its tests
could not run. `tests.system.mutant_catalogue` has the mutants.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.system.mutant_catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
TIMEOUT = 600
"""Seconds that the tests of a mutant may take."""

_KILLED, _SURVIVED, _BROKEN = "killed", "SURVIVED", "NOT RUN"
_FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?::\w+)", re.MULTILINE)
_SKIPPED_TEST = re.compile(r"^SKIPPED .*", re.MULTILINE)


class MutantError(RuntimeError):
    """A mutant does not fit the code, or the tests do not pass without it."""


@dataclass(frozen=True)
class Outcome:
    """What the tests of a mutant showed.

    Attributes:
        mutant: The mutant.
        result: Killed, survived, or not run.
        seconds: Seconds that its tests took.
        test: The test that failed; empty where none did.
        output: What pytest printed.
    """

    mutant: Mutant
    result: str
    seconds: float
    test: str
    output: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants, print a line for each and the survivors; return the exit code."""
    parser = argparse.ArgumentParser(description="Check that tests notice small mistakes.")
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("--only", metavar="NAME", action="append", choices=names)
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: 2")
    options = parser.parse_args(arguments)
    mutants = [one for one in MUTANTS if options.only is None or one.name in options.only]
    if options.list:
        print("\n".join(one.name for one in mutants))
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [Path(scratch) / str(number) for number in range(options.processes)]
        for tree in trees:
            copy_tree(ROOT, tree)
        try:
            check_unmutated(trees[0], mutants)
        except MutantError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"without a mutant all tests pass ({time.monotonic() - started:.0f} s)", flush=True)
        width, outcomes = max(map(len, names)), []
        for outcome in run_mutants(trees, mutants):
            outcomes.append(outcome)
            line = f"{outcome.result:<8}  {outcome.mutant.name:<{width}}  {outcome.seconds:>5.1f} s"
            print(f"{line}  {outcome.test.removeprefix('tests/')}".rstrip(), flush=True)
            if outcome.result == _BROKEN:
                print(_tail(outcome.output))
    others = [one for one in outcomes if one.result != _KILLED]
    n_killed, minutes = len(outcomes) - len(others), (time.monotonic() - started) / 60
    print(f"{n_killed} of {len(outcomes)} mutants killed; {minutes:.1f} minutes")
    for outcome in others:
        print(f"{outcome.result}: {outcome.mutant.name}")
    return int(bool(others))


def run_mutants(trees: Sequence[Path], mutants: Sequence[Mutant]) -> Iterator[Outcome]:
    """Run the tests of each mutant, as many in parallel as there are copies of the tree."""
    free: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def run(mutant: Mutant) -> Outcome:
        tree = free.get()
        try:
            return run_mutant(tree, mutant)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as threads:
        yield from threads.map(run, mutants)


def run_mutant(tree: Path, mutant: Mutant) -> Outcome:
    """Run the tests of a mutant in a copy of the tree, which is restored afterwards."""
    started = time.monotonic()
    try:
        with mutated(tree, mutant):
            code, output = run_tests(tree, mutant.tests)
    except MutantError as error:
        code, output = None, str(error)
    failed = _FAILED_TEST.search(output)
    result = {0: _SURVIVED, 1: _KILLED}.get(code, _BROKEN)  # pytest's exit codes
    test = failed[1] if failed and result == _KILLED else ""
    return Outcome(mutant, result, time.monotonic() - started, test, output)


def check_unmutated(tree: Path, mutants: Sequence[Mutant]) -> None:
    """Run all named tests without a mutant.

    Raises:
        MutantError: one fails, or is skipped: it would say nothing about a mutant.
    """
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    code, output = run_tests(tree, tests, TIMEOUT * 4)
    if code != 0:
        raise MutantError(f"the tests fail without a mutant\n{_tail(output)}")
    if skipped := _SKIPPED_TEST.findall(output):
        raise MutantError("tests are skipped here, and kill nothing:\n" + "\n".join(skipped))


def run_tests(tree: Path, tests: Sequence[str], timeout: float = TIMEOUT) -> tuple[int | None, str]:
    """Run tests in a copy of the tree up to the first that fails.

    Returns:
        pytest's exit code, None where they take longer than the timeout; and what it printed.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "pytest_timeout", "-m", "", "-rfEs", *tests]
    # A mutant may have the size and, to the second, the time of the file that it replaces, so that
    # Python would take bytecode of the one for that of the other.
    environment = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # to start in a second instead of two
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        try:
            done = subprocess.run(
                command,
                cwd=tree,
                env={**os.environ, **environment},
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
        printed.seek(0)
        output = printed.read()
    return code, output if code is not None else f"{output}\nno end within {timeout:.0f} s"


@contextmanager
def mutated(tree: Path, mutant: Mutant) -> Iterator[None]:
    """Apply a mutant to a copy of the tree; restore it in the end."""
    path = tree / mutant.path
    content = path.read_text(encoding="utf-8")
    path.write_text(apply_to(content, mutant), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(content, encoding="utf-8")


def apply_to(content: str, mutant: Mutant) -> str:
    """Return the content of a mutant's file with its change.

    Raises:
        MutantError: what it changes is not there once.
    """
    n_found = content.count(mutant.old)
    if n_found != 1:
        raise MutantError(
            f"{mutant.name}: the text that it changes must be in {mutant.path} once, but is there"
            f" {n_found} times: adapt tests/system/mutant_catalogue.py to the code"
        )
    return content.replace(mutant.old, mutant.new)


def copy_tree(root: Path, folder: Path) -> None:
    """Copy the files of a checkout that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():  # not one that is deleted and still in git's index
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)


def _tail(output: str, n_lines: int = 40) -> str:
    return "\n".join(output.splitlines()[-n_lines:])


if __name__ == "__main__":
    sys.exit(main())
