import hashlib
import re
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import close_session

from spaces.rules import BACKBONES
from tests.fixtures.hub_server import HubServer, hub_server
from trainables.pretrained import url_files, weight_files
from trainables.pretrained.hub import Hub
from trainables.pretrained.timm_weights import timm_source
from trainables.pretrained.weight_files import (
    find_available_weights,
    find_local_weights,
    find_weights,
    pretrained_url,
)
from trainables.pretrained.weights import WeightsError

CONTENT = b"the weights of a network" * 1000
FILE_NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server:
    """A local web server that answers every request as `answer` tells it to."""

    def __init__(self) -> None:
        self.answer = "file"
        self.n_requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.n_requests += 1
                if server.answer == "404":
                    self.send_error(404)
                    return
                if server.answer == "nothing":
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                content = {"file": CONTENT, "cut": CONTENT[:100], "other": CONTENT[::-1]}
                self.wfile.write(content[server.answer])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def url_of(self, backbone: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{backbone}/{FILE_NAME}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def unreachable_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{FILE_NAME}"


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> str:
        raise AssertionError("a download was started")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)


def test_find_weights_downloads_a_file_once(tmp_path, server):
    cache = tmp_path / "not" / "there yet"
    found = find_weights(["resnet18", "resnet18", "cnn"], None, cache, url_of=server.url_of)
    assert found == {"resnet18": cache / FILE_NAME}
    assert found["resnet18"].read_bytes() == CONTENT
    assert find_weights(["resnet18"], None, cache, url_of=server.url_of) == found
    assert server.n_requests == 1
    assert [path.name for path in cache.iterdir()] == [FILE_NAME]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("answer", ["cut", "other"])
def test_a_damaged_download_is_deleted_and_can_be_repeated(tmp_path, server, answer):
    server.answer = answer
    with pytest.raises(WeightsError) as caught:
        find_weights(["resnet18"], None, tmp_path, url_of=server.url_of)
    assert str(caught.value) == (
        "Pretrained weights are unavailable:\n"
        f"  - resnet18: looked in {tmp_path}: no {FILE_NAME} in it;"
        f" tried {server.url_of('resnet18')}: the file arrived damaged or truncated"
        " (its hash is wrong); try again\n"
        "Give a folder of <backbone>.pth files with --weights DIR, or set"
        ' weights="none" in the space to train from scratch.'
    )
    assert list(tmp_path.iterdir()) == []
    server.answer = "file"
    found = find_weights(["resnet18"], None, tmp_path, url_of=server.url_of)
    assert found["resnet18"].read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path, server):
    (tmp_path / FILE_NAME).write_bytes(CONTENT[:100])
    found = find_weights(["resnet18"], None, tmp_path, url_of=server.url_of)
    assert found["resnet18"].read_bytes() == CONTENT


def test_find_weights_raises_if_the_server_has_no_such_file(tmp_path, server):
    server.answer = "404"
    (tmp_path / FILE_NAME).write_bytes(CONTENT[:100])
    with pytest.raises(WeightsError, match="the server answered 404 Not Found\n"):
        find_weights(["resnet18", "resnet34"], None, tmp_path, url_of=server.url_of)
    assert server.n_requests == 2
    assert list(tmp_path.iterdir()) == []


def test_find_weights_raises_if_the_server_closes_the_connection(tmp_path, server):
    server.answer = "nothing"
    with pytest.raises(WeightsError, match=r"the download broke off \(RemoteDisconnected\); try"):
        find_weights(["resnet18"], None, tmp_path, url_of=server.url_of)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_tried_once(tmp_path, unreachable_url, monkeypatch):
    asked = []
    urlopen = url_files.urlopen

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(args)
        return urlopen(*args, **options)

    monkeypatch.setattr(url_files, "urlopen", watched)
    with pytest.raises(WeightsError) as caught:
        find_weights(["resnet18", "vgg16_bn"], None, tmp_path, url_of=lambda _: unreachable_url)
    message = str(caught.value)
    assert len(re.findall(r"no answer from 127\.0\.0\.1:\d+: .*refused", message)) == 2
    assert "- resnet18: looked in" in message
    assert "- vgg16_bn: looked in" in message
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(url_files, "SERVER_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/{FILE_NAME}"
        with pytest.raises(WeightsError, match="timed out"):
            find_weights(["resnet18"], None, tmp_path, url_of=lambda _: url)


def test_find_weights_raises_if_the_cache_cannot_be_written(tmp_path, server):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=f"looked in {blocked}.*(exists|Not a directory)"):
        find_weights(["resnet18"], None, blocked, url_of=server.url_of)


