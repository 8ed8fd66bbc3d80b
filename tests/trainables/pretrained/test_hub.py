import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic

import pytest
from huggingface_hub import close_session, hf_hub_download
from huggingface_hub import constants as hub_constants

from tests.fixtures.hub_server import COMMIT, HubServer, hub_server
from trainables.pretrained import hub
from trainables.pretrained.hub import Hub, HubError, HubUnreachableError

REPO = "timm/net.in1k"
CONTENT = bytes(range(256)) * 12_000
DOWNLOAD = f"GET /elsewhere/{REPO}/model.safetensors"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as server:
        server.files[f"{REPO}/model.safetensors"] = CONTENT
        server.files[f"{REPO}/pytorch_model.bin"] = b"pickled"
        yield server
    close_session()


@pytest.fixture
def local_hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "hub")


def test_a_file_is_downloaded_once_where_others_find_it(server, local_hub):
    assert local_hub.find(REPO) is None
    shown: list[tuple[str, int, int]] = []
    path = local_hub.fetch(REPO, show=lambda *progress: shown.append(progress))
    assert path.read_bytes() == CONTENT
    assert shown[0] == (f"{REPO}/model.safetensors", 0, len(CONTENT))
    assert shown[-1] == (f"{REPO}/model.safetensors", len(CONTENT), len(CONTENT))
    assert f"/resolve/{COMMIT}/" in server.asked[1]  # the bytes are of the commit that was named
    asked = len(server.asked)
    assert local_hub.fetch(REPO) == local_hub.find(REPO) == path
    assert len(server.asked) == asked
    # huggingface_hub itself, without a network, takes the file for its own.
    found = hf_hub_download(
        REPO, "model.safetensors", cache_dir=local_hub.cache, local_files_only=True
    )
    assert Path(found) == path
    assert [one for one in server.asked if one == DOWNLOAD] == [DOWNLOAD]
    assert [p.name for p in path.resolve().parent.iterdir()] == [path.resolve().name]


def test_pickled_weights_are_the_second_choice(server, local_hub):
    del server.files[f"{REPO}/model.safetensors"]
    assert local_hub.fetch(REPO).read_bytes() == b"pickled"
    with pytest.raises(HubError, match=r"/timm/net\.in1k has no weights\.npz$"):
        local_hub.fetch(REPO, ("weights.npz",))


def test_a_broken_download_is_continued_at_once(server, local_hub):
    server.cut = 1_000_000
    assert local_hub.fetch(REPO).read_bytes() == CONTENT
    assert server.asked.count(DOWNLOAD) == 2


def test_a_stalled_download_is_continued(server, local_hub, monkeypatch):
    monkeypatch.setattr(hub, "STALL_SECONDS", 1.5)
    server.cut, server.mute = 1_000_000, True
    assert local_hub.fetch(REPO).read_bytes() == CONTENT


def test_what_an_interrupted_download_brought_is_kept(server, local_hub):
    def interrupt(_: str, done: int, __: int) -> None:
        if done >= 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_hub.fetch(REPO, show=interrupt)
    (part,) = local_hub.cache.glob("*/blobs/*.part")
    kept = part.stat().st_size
    assert 1_000_000 <= kept < len(CONTENT)
    shown: list[int] = []
    path = local_hub.fetch(REPO, show=lambda _, done, __: shown.append(done))
    assert shown[0] == kept
    assert path.read_bytes() == CONTENT


def test_a_download_that_brings_nothing_more_says_how_to_go_on(server, local_hub, monkeypatch):
    def cut_again(_: str, __: int, ___: int) -> None:
        server.status = 503 if server.cut is None else None

    server.cut = 1_000_000
    with pytest.raises(HubError) as caught:
        local_hub.fetch(REPO, show=cut_again)
    assert str(caught.value) == (
        f"the download of {REPO}/model.safetensors broke off after 1.0 MB of 3.1 MB (the server"
        " answered 503 Service Unavailable); the same command continues it"
    )
    server.status = None
    assert local_hub.fetch(REPO).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_again(server, local_hub):
    server.cut, server.ranges = 1_000_000, False
    assert local_hub.fetch(REPO).read_bytes() == CONTENT


