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
from spaces.sources import did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(as_called(overview()))
        return 0
    if words[0] == "--version":
        print(version())
        return 0
    name = words[0]
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(
            f"error: there is no command {name!r}{hint} (there are: {', '.join(COMMANDS)})",
            file=sys.stderr,
        )
        return 2
    return int(import_module(f"search.{name}").main(words[1:]))


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
