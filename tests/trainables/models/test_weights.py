import hashlib
import re
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

from spaces.rules import BACKBONES
from trainables.models import weights
from trainables.models.weights import (
    WeightsError,
    copy_weights,
    find_weights,
    load_weights,
    pretrained_url,
)

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
    download = torch.hub.download_url_to_file

    def watched(*args: Any) -> None:
        asked.append(args)
        download(*args)

    monkeypatch.setattr(torch.hub, "download_url_to_file", watched)
    with pytest.raises(WeightsError) as caught:
        find_weights(["resnet18", "vgg16_bn"], None, tmp_path, url_of=lambda _: unreachable_url)
    message = str(caught.value)
    assert len(re.findall(r"no answer from 127\.0\.0\.1:\d+: .*refused", message)) == 2
    assert "- resnet18: looked in" in message
    assert "- vgg16_bn: looked in" in message
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SERVER_TIMEOUT_SECONDS", 0.1)
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
    monkeypatch.setitem(weights.PACKAGED, "tinynet", packaged)
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


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_load_weights_plain_wrapped_and_in_the_old_format(tmp_path, wrapped, zipped):
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / "net.pth"
    content = {"state_dict": state, "epoch": 3} if wrapped else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(path)
    assert list(loaded) == ["weight", "bias"]
    assert torch.equal(loaded["weight"], state["weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "must hold a state dict, but holds a list"),
        ({}, "must hold a state dict, but holds a dict"),
        ({"epoch": 3}, "must hold a state dict, but 'epoch' in it is a int"),
        (nn.Linear(1, 1), "cannot be read as weights: Weights only load failed"),
    ],
)
def test_load_weights_raises_for_other_content(tmp_path, content, reason):
    path = tmp_path / "net.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=f"^{path} {reason}"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 truncated", None])
def test_load_weights_raises_for_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "net.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path} cannot be read as weights: ."):
        load_weights(path)


def test_copy_weights_accepts_old_keys_and_files_without_counters():
    net = DenseNet(growth_rate=4, block_config=(2, 1, 1, 1), num_init_features=8, num_classes=2)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer2.norm.1.weight" in old
    with torch.device("meta"):
        copy = DenseNet(growth_rate=4, block_config=(2, 1, 1, 1), num_init_features=8)
    copy_weights(copy, old, "densenet", "classifier")
    fitted = copy.features.state_dict()
    assert all(torch.equal(fitted[k], v) for k, v in net.features.state_dict().items())


def test_copy_weights_accepts_the_old_keys_of_vit():
    net = VisionTransformer(32, 16, 2, 2, 8, 16)
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in net.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in old
    copy = VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3)
    copy_weights(copy, old, "vit", "heads")
    fitted = copy.encoder.state_dict()
    assert all(torch.equal(fitted[k], v) for k, v in net.encoder.state_dict().items())


def test_copy_weights_converts_to_the_networks_precision():
    net = nn.Linear(3, 2)
    copy_weights(net, {k: v.half() for k, v in net.state_dict().items()}, "net", None)
    assert net.weight.dtype == torch.float32
    assert net.weight.requires_grad
