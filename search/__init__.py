"""Search for the best image classifier: commands, and the packages behind them."""

import sys

if sys.platform == "win32":  # no fcntl, no SIGALRM, and no Ray cluster
    print(
        "error: classifier-search runs on Linux and macOS; on Windows run it within WSL2"
        " (docs/install.md)",
        file=sys.stderr,
    )
    raise SystemExit(2)
