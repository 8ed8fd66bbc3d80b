import gc
import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import socket
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spaces.sources import (
    Arrays,
    Source,
    SourceError,
    caltech101,
    did_you_mean,
    digits,
    fashion_mnist,
    folder,
    rendered_digits,
)

SIX = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def fashion_contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    counts = {"train": 30, "t10k": 20}
    contents = {}
    for part, count in counts.items():
        contents[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)))
        contents[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return contents


def write_fashion(raw: Path, decoded: bool = False) -> None:
    raw.mkdir(parents=True)
    for name, content in fashion_contents().items():
        if decoded:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)


def opened(source: Source, data: Path | None, cache: Path) -> Arrays:
    found = source.open(data, cache)
    assert isinstance(found, Arrays)
    assert len(found.images) == len(found.labels) == len(found.names) == len(found.splits)
    assert len(set(found.names)) == len(found.names)
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int64
    assert found.labels.min() >= 0
    assert found.labels.max() < len(found.classes)
    return found


# --- a folder ----------------------------------------------------------------------------------


def test_folder_is_the_data_folder(tmp_path: Path) -> None:
    assert folder().open(tmp_path, tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_folder_without_data_explains_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        folder(obtain="get it from example.org and unpack it").open(None, tmp_path)
    assert str(caught.value) == (
        "this space brings no images of its own: give --data DIR, a folder that holds a folder"
        " per class, or train/ [val/] test/ of those; get it from example.org and unpack it"
    )


def test_open_suggests_a_name_for_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError) as caught:
        folder().open(tmp_path / "imagse", tmp_path)
    assert str(caught.value) == (
        f"--data must name a folder, but there is no {tmp_path}/imagse; did you mean 'images'?"
    )


def test_open_raises_if_data_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    with pytest.raises(SourceError, match=r"set.zip is damaged \(File is not a zip file\): "):
        folder().open(tmp_path / "set.zip", tmp_path)


@pytest.mark.parametrize("classes", ["camera", ("camera",), (), ["camera", "brain"]])
def test_classes_must_be_a_tuple_of_two_or_more(classes: object) -> None:
    with pytest.raises(SourceError, match=r"^classes must be a tuple of two or more names"):
        folder(classes=classes)  # type: ignore[arg-type]


def test_classes_must_differ() -> None:
    with pytest.raises(SourceError, match=r"^classes must all differ"):
        folder(classes=("caf\u00e9", "cafe\u0301"))
    with pytest.raises(SourceError, match=r"^classes must all differ, but got \('a', 'b', 'a'\)$"):
        caltech101(("a", "b", "a"))


def test_sources_are_equal_and_can_be_pickled() -> None:
    assert caltech101(SIX) == caltech101(SIX)
    assert caltech101(SIX) != caltech101()
    for source in (caltech101(SIX), fashion_mnist(), digits(), rendered_digits(), folder()):
        assert pickle.loads(pickle.dumps(source)) == source


def test_did_you_mean() -> None:
    assert did_you_mean("face", SIX) == "; did you mean 'Faces'?"
    assert did_you_mean("FACES", SIX) == "; did you mean 'Faces'?"
    assert did_you_mean("zoo", SIX) == ""


@pytest.mark.parametrize("source", [caltech101(SIX), fashion_mnist(), digits(), rendered_digits()])
def test_every_set_accepts_a_folder_of_class_folders(source: Source, tmp_path: Path) -> None:
    (tmp_path / "camera").mkdir()
    assert source.open(tmp_path, tmp_path / "cache") == tmp_path


# --- sets that lie in the package --------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    found = opened(digits(), None, tmp_path)
    assert found.images.shape == (1797, 8, 8)
    assert (found.images.min(), found.images.max()) == (0, 255)
    assert len(np.unique(found.images)) == 17
    assert found.classes == tuple("0123456789")
    assert set(found.splits) == {None}


def test_rendered_digits(tmp_path: Path) -> None:
    found = opened(rendered_digits(), None, tmp_path)
    assert found.classes == tuple("0123456789")
    assert set(found.labels) == set(range(10))
    again = opened(rendered_digits(), None, tmp_path)
    np.testing.assert_array_equal(found.images, again.images)


# --- Fashion-MNIST -----------------------------------------------------------------------------


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("below", ["FashionMNIST/raw", "raw", "."])
def test_fashion_layouts(tmp_path: Path, below: str, decoded: bool) -> None:
    write_fashion(tmp_path / "data" / below, decoded)
    found = opened(fashion_mnist(), tmp_path / "data", tmp_path / "cache")
    assert found.images.shape == (50, 28, 28)
    assert found.names[0] == "train/00000"
    assert found.names[-1] == "test/00019"
    assert found.splits == ("train",) * 30 + ("test",) * 20
    expected = np.frombuffer(fashion_contents()["t10k-images-idx3-ubyte"][16:], np.uint8)
    np.testing.assert_array_equal(found.images[30:].ravel(), expected)


