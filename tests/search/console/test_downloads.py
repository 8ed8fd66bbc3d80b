import io

from rich.console import Console

from search.console.downloads import DownloadDisplay


def test_a_file_gets_one_line_per_download():
    stream = io.StringIO()
    with DownloadDisplay(Console(file=stream, width=80)) as display:
        display.show("timm/net/model.safetensors", 0, 12_000_000)
        display.show("timm/net/model.safetensors", 6_000_000, 12_000_000)
        display.show("timm/other [x]/model.safetensors", 1_000_000, 2_000_000_000)
    assert stream.getvalue() == (
        "downloading timm/net/model.safetensors: 12.0 MB\n"
        "downloading timm/other [x]/model.safetensors: 2,000.0 MB, from 1.0 on\n"
    )


def test_a_person_sees_a_bar():
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, force_interactive=True)
    with DownloadDisplay(console) as display:
        display.show("net", 0, 12_000_000)
        display.show("net", 6_000_000, 12_000_000)
        display._bars.refresh()
    assert "6.0/12.0 MB" in stream.getvalue()


def test_nothing_is_shown_where_nothing_is_downloaded():
    stream = io.StringIO()
    with DownloadDisplay(Console(file=stream, force_terminal=True)):
        pass
    assert stream.getvalue() == ""
