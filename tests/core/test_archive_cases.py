"""Archives of public reports and of attacks through the whole way: `vlm download`, then `vlm data organize`."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vlm.core.errors import FetchError
from vlm.core.fetch.archive import extract
from vlm.core.fetch.catalogue import Entry
from vlm.core.fetch.fetch import fetch
from vlm.core.organize.organize_set import organize


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as t:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        for name, content in members:
            info = zipfile.ZipInfo("x", (2000, 1, 1, 0, 0, 0))
            info.filename = name
            z.writestr(info, content)
    return buffer.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


ONE = ("a", b"x")
REFUSED: dict[str, tuple[bytes, str]] = {
    "absolute.tar": (tar(("/tmp/h-rel/PWN", b"x")), "leaves the folder"),
    "absolute.zip": (zipped(("/tmp/h-rel/PWN", b"x")), "leaves the folder"),
    "dotdot.tar": (tar(("../evil", b"x")), "leaves the folder"),
    "device.tar": (tar(special("a", tarfile.CHRTYPE)), "link or a device"),
    "fifo.tar": (tar(special("a", tarfile.FIFOTYPE)), "link or a device"),
    "hard.tar": (tar(special("a", tarfile.LNKTYPE, "/etc/passwd")), "link or a device"),
    "symlink.tar": (tar(special("a", tarfile.SYMTYPE, "/etc"), ("a/b", b"x")), "link or a device"),
    "dot.tar": (tar((".", b"x")), "no file name"),
    "deep.tar": (tar(("/".join("d" * 1500), b"x")), "too long"),
    "long.tar": (tar(("n" * 300, b"x")), "too long"),
    "long.zip": (zipped(("n" * 300, b"x")), "too long"),
    "twice.tar": (tar(ONE, ("a", b"other")), "two members"),
    "twice.zip": (patched(zipped(("a", b"1"), ("b", b"2")), b"b", b"a"), "two members"),
    "file-and-folder.tar": (tar(ONE, ("a/b", b"x")), "two members"),
    "manifest.tar": (tar(ONE, (".vlm-manifest.json", b"{}")), "keeps for itself"),
    "note.tar": (tar(ONE, (".partial/install.json", b"{}")), "keeps for itself"),
    "not-utf8.tar": (tar(("\udcff\udcfe.txt", b"x")), "not UTF-8"),
    "nul.zip": (patched(zipped(("aXb", b"x")), b"aXb", b"a\0b"), "leaves the folder"),
    "crc.zip": (patched(zipped(("a", b"12345678")), b"12345678", b"12345679"), "damaged"),
    "empty.zip": (b"", "damaged"),
    "short.zip": (b"PK\x03\x04", "damaged"),
    "cut.tar": (tar(("a", bytes(5000)))[:1500], "damaged"),
    "page.zip": (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
    "lfs.zip": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entries(path: Path) -> tuple[Entry, Entry]:
    """An entry that extracts while it downloads, and one that unpacks while it is organized."""
    known: dict[str, Any] = {"kind": "data", "title": "t", "license": "MIT"}
    source = {"kind": "url", "url": path.as_uri()}
    at_once = Entry(name="dl", folder="dataset/dl", source=source | {"members": {"*": ""}}, **known)
    steps = [{"unpack": {"archives": path.name, "into": "out"}}]
    later = Entry.model_validate({"name": "org", "folder": "dataset/org", "source": source, "organise": steps} | known)
    return at_once, later


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_or_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path, home: Path, name: str) -> None:
    data, why = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    at_once, later = entries(tmp_path / name)
    with pytest.raises(FetchError, match=why) as error:
        fetch(at_once)
    assert error.value.fix or "two members" in why
    fetch(later)
    for _ in range(2):
        with pytest.raises(FetchError, match=why):
            organize("org", catalogue={"org": later})
    written = {p.name for p in home.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert written <= {name, f"{name}.part", "source.json", "key.json"}
    assert not (tmp_path / "evil").exists() and not Path("/tmp/h-rel").exists()


GOOD: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "parts.tar": (tar(("x.part", b"1"), ("x", b"2")), {"x.part": b"1", "x": b"2"}),
    "setuid.tar": (tar(special("a", tarfile.REGTYPE, mode=0o6777)), {"a": b""}),
    "name-of-251-bytes.zip": (zipped(("d/" + "x" * 247 + ".txt", b"one")), {"d/" + "x" * 247 + ".txt": b"one"}),
    "cjk.zip": (zipped(("\u56fe" * 83 + ".jpg", b"one")), {"\u56fe" * 83 + ".jpg": b"one"}),
    "date.zip": (patched(zipped(("a", b"1")), b"\x21\x28", b"\xff\xff"), {"a": b"1"}),
    "before-1980.zip": (patched(zipped(("a", b"1")), b"\x21\x28", b"\x00\x00"), {"a": b"1"}),
    "windows.zip": (zipped(("d\\1.txt", b"1"), ("d\\2.txt", b"2")), {"d/1.txt": b"1", "d/2.txt": b"2"}),
    "newline.tar": (tar(("a\nb\x1b[31m", b"1")), {"a\nb\x1b[31m": b"1"}),
    "comment.zip": (zipped(("a", b"1"))[:-2] + b"\x02\x00hi", {"a": b"1"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_strange_archive_that_a_disk_can_hold_is_unpacked_whole(tmp_path: Path, home: Path, name: str) -> None:
    data, files = GOOD[name]
    (tmp_path / name).write_bytes(data)
    at_once, later = entries(tmp_path / name)
    assert fetch(at_once) == "fetched"
    fetch(later)
    assert organize("org", catalogue={"org": later}) == "organised"
    for folder in (home / "dataset/dl", home / "dataset/org/out"):
        assert {n: (folder / n).read_bytes() for n in files} == files
        assert all((folder / n).stat().st_mode & 0o7111 == 0 for n in files)  # neither setuid nor executable
    assert fetch(at_once, verify=True) == "present"


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for number in range(3):
            z.writestr(f"{number}", bytes(60_000_000))
    (tmp_path / "b.zip").write_bytes(buffer.getvalue())
    with pytest.raises(FetchError, match="an archive bomb"):
        extract(tmp_path / "b.zip", {"*": ""}, tmp_path / "into")
    assert not (tmp_path / "into").exists()