def test_fashion_equals_torchvisions(shared_data: Path, tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    found = opened(fashion_mnist(), shared_data, tmp_path)
    assert found.classes == tuple(FashionMNIST.classes)
    for split, train in (("train", True), ("test", False)):
        theirs = FashionMNIST(shared_data, train=train)
        rows = np.array([s == split for s in found.splits])
        np.testing.assert_array_equal(found.images[rows], theirs.data.numpy())
        np.testing.assert_array_equal(found.labels[rows], theirs.targets.numpy())


def test_open_names_missing_files_of_fashion(tmp_path: Path) -> None:
    write_fashion(tmp_path / "raw")
    (tmp_path / "raw" / FASHION_FILES[1]).unlink()
    with pytest.raises(SourceError) as caught:
        fashion_mnist().open(tmp_path, tmp_path)
    assert str(caught.value) == (
        f"Fashion-MNIST is four files, but {tmp_path}/raw lacks train-labels-idx1-ubyte:"
        " copy them there, or download the set by omitting --data"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file of bytes"),
        (b"\0\0\x08", "not an idx file of bytes"),
        (b"\0\0\x0d\x03" + bytes(12), "not an idx file of bytes"),
        (fashion_contents()[FASHION_FILES[0]][:-1], "must have 23536 bytes, but has 23535"),
        (idx(np.zeros((29, 28, 28))), "do not match"),
        (idx(np.zeros(30)), "do not match"),
    ],
)
def test_open_raises_for_damaged_fashion(tmp_path: Path, content: bytes, message: str) -> None:
    write_fashion(tmp_path / "raw")
    (tmp_path / "raw" / FASHION_FILES[0]).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        fashion_mnist().open(tmp_path, tmp_path)


def test_open_raises_for_damaged_compressed_fashion(tmp_path: Path) -> None:
    write_fashion(tmp_path / "raw", decoded=True)
    path = tmp_path / "raw" / f"{FASHION_FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cannot be read"):
        fashion_mnist().open(tmp_path, tmp_path)


# --- Caltech-101 -------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["101_ObjectCategories", "caltech101/101_ObjectCategories", "."])
def test_caltech_layouts(tmp_path: Path, below: str) -> None:
    (tmp_path / below / "camera").mkdir(parents=True)
    (tmp_path / below / "brain").mkdir()
    found = caltech101(("camera", "brain")).open(tmp_path, tmp_path / "cache")
    assert found == tmp_path / below


def test_caltech_ignores_the_background() -> None:
    assert caltech101().ignored == ("BACKGROUND_Google",)


# --- downloads ---------------------------------------------------------------------------------