@pytest.mark.usefixtures("no_download")
def test_weights_dir_replaces_downloads(tmp_path):
    (tmp_path / "resnet18.pth").touch()
    (tmp_path / "tinynet.pth").touch()
    found = find_weights(["resnet18", "tinynet", "cnn"], tmp_path, tmp_path / "cache")
    assert found == {name: tmp_path / f"{name}.pth" for name in ("resnet18", "tinynet")}
    with pytest.raises(WeightsError) as caught:
        find_weights(["resnet18", "resnet34", "vgg16_bn"], tmp_path, tmp_path / "cache")
    assert str(caught.value).splitlines()[1:3] == [
        f"  - {name}: looked in {tmp_path}: no {name}.pth in it; put the file there,"
        f" torchvision's is {pretrained_url(name)}"
        for name in ("resnet34", "vgg16_bn")
    ]
    with pytest.raises(WeightsError, match=f"looked in {tmp_path}/no: no such folder"):
        find_weights(["resnet18"], tmp_path / "no", tmp_path / "cache")


@pytest.mark.usefixtures("no_download")
def test_tinynet_is_part_of_the_package(tmp_path, monkeypatch):
    packaged = tmp_path / "tinynet.pth"
    monkeypatch.setitem(weight_files.PACKAGED, "tinynet", packaged)
    with pytest.raises(WeightsError, match=r"tinynet: looked for .*the package lacks it"):
        find_weights(["tinynet"], None, tmp_path)
    packaged.touch()
    assert find_weights(["tinynet"], None, tmp_path) == {"tinynet": packaged}
    assert find_weights(["tinynet"], tmp_path / "empty", tmp_path) == {"tinynet": packaged}


def test_every_other_backbone_has_an_address_with_a_hash():
    for backbone in set(BACKBONES) - {"tinynet", "cnn"}:
        url = pretrained_url(backbone)
        assert re.search(r"^https://download\.pytorch\.org/models/.*-[0-9a-f]{8,}\.pth$", url), url


