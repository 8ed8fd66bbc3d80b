import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from search.reporting import style


def page_svg(folder: Path, text: str, name: str = "one") -> str:
    with style.style():
        figure, axes = style.create_axes(text, "x", "y")
        axes.plot([1, 2], [1, 2], "o-", color=style.ACCENT)
        axes.text(1, 1, "in the way", gid=style.HALO)
        return style.save(figure, folder, name)


def test_a_figure_is_saved_as_files_and_for_the_page(tmp_path: Path) -> None:
    svg = page_svg(tmp_path, "title")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert style.ACCENT in (tmp_path / "one.svg").read_text()
    assert svg.startswith("<svg ")
    assert style.ACCENT not in svg
    assert "var(--accent)" in svg
    assert "http" not in svg
    assert '<g class="halo"' in svg


def test_marks_have_titles_in_the_page_and_in_the_file(tmp_path: Path) -> None:
    with style.style():
        figure, axes = style.create_axes("title", "x", "y")
        (line,) = axes.plot([1, 2], [1, 2])
        style.set_titles(line, ["curve 'a' \"<b>&\" $x$"])
        (points,) = axes.plot([1, 2, 3], [3, 2, 1], "o")
        style.set_titles(points, ["first", "url(#second)", "third"])
        svg = style.save(figure, tmp_path, "one")
    for text in (svg, (tmp_path / "one.svg").read_text()):
        ElementTree.fromstring(f'<r xmlns:xlink="x">{text[text.index("<svg") :]}</r>')
        assert re.findall(r"<title>(.*?)</title>", text) == [
            "curve &#39;a&#39; &#34;&lt;b&gt;&amp;&#34; $x$",
            *("first", "url(#second)", "third"),
        ]
        assert len(re.findall(r"<use [^/>]*><title>", text)) == 3
        assert "data-titles" not in text


def test_points_have_no_titles_where_one_of_them_is_not_drawn(tmp_path: Path) -> None:
    """The titles of the others would be those of their neighbours."""
    for values in ([3, float("nan"), 1], [3, 1000, 1]):
        with style.style():
            figure, axes = style.create_axes("title", "x", "y")
            (points,) = axes.plot([1, 2, 3], values, "o")
            axes.set_ylim(0, 4)
            style.set_titles(points, ["first", "second", "third"])
            svg = style.save(figure, tmp_path, "one")
        assert svg.count("<use ") > 2
        assert "<title>" not in svg
        assert "data-titles" not in svg


def test_ids_are_unique_and_references_are_found(tmp_path: Path) -> None:
    svg = page_svg(tmp_path, "title", "two")
    ids = re.findall(r' id="([^"]*)"', svg)
    used = re.findall(r'xlink:href="#([^"]*)"|url\(#([^)]*)\)', svg)
    assert ids
    assert all(name.startswith("two-") for name in ids)
    assert {a or b for a, b in used} <= set(ids)


def test_texts_are_no_markup(tmp_path: Path) -> None:
    svg = page_svg(tmp_path, r"<b>& $\nothing$ 日本")
    assert r">&lt;b&gt;&amp; $\nothing$ 日本</text>" in svg


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page_svg(tmp_path, "title") == page_svg(tmp_path, "title")


def test_long_names_that_start_alike_stay_different() -> None:
    names = ["timm/convnextv2_tiny.fcmae", "timm/convnextv2_tiny.fb_in1k", "resnet18"]
    assert style.shorten_apart(names) == [f"…{names[0][-15:]}", f"…{names[1][-15:]}", "resnet18"]
    assert style.shorten_apart(names[1:]) == ["timm/convnextv2…", "resnet18"]
    same_ends = [f"timm/convnextv2_{size}.fcmae_ft_in22k" for size in ("tiny", "base")]
    assert style.shorten_apart(same_ends) == same_ends


def test_long_names_are_shortened() -> None:
    assert style.shorten("sixteen letters!") == "sixteen letters!"
    assert style.shorten("seventeen letters") == "seventeen lette…"
