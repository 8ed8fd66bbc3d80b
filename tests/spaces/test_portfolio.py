from spaces.portfolio import PORTFOLIO
from spaces.rules import RULES


def test_the_portfolio_has_eight_to_twelve_backbones_each_with_its_reason() -> None:
    assert 8 <= len(PORTFOLIO) <= 12
    assert [RULES["backbone"].broken_by("backbone", name) for name in PORTFOLIO] == [None] * len(
        PORTFOLIO
    )
    assert all(len(reason) > 20 for reason in PORTFOLIO.values())
    assert len(set(PORTFOLIO.values())) == len(PORTFOLIO)
