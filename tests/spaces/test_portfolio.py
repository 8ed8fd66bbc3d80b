from pathlib import Path

from spaces.portfolio import PORTFOLIO, is_portfolio, portfolio_backbones
from spaces.rules import RULES
from trainables.pretrained.licences import UNKNOWN, weights_licence


def test_the_portfolio_has_eight_to_twelve_backbones_each_with_its_reason() -> None:
    assert 8 <= len(PORTFOLIO) <= 12
    problems = [RULES["backbone"].broken_by("backbone", name) for name in PORTFOLIO]
    assert problems == [None] * len(PORTFOLIO)
    assert all(len(reason) > 20 for reason in PORTFOLIO.values())
    assert len(set(PORTFOLIO.values())) == len(PORTFOLIO)


def test_a_portfolio_is_known_in_any_order() -> None:
    assert is_portfolio(list(reversed(PORTFOLIO)))
    assert not is_portfolio(list(PORTFOLIO)[1:])
    assert not is_portfolio([*PORTFOLIO, "vgg16_bn"])


def test_a_folder_of_weights_adds_its_backbones(tmp_path: Path) -> None:
    files = ("vgg16_bn.pth", "mobilenet_v2.pth", "notes.txt", "unknown.pth")
    for name in (*files, "convnext_nano.safetensors", "eva02_tiny_patch14_224.bin"):
        (tmp_path / name).touch()
    assert portfolio_backbones(None) == portfolio_backbones(tmp_path / "no") == tuple(PORTFOLIO)
    # The file of convnext_nano is that of the portfolio's, which has a tag.
    added = ("timm/eva02_tiny_patch14_224", "vgg16_bn")
    assert portfolio_backbones(tmp_path) == (*PORTFOLIO, *added)


def test_every_licence_allows_all_uses() -> None:
    for name in PORTFOLIO:
        licence = weights_licence(name)
        assert licence.name != UNKNOWN, name
        assert not licence.restriction, name