def test_damaged_bytes_are_not_kept(server, local_hub):
    server.damaged = True
    with pytest.raises(HubError, match=r"model\.safetensors arrived damaged"):
        local_hub.fetch(REPO)
    assert list(local_hub.cache.glob("*/blobs/*")) == []
    server.damaged = False
    path = local_hub.fetch(REPO)
    path.resolve().write_bytes(CONTENT[:100])  # a disk or a person damages the cache
    assert local_hub.fetch(REPO).read_bytes() == CONTENT


def test_gated_weights_need_a_token(server, local_hub, monkeypatch):
    server.token = "secret"
    with pytest.raises(HubError) as caught:
        local_hub.fetch(REPO)
    assert str(caught.value) == (
        f"{REPO} is gated: accept its licence at {server.endpoint}/{REPO}, and log in with"
        " `hf auth login` or HF_TOKEN"
    )
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert local_hub.fetch(REPO).read_bytes() == CONTENT
    assert not server.tokens_elsewhere


def test_an_unknown_repository(server, local_hub):
    with pytest.raises(HubError, match=r"has no timm/other, or it is private: log in"):
        local_hub.fetch("timm/other")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (503, HubUnreachableError, "answered 503 Service Unavailable$"),
        (429, HubUnreachableError, "answered 429 Too Many Requests$"),
        (403, HubError, "answered 403 Forbidden: log in with"),
        (418, HubError, "answered 418 I'm a Teapot$"),
    ],
)
def test_other_answers(server, local_hub, status, kind, words):
    server.status = status
    with pytest.raises(HubError, match=words) as caught:
        local_hub.fetch(REPO)
    assert type(caught.value) is kind


def test_a_server_that_is_no_hub(server, local_hub):
    server.status = 200
    with pytest.raises(HubError, match=r"does not answer as a Hugging Face hub"):
        local_hub.fetch(REPO)


def test_a_hub_that_is_away_costs_no_more_than_the_limit(tmp_path, monkeypatch):
    hub_patience = hub.ANSWER_SECONDS
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
    started = monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(HubUnreachableError, match=r"no answer from http://127\.0\.0\.1:\d+"),
    ):
        Hub(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path).fetch(REPO)
    assert monotonic() - started < hub_patience / 2
    close_session()
    with pytest.raises(HubUnreachableError, match=r"no answer from .*:1: .*refused"):
        Hub("http://127.0.0.1:1", tmp_path).fetch(REPO)
    close_session()


def test_a_silent_name_server_costs_no_more_than_the_limit(tmp_path, monkeypatch):
    asleep = Event()
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asleep.wait(10))
    started = monotonic()
    with pytest.raises(HubUnreachableError, match=r"no answer from http://hub\.invalid within"):
        Hub("http://hub.invalid", tmp_path).fetch(REPO)
    assert monotonic() - started < 8
    asleep.set()
    close_session()


def test_a_full_disk_is_said_before_the_download(server, local_hub, monkeypatch):
    usage = shutil.disk_usage(Path.cwd())._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"needs 3\.1 MB, but .*blobs has 2\.0 MB free: make room"):
        local_hub.fetch(REPO)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "hub").write_text("a file where the folder should be")
    with pytest.raises(HubError, match=r"model\.safetensors cannot be stored in"):
        Hub(server.endpoint, tmp_path / "hub").fetch(REPO)


def test_offline_the_cache_is_all_there_is(server, local_hub, monkeypatch):
    path = local_hub.fetch(REPO)
    asked = len(server.asked)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert local_hub.fetch(REPO) == path
    with pytest.raises(HubError, match=r"^HF_HUB_OFFLINE is set, and timm/other is not in "):
        local_hub.fetch("timm/other")
    path.resolve().write_bytes(b"damaged")
    with pytest.raises(HubError, match=r"net\.in1k is damaged in "):
        local_hub.fetch(REPO)
    assert path.is_file()
    assert len(server.asked) == asked


def test_the_environment_names_mirror_cache_and_token(server, tmp_path):
    server.token = "secret"
    code = f"from trainables.pretrained.hub import Hub; print(Hub().fetch({REPO!r}))"
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HUB_CACHE": str(tmp_path), "HF_TOKEN": "secret"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        cwd=Path(hub.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == CONTENT
    assert done.stderr == ""