@dataclass
class Site:
    """A web server on this machine."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Files whose transfer breaks off half-way."""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            name = self.path.lstrip("/")
            content = it.files.get(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                it.asked.append(name)
                self.wfile.write(content[: len(content) // 2] if name in it.cut else content)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it = Site(f"http://127.0.0.1:{server.server_port}/")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield it
    server.shutdown()
    thread.join()
    server.server_close()
    with warnings.catch_warnings():  # torchvision leaves the answer to a failed request open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def fashion_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The set on our server, with hashes to match."""
    from torchvision.datasets import FashionMNIST

    site.files = {f"{n}.gz": gzip.compress(c, mtime=0) for n, c in fashion_contents().items()}
    hashes = [(name, hashlib.md5(content).hexdigest()) for name, content in site.files.items()]
    monkeypatch.setattr(FashionMNIST, "mirrors", [site.url])
    monkeypatch.setattr(FashionMNIST, "resources", hashes)
    return site


def test_fashion_is_downloaded_once(fashion_site: Site, tmp_path: Path) -> None:
    cache = tmp_path / "not yet" / "cache"
    assert len(opened(fashion_mnist(), None, cache).images) == 50
    assert set(fashion_site.asked) == set(fashion_site.files)
    fashion_site.asked.clear()
    assert len(opened(fashion_mnist(), None, cache).images) == 50
    assert fashion_site.asked == []
    assert [path.name for path in cache.iterdir()] == ["FashionMNIST"]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("trouble", ["cut", "missing", "wrong"])
def test_a_failed_fashion_download_raises_and_can_be_repeated(
    fashion_site: Site, tmp_path: Path, trouble: str
) -> None:
    name = f"{FASHION_FILES[2]}.gz"
    good = fashion_site.files[name]
    if trouble == "cut":
        fashion_site.cut = {name}
    elif trouble == "missing":
        del fashion_site.files[name]
    else:
        fashion_site.files[name] = good[:-20] + bytes(20)
    with pytest.raises(SourceError) as caught:
        fashion_mnist().open(None, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"Fashion-MNIST could not be downloaded to {tmp_path} (page: https:")
    assert f"Tried {fashion_site.url}, got:" in message
    assert ("404" in message) == (trouble == "missing")
    assert message.endswith("get the set from that page and give its folder with --data DIR")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []

    fashion_site.files[name], fashion_site.cut = good, set()
    assert len(opened(fashion_mnist(), None, tmp_path).images) == 50


def test_the_rest_of_a_killed_download_is_not_used(fashion_site: Site, tmp_path: Path) -> None:
    (tmp_path / "download-killed" / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "download-killed" / "FashionMNIST" / "raw" / FASHION_FILES[0]).touch()
    assert len(opened(fashion_mnist(), None, tmp_path).images) == 50


def test_open_raises_if_the_cache_cannot_be_created(fashion_site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(SourceError, match="File exists"):
        fashion_mnist().open(None, tmp_path / "cache")
    assert fashion_site.asked == []


def test_open_raises_after_a_timeout(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("spaces.downloads.TIMEOUT_SECONDS", 0.2)
        port = silent.getsockname()[1]
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        with pytest.raises(SourceError, match="timed out"):
            fashion_mnist().open(None, tmp_path)
    assert socket.getdefaulttimeout() is None


def test_a_set_that_another_run_has_downloaded_meanwhile_is_used(
    fashion_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    fashion_mnist().open(None, other)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if not target.exists():
            shutil.copytree(other / "FashionMNIST", target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert len(opened(fashion_mnist(), None, tmp_path / "cache").images) == 50
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["FashionMNIST"]


def caltech_zip() -> bytes:
    """A small set in the two layers of the real one: a zip around a tar.gz."""
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "JPEG")
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for category in ("BACKGROUND_Google", "brain", "camera"):
            member = tarfile.TarInfo(f"101_ObjectCategories/{category}/image_0001.jpg")
            member.size = len(image.getvalue())
            tar.addfile(member, io.BytesIO(image.getvalue()))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", inner.getvalue())
    return outer.getvalue()


@pytest.fixture
def caltech_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The set on our server: torchvision's own download, with another address and hash."""
    from torchvision.datasets import caltech

    site.files = {"caltech-101.zip": caltech_zip()}
    md5 = hashlib.md5(site.files["caltech-101.zip"]).hexdigest()
    theirs = caltech.download_and_extract_archive

    def redirected(url: str, **options: object) -> None:
        assert url == "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
        theirs(f"{site.url}caltech-101.zip", **{**options, "md5": md5})

    monkeypatch.setattr(caltech, "download_and_extract_archive", redirected)
    return site


torchvision_names_no_filter = pytest.mark.filterwarnings(
    "ignore:Python 3.14 will, by default, filter extracted tar archives:DeprecationWarning"
)
"""Python 3.12 and 3.13 warn of how it unpacks the archive, whose digest it has checked."""


@torchvision_names_no_filter
def test_caltech_is_downloaded_once(caltech_site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        found = caltech101().open(None, tmp_path)
        assert found == tmp_path / "caltech101" / "101_ObjectCategories"
        assert (found / "camera" / "image_0001.jpg").is_file()
        caltech_site.files.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["caltech101"]


@torchvision_names_no_filter
@pytest.mark.parametrize("trouble", ["cut", "missing"])
def test_a_failed_caltech_download_raises_and_can_be_repeated(
    caltech_site: Site, tmp_path: Path, trouble: str
) -> None:
    files = dict(caltech_site.files)
    if trouble == "cut":
        caltech_site.cut = set(files)
    else:
        caltech_site.files = {}
    with pytest.raises(SourceError) as caught:
        caltech101().open(None, tmp_path)
    assert str(caught.value).startswith(
        f"Caltech-101 could not be downloaded to {tmp_path}"
        " (page: https://data.caltech.edu/records/mzrjq-6wc02): "
    )
    assert list(tmp_path.iterdir()) == []

    caltech_site.files, caltech_site.cut = files, set()
    assert caltech101().open(None, tmp_path) == tmp_path / "caltech101" / "101_ObjectCategories"


@torchvision_names_no_filter
def test_a_partly_unpacked_caltech_is_not_used(
    caltech_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import caltech

    def broken(path: str, to: str) -> None:
        (Path(to) / "101_ObjectCategories" / "brain").mkdir(parents=True)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caltech, "extract_archive", broken)
        with pytest.raises(SourceError, match="No space left on device"):
            caltech101().open(None, tmp_path)
    assert list(tmp_path.iterdir()) == []
    found = caltech101().open(None, tmp_path)
    assert isinstance(found, Path)
    assert (found / "camera").is_dir()


def test_an_interrupted_download_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import caltech

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(caltech, "download_and_extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caltech101().open(None, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None
