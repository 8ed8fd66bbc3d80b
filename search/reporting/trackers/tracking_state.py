"""Remember in the run's folder what a tracker has got already, so that a resumed run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainables.atomic_write import write_atomically
from trainables.json_text import parse_json


@dataclass
class SentTrial:
    """What a tracker has of a trial: its identifier there, how many epochs, the state."""

    key: str
    epochs: int = 0
    state: str = "running"


@dataclass
class TrackingState:
    """What a tracker has of a search.

    Attributes:
        path: The file in the run's folder.
        key: The tracker's identifier of the search; "" before it began.
        trials: By number.
    """

    path: Path
    key: str = ""
    trials: dict[int, SentTrial] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> TrackingState:
        """Read the file; one that is missing or damaged has nothing."""
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            sent = {int(number): SentTrial(**one) for number, one in content["trials"].items()}
            return cls(path, str(content["key"]), sent)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path)

    def write(self) -> None:
        """Write the file."""
        content = {"key": self.key, "trials": {n: asdict(one) for n, one in self.trials.items()}}
        with write_atomically(self.path) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
