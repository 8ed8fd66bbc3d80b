import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from spaces import archives
from spaces.archives import ArchiveError, is_archive, open_folder

FILES = {"photos/cat/1.jpg": b"one", "photos/dog/größe.jpg": b"two"}
TARS = {".tar": "w", ".tgz": "w:gz", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, TARS[path.name[path.name.index(".") :]]) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def message(path: Path, cache: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        open_folder(path, cache)
    assert not list(cache.rglob("download-*"))
    return str(caught.value).replace(str(path.parent), "DIR")


@pytest.mark.parametrize("suffix", [".zip", ".ZIP", *TARS])
def test_archives_are_unpacked_and_their_only_folder_is_entered(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"set{suffix}"
    litter = {"__MACOSX/photos/cat/._1.jpg": b"", "photos/.DS_Store": b"", "photos/._x": b""}
    make = zipped if suffix.lower() == ".zip" else tarred
    make(path, {**FILES, **litter})
    folder = open_folder(path, tmp_path / "cache")
    assert below(folder) == {"cat/1.jpg": b"one", "dog/größe.jpg": b"two"}
    assert capsys.readouterr().err == f"unpacking {path} …\n"
    (folder / "cat" / "more.jpg").touch()  # so that unpacking again would be noticed
    path.rename(tmp_path / f"moved{suffix}")
    path = tmp_path / f"moved{suffix}"
    path.rename(tmp_path / f"set{suffix}")
    assert open_folder(tmp_path / f"set{suffix}", tmp_path / "cache") == folder
    assert (folder / "cat" / "more.jpg").exists()


@pytest.mark.parametrize(
    ("names", "entered"),
    [
        (("a/cat/1.jpg",), "a"),  # images of one class, as an external set may be
        (("set/1.jpg", "set/2.jpg"), "set"),
        (("photos/1.jpg", "photos/labels.csv"), "photos"),
        (("a/b/cat/1.jpg", "a/b/dog/1.jpg"), "a/b"),
        (("cat/1.jpg",), ""),
        (("cat/1.jpg", "labels.csv"), ""),
    ],
)
def test_which_folders_are_entered(tmp_path: Path, names: tuple[str, ...], entered: str) -> None:
    path = zipped(tmp_path / "set.zip", dict.fromkeys(names, b""))
    folder = open_folder(path, tmp_path / "cache")
    (unpacked,) = (tmp_path / "cache").glob("archives/*/set")
    assert folder == unpacked / entered


def test_a_changed_archive_is_unpacked_again(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", FILES)
    before = open_folder(path, tmp_path / "cache")
    zipped(path, {"cat/2.jpg": b"", "dog/2.jpg": b""})
    after = open_folder(path, tmp_path / "cache")
    assert after != before
    assert set(below(after)) == {"cat/2.jpg", "dog/2.jpg"}


@pytest.mark.parametrize("name", ["../x.jpg", "/tmp/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:/x"])
def test_paths_outside_are_refused(tmp_path: Path, name: str) -> None:
    for path in (
        zipped(tmp_path / "set.zip", {"cat/1.jpg": b"", name: b""}),
        tarred(tmp_path / "set.tar", {"cat/1.jpg": b"", name: b""}),
    ):
        cache = tmp_path / "cache"
        text = message(path, cache)
        assert text.startswith(f"DIR/{path.name} must hold files below its own folder only, but ")
        assert not [p for p in tmp_path.rglob("*") if p.name == "x.jpg"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("cat/2.jpg")
    info.type, info.linkname = kind, "../../x"
    path = tarred(tmp_path / "set.tar", {"cat/1.jpg": b"", "2": info})
    assert "must hold files and folders only, but 'cat/2.jpg'" in message(path, tmp_path / "cache")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("cat/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "'cat/link' is a link" in message(tmp_path / "set.zip", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_bombs_are_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MIN_SUSPICIOUS_BYTES", 2**20)
    make = zipped if suffix == ".zip" else tarred
    path = make(tmp_path / f"set{suffix}", {"cat/1.bmp": bytes(2**22), "cat/2.jpg": b""})
    text = message(path, tmp_path / "cache")
    assert text.startswith("an archive must unpack to at most 100 times its size, but DIR/set")


def test_a_bomb_in_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MIN_SUSPICIOUS_BYTES", 2**20)
    path = tmp_path / "set.tgz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("cat/1.jpg")
        info.pax_headers = {"comment": "x" * 2**22}
        archive.addfile(info)
    assert "must unpack to at most 100 times its size" in message(path, tmp_path / "cache")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    path = zipped(tmp_path / "set.zip", {f"cat/{i}.jpg": b"" for i in range(4)})
    assert "must have at most 3 files" in message(path, tmp_path / "cache")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "set.zip", FILES)
    monkeypatch.setattr(archives, "_RESERVED_BYTES", 2**62)
    text = message(path, tmp_path / "cache")
    assert text.startswith("DIR/set.zip does not fit on the disk of DIR/cache, where ")
    assert text.endswith("or set CLASSIFIER_SEARCH_CACHE to a folder on another disk")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.xz", ".tar.bz2"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    make = zipped if suffix == ".zip" else tarred
    path = make(
        tmp_path / f"set{suffix}", {f"cat/{i}.jpg": bytes(range(256)) * 40 for i in range(9)}
    )
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) // 2 + 100):
        path.write_bytes(content[:length])
        assert f"DIR/set{suffix} is damaged (" in message(path, tmp_path / "cache")
    path.write_bytes(b"something else entirely, and long enough for a header" * 30)
    assert f"DIR/set{suffix} is damaged (" in message(path, tmp_path / "cache")


def test_a_zip_with_a_damaged_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"cat/\u00e9.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xc3\xc3"))
    assert message(path, tmp_path / "cache").startswith("DIR/set.zip is damaged ('utf-8' codec")


