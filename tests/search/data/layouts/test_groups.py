import pytest

from search.data.image_files import DataError
from search.data.layouts.groups import groups_by_pattern

NAMES = ("cat/p1_0.jpg", "cat/p2_0.jpg", "dog/p1_7.jpg", "dog/odd.jpg")


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"^(p\d+)_", ("p1", "p2", "p1", "")),
        (r"p\d", ("p1", "p2", "p1", "")),
        (r"^(\w+)/", ("cat", "cat", "dog", "dog")),
        (r"^(x)|p1", ("", "", "", "")),
        (r"p(1)_|(odd)|p(2)_", ("1", "2", "1", "odd")),
    ],
)
def test_groups_by_pattern(pattern: str, groups: tuple[str, ...]) -> None:
    if any(groups):
        assert groups_by_pattern(NAMES, pattern) == groups
        return
    with pytest.raises(DataError) as caught:
        groups_by_pattern(NAMES, pattern)
    assert str(caught.value) == (
        f"--group-by must match the names of images, but {pattern!r} matches none of 4, such as"
        " 'p1_0.jpg': correct the pattern"
    )


def test_decomposed_characters_are_found() -> None:
    names = ("cat/jose\u0301_1.jpg", "dog/jos\u00e9_2.jpg", "dog/x.jpg")
    assert groups_by_pattern(names, "^(jos\u00e9)_") == ("jos\u00e9", "jos\u00e9", "")
