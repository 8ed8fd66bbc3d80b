"""The figures on the page of backbones are those of the networks and of timm."""

import re
from pathlib import Path

import pytest
import timm

from spaces.portfolio import PORTFOLIO
from trainables.models.cost import count_cost
from trainables.pretrained.imagenet_accuracy import _TIMM_PERCENT
from trainables.pretrained.licences import UNKNOWN, weights_licence

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w/.]+)` \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", re.MULTILINE)


def test_the_portfolio_is_on_the_page_with_its_costs_and_reasons() -> None:
    rows = ROW.findall(PAGE)
    assert {name: reason for name, _, _, reason in rows} == PORTFOLIO
    operations = [float(gflops) for _, _, gflops, _ in rows]
    assert operations == sorted(operations), "the cheapest first"
    total = 0.0
    for name, millions, gflops, _ in rows:
        cost = count_cost(name, 224)
        assert cost is not None
        assert f"{cost.parameters / 1e6:.1f}" == millions, name
        assert f"{cost.gflops:.1f}" == gflops, name
        total += cost.parameters * 4 / 1e6
    assert total == pytest.approx(500, abs=50), "megabytes of weights"
    assert "these ten (500 MB of weights)" in PAGE


def test_what_timm_states_is_counted() -> None:
    text = re.sub(r"\s+", " ", PAGE)
    names = timm.list_models(pretrained=True)
    unknown = [one for one in names if weights_licence(f"timm/{one}").name == UNKNOWN]
    assert f"all but {len(unknown)} of its {len(names):,} weights" in text
    assert f"for {len(_TIMM_PERCENT)} of timm's" in text