def test_a_folder_with_a_table_in_upper_case_is_entered(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"photos/1.jpg": b"x", "photos/LABELS.CSV": b"y"})
    assert open_folder(path, tmp_path / "cache").name == "photos"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"cat/1.jpg": b"x"})
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + at] |= 1
    path.write_bytes(content)
    assert message(path, tmp_path / "cache").startswith("DIR/set.zip is encrypted: ")


def test_names_in_utf_8_that_do_not_say_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"größe/1.jpg": b"", "b/1.jpg": b""})
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + at] &= ~0x08
    path.write_bytes(content)
    assert set(below(open_folder(path, tmp_path / "cache"))) == {"größe/1.jpg", "b/1.jpg"}


def test_what_is_neither_a_folder_nor_an_archive(tmp_path: Path) -> None:
    assert open_folder(tmp_path, tmp_path / "cache") == tmp_path
    (tmp_path / "set.rar").touch()
    (tmp_path / "labels.csv").touch()
    assert message(tmp_path / "set.rar", tmp_path / "cache") == (
        "--data must name a folder or an archive, but DIR/set.rar is a file, packed in a way that"
        " is not read here: unpack it, and give the folder"
    )
    assert message(tmp_path / "labels.csv", tmp_path / "cache").endswith(
        "is a file: if it is a table of labels, give it with --labels DIR/labels.csv, and the"
        " folder here"
    )
    (tmp_path / "photos").mkdir()
    assert message(tmp_path / "phots", tmp_path / "cache") == (
        "--data must name a folder, but there is no DIR/phots; did you mean 'photos'?"
    )


def test_names_of_archives() -> None:
    assert is_archive(Path("a.TAR.GZ"))
    assert not is_archive(Path("a.jpg.gz"))


def test_the_home_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"there is no ~no-such-user/photos"):
        open_folder(Path("~no-such-user/photos"), tmp_path)