def test_find_weights_raises_for_a_file_name_without_a_hash(tmp_path):
    with pytest.raises(WeightsError, match="its file name holds no hash"):
        find_weights(["resnet18"], None, tmp_path, url_of=lambda _: "http://127.0.0.1/net.pth")


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("mobilenet_v2", "mobilenet_v2.safetensors"),
        ("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth"),  # torchvision's first version
        ("shufflenet_v2_x0_5", "shufflenetv2_x0.5-f707e7126e.pth"),
        ("tinynet", "tinynet.pth"),
        ("timm/tf_efficientnet_lite0", "tf_efficientnet_lite0.pth"),
        ("timm/tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k.safetensors"),
        ("timm/tf_efficientnet_lite0", "tf_efficientnet_lite0-0aa007d2.pth"),
        ("timm/tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0.in1k.bin"),
        ("timm/tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0.in1k/model.safetensors"),
    ],
)
def test_a_folder_may_name_its_files_as_they_are_published(tmp_path, backbone, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert find_weights([backbone], tmp_path, tmp_path / "cache") == {backbone: path}
    assert find_local_weights(backbone, tmp_path, tmp_path / "cache") == path


def test_a_file_without_a_tag_has_the_default_weights_and_no_others(tmp_path):
    (tmp_path / "resnet50.safetensors").touch()
    names = ["timm/resnet50", "timm/resnet50.a1_in1k", "timm/resnet50.ram_in1k"]
    found, problems = find_available_weights(names, tmp_path, tmp_path)
    assert list(found) == names[:2]
    assert {name: reason() for name, reason in problems.items()} == {
        "timm/resnet50.ram_in1k": f"looked in {tmp_path}: no resnet50.ram_in1k.safetensors or"
        " resnet50.ram_in1k.pth in it; put the file there, timm's is at"
        " https://huggingface.co/timm/resnet50.ram_in1k"
    }


def test_timm_is_not_asked_for_names_that_no_file_has(tmp_path, monkeypatch):
    """Importing it takes seconds, with which a run would begin."""
    monkeypatch.setattr(weight_files, "timm_source", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    (tmp_path / "mobilenet_v2.pth").touch()
    (tmp_path / "resnet50.a1_in1k.safetensors").touch()
    names = ["mobilenet_v2", "resnet18", "timm/resnet50.a1_in1k", "timm/convnext_nano.in12k"]
    found, problems = find_available_weights(names, tmp_path, tmp_path)
    assert list(found) == ["mobilenet_v2", "timm/resnet50.a1_in1k"]
    assert list(problems) == ["resnet18", "timm/convnext_nano.in12k"]


@pytest.fixture
def hub_with_lite0(tmp_path: Path) -> Iterator[tuple[HubServer, Hub]]:
    with hub_server() as server:
        server.files["timm/tf_efficientnet_lite0.in1k/model.safetensors"] = CONTENT
        yield server, Hub(server.endpoint, tmp_path / "hub")
    close_session()


def test_weights_of_timm_come_from_the_hub(tmp_path, hub_with_lite0):
    server, hub = hub_with_lite0
    name, cache = "timm/tf_efficientnet_lite0", tmp_path / "cache"
    assert find_local_weights(name, None, cache, hub) is None
    shown: list[tuple[str, int, int]] = []
    found = find_weights([name], None, cache, hub=hub, show=lambda *now: shown.append(now))
    assert found[name].read_bytes() == CONTENT
    assert shown[-1][1:] == (len(CONTENT), len(CONTENT))
    asked = len(server.asked)
    assert find_weights([f"{name}.in1k"], None, cache, hub=hub) == {f"{name}.in1k": found[name]}
    assert find_local_weights(name, None, cache, hub) == found[name]
    assert len(server.asked) == asked


def test_a_hub_that_is_away_is_asked_once_and_the_ways_out_are_named(tmp_path, hub_with_lite0):
    server, hub = hub_with_lite0
    server.status = 503
    names = ["timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite2", "tinynet"]
    with pytest.raises(WeightsError) as caught:
        find_weights(names, None, tmp_path, hub=hub)
    where = f"looked in {hub.cache}: no timm/tf_efficientnet_lite"
    assert str(caught.value) == (
        "Pretrained weights are unavailable:\n"
        f"  - timm/tf_efficientnet_lite0: {where}0.in1k in it; {server.endpoint} answered 503"
        " Service Unavailable\n"
        f"  - timm/tf_efficientnet_lite2: {where}2.in1k in it; {server.endpoint} answered 503"
        " Service Unavailable\n"
        "Give a folder of their files with --weights DIR, name a mirror of the hub by HF_ENDPOINT,"
        " bring its cache from another machine and set HF_HUB_OFFLINE=1, or set"
        ' weights="none" in the space to train from scratch.'
    )
    assert len(server.asked) == 1
    found, problems = find_available_weights(names, None, tmp_path, hub=hub)
    assert list(found) == ["tinynet"]
    assert list(problems) == names[:2]


def test_what_earlier_downloads_left_is_used_if_its_hash_is_right(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    left = tmp_path / "torch" / "hub" / "checkpoints" / FILE_NAME
    left.parent.mkdir(parents=True)
    left.write_bytes(CONTENT)
    url = f"http://127.0.0.1:1/{FILE_NAME}"
    assert find_weights(["resnet18"], None, tmp_path, url_of=lambda _: url) == {"resnet18": left}
    left.write_bytes(CONTENT[:100])
    with pytest.raises(WeightsError, match="no answer from 127"):
        find_weights(["resnet18"], None, tmp_path, url_of=lambda _: url)
    assert left.is_file()  # it is not ours to delete


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("timm/resnet50.no_such_tag", "timm publishes no weights of resnet50.no_such_tag"),
        ("timm/resnet18d", None),
    ],
)
def test_timm_publishes_weights_of_some_names(name, problem):
    if problem is None:
        assert timm_source(name).repo == f"{name}.ra2_in1k"
        return
    with pytest.raises(WeightsError, match=re.escape(problem)):
        timm_source(name)


def test_every_name_of_timm_with_weights_has_a_source_that_can_be_read():
    for name in timm.list_models(pretrained=True):
        source = timm_source(f"timm/{name}")
        assert source.repo or source.url.endswith((".pth", ".pth.tar")), name
        assert source.files[0].endswith(".safetensors")


def test_a_users_own_function_has_no_published_weights(tmp_path):
    assert find_weights(["mynets:build"], None, tmp_path) == {}


@pytest.mark.parametrize(
    ("backbone", "file", "folder", "source"),
    [
        ("cnn", None, None, "random"),
        ("mobilenet_v2", None, None, "random"),
        ("mynets:build", None, None, "mynets:build"),
        ("tinynet", weight_files.PACKAGED["tinynet"], None, "this package"),
        ("resnet18", Path("d/resnet18.pth"), Path("d"), "resnet18.pth in --weights"),
        (
            "resnet18",
            Path("c/x.pth"),
            None,
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        ),
        (
            "timm/resnet18",
            Path("c/model.safetensors"),
            None,
            "https://huggingface.co/timm/resnet18.a1_in1k",
        ),
    ],
)
def test_sources_of_weights(backbone, file, folder, source):
    assert weight_files.describe_source(backbone, file, folder) == source
