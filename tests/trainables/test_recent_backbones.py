import pytest
import torch
from torch import nn

from trainables import recent_backbones
from trainables.models.backbones import Backbone
from trainables.recent_backbones import RecentBackbones


def backbone_of(n_bytes: int) -> Backbone:
    weights = nn.Linear(n_bytes // 4, 1, bias=False)
    return Backbone("of some size", [weights, *(nn.Identity() for _ in range(4))], 1)


def test_the_least_recently_used_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_backbones, "MAX_BYTES", 1000)
    created: list[str] = []
    kept = RecentBackbones()

    def get(name: str, n_bytes: int = 400) -> Backbone:
        def create() -> Backbone:
            created.append(name)
            return backbone_of(n_bytes)

        return kept.get(name, create)

    first = get("a")
    assert get("a") is first
    get("b")
    get("a")
    get("c")  # b was used less recently than a
    get("a")
    assert created == ["a", "b", "c"]
    get("b")
    assert created == ["a", "b", "c", "b"]
    large = get("large", 5000)
    assert get("large", 5000) is large, "one that is too large is kept alone"
    get("b")
    assert created == ["a", "b", "c", "b", "large", "b"]


def test_buffers_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_backbones, "MAX_BYTES", 1000)
    kept = RecentBackbones()
    with_buffer = backbone_of(4)
    with_buffer.register_buffer("statistics", torch.zeros(250))
    first = kept.get("a", lambda: with_buffer)
    assert kept.get("b", lambda: backbone_of(4)) is not first
    assert kept.get("a", lambda: backbone_of(4)) is not first
