"""List the commands, or run one of them.

```
python -m search
python -m search run --data photos
```
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from search.console.commands import COMMANDS, as_called, version
from search.console.output import command, print_error
from spaces.sources import did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        return _explain(words)
    return int(import_module(f"search.{words[0]}").main(words[1:]))


@command()
def _explain(words: Sequence[str]) -> int:
    """Print the overview, the version, or that there is no such command; return the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(as_called(overview()))
        return 0
    if words[0] == "--version":
        print(version())
        return 0
    hint = did_you_mean(words[0], COMMANDS)
    print_error(f"there is no command {words[0]!r}{hint} (there are: {', '.join(COMMANDS)})")
    return 2


def overview() -> str:
    """Return the list of commands, and how to begin."""
    width = max(map(len, COMMANDS))
    lines = [f"  python -m search.{name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        (
            f"{version()}: find the best image classifier for a folder of images.",
            "",
            *lines,
            "",
            "Each of them explains its options with --help. To begin, with a folder per class:",
            "",
            "  python -m search.run --data photos --time-budget 30m",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
