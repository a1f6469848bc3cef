"""Archives and downloads that name this program's own files, or that a disk or a code page cannot hold."""

import io
import json
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from support import local_hub as hub
from vlm.core.errors import FetchError, VlmError
from vlm.core.fetch.archive import extract
from vlm.core.fetch.catalogue import Entry, load_catalogue
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.hub import fetch_hub
from vlm.core.fetch.manifest import INSTALLING, MANIFEST, PARTIAL, finish_install, install, read_manifest
from vlm.core.fetch.transfer import fetch_url
from vlm.core.organize.organize_set import organize
from vlm.core.paths import is_control, is_data
from vlm.core.progress import silent

CONTROL = [
    ".vlm-manifest.json",
    "a/.vlm-organised-x.json",
    ".VLM-Manifest.json",
    ".partial/install.json",
    "a/.partial/b",
    ".lock",
    ".lock.json",
]


def tar_of(path: Path, members: list[tuple[str, bytes]], **pax: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as t:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.pax_headers = len(content), 1000, dict(pax)
            t.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            z.writestr(info, content)
    return path


def raw_zip(path: Path, name: bytes, *, date: int = 0x21) -> Path:
    """A zip of one member whose name has no flag for UTF-8, and with a raw DOS date."""
    stand_in = "n" * len(name)
    data = zip_of(path, [(stand_in, b"one")]).read_bytes().replace(stand_in.encode(), name)
    packed = bytearray(data)
    struct.pack_into("<H", packed, 12, date)
    struct.pack_into("<H", packed, packed.index(b"PK\x01\x02") + 14, date)
    path.write_bytes(packed)
    return path


def refused(path: Path, why: str) -> FetchError:
    shutil.rmtree(path.parent / "into", ignore_errors=True)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(FetchError, match=why) as error:
        extract(path, {"*": ""}, path.parent / "into")
    assert sorted(path.parent.rglob("*")) == before
    assert error.value.fix
    return error.value


def extracted(path: Path) -> dict[str, bytes]:
    found = extract(path, {"*": ""}, path.parent / "into")
    on_disk = {str(p.relative_to(path.parent / "into")): p.read_bytes() for p, _ in found}
    assert list(on_disk) == [name for _, name in found]
    return on_disk


@pytest.mark.parametrize("name", CONTROL)
def test_control_names_are_refused_in_archives(tmp_path: Path, name: str) -> None:
    assert is_control(name)
    refused(tar_of(tmp_path / "a.tar", [("payload", b"x"), (name, b"{}")]), "keeps for itself")
    refused(zip_of(tmp_path / "a.zip", [("payload", b"x"), (name, b"{}")]), "keeps for itself")
    refused(zip_of(tmp_path / "b.zip", [(name.replace("/", "\\"), b"{}")]), "keeps for itself")


def test_no_shipped_entry_has_a_control_name() -> None:
    for entry in load_catalogue().values():
        for name in [*entry.records, *entry.tree, *(s.target for s in entry.source if s.kind == "url")]:
            assert is_data(name), (entry.name, name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entry_of(**source: Any) -> Entry:
    return Entry(name="evil", kind="data", title="t", license="-", folder="dataset/evil", source=source)


def test_an_archive_with_a_note_deletes_and_plants_nothing(tmp_path: Path, home: Path) -> None:
    near, far = home / "dataset" / "near.txt", tmp_path / "far.txt"
    near.parent.mkdir(parents=True)
    near.write_text("keep")
    far.write_text("keep")
    moves = {str(tmp_path / "PLANTED"): str(home / "dataset/evil/payload")}
    note = {"manifest": "x.json", "moves": moves, "stale": ["../near.txt", str(far)], "content": {}}
    members = [
        ("payload", b"EVIL"),
        (MANIFEST, b'{"files": {}, "source": []}'),
        (f"{PARTIAL}/{INSTALLING}", json.dumps(note).encode()),
    ]
    archive = tar_of(tmp_path / "evil.tar", members)
    entry = entry_of(kind="url", url=archive.as_uri())
    steps = Entry.model_validate(entry.model_dump() | {"organize": [{"unpack": {"archives": "evil.tar"}}]})
    fetch(steps)
    for _ in range(2):
        with pytest.raises(FetchError, match="keeps for itself"):
            organize("evil", catalogue={"evil": steps})
        fetch(steps, verify=True)
    with pytest.raises(FetchError, match="keeps for itself"):
        fetch(entry_of(kind="url", url=archive.as_uri(), members={"*": ""}))
    assert (near.read_text(), far.read_text()) == ("keep", "keep")
    assert not (tmp_path / "PLANTED").exists()
    assert not (home / "dataset/evil/payload").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"moves": {"../planted": "{work}/a"}},
        {"moves": {"/tmp/planted": "{work}/a"}},
        {"moves": {"a": "{outside}"}},
        {"moves": {"a": "{work}/../../victim.txt"}},
        {"moves": {MANIFEST: "{work}/a"}},
        {"moves": {"a": "{work}/.."}},
        {"moves": {"a": 1}},
        {"moves": []},
        {"stale": ["../victim.txt"]},
        {"stale": ["{outside}"]},
        {"stale": [None]},
        {"manifest": "../victim.txt"},
        {"manifest": ".vlm-x/../../victim.txt"},
        {"content": {}},
        {"content": {"source": [], "files": {"../victim.txt": {"size": 4}}}},
    ],
)
def test_a_note_that_names_other_paths_is_refused_whole(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, victim = tmp_path / "set", tmp_path / "victim.txt"
    work = folder / PARTIAL
    work.mkdir(parents=True)
    (work / "a").write_text("content")
    victim.write_text("keep")
    good = {"manifest": MANIFEST, "moves": {"a": str(work / "a")}, "stale": [], "content": {"source": [], "files": {}}}
    text = json.dumps(good | change).replace("{work}", str(work)).replace("{outside}", str(victim))
    (work / INSTALLING).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FetchError, match="nothing was moved") as error:
        finish_install(folder)
    assert str(work) in (error.value.fix or "")
    assert sorted(tmp_path.rglob("*")) == before
    (work / INSTALLING).write_text(json.dumps(good))
    assert finish_install(folder)
    assert (folder / "a").read_text() == "content"


def test_a_manifest_that_names_other_paths_counts_as_damaged_and_nothing_of_it_is_removed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "set", tmp_path / "victim.txt"
    folder.mkdir()
    victim.write_text("keep")
    size = {"size": 4}
    for files in ({"../victim.txt": size}, {str(victim): size}, {"a": 4}, {"a": {}}, {PARTIAL + "/x": size}, []):
        (folder / MANIFEST).write_text(json.dumps({"name": "x", "source": [], "files": files}))
        assert read_manifest(folder) is None
    (folder / MANIFEST).write_text(json.dumps({"source": [], "files": {}, "links": {"../x": "y"}}))
    assert read_manifest(folder) is None
    (folder / MANIFEST).write_text(json.dumps({"source": [], "files": {"../victim.txt": size}}))
    (folder / PARTIAL).mkdir()
    (folder / PARTIAL / "b").write_text("b")
    install(folder, [(folder / PARTIAL / "b", "b")], name="x", source=[])
    assert victim.read_text() == "keep"
    for name in ("../b", MANIFEST, "", f"{PARTIAL}/b"):
        with pytest.raises(FetchError, match="not accepted"):
            install(folder, [(folder / "b", name)], name="x", source=[])


@pytest.mark.parametrize("name", [".vlm-manifest.json", "..", "", ".lock"])
def test_an_address_that_ends_in_a_control_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(FetchError, match="not accepted"):
        fetch(entry_of(kind="url", url=f"file:///nowhere/{name}"))
    assert not (home / "dataset").exists()


@pytest.mark.parametrize("name", [".vlm-manifest.json", ".partial/install.json", "../../x", "/x"])
def test_a_repository_with_a_control_name_is_refused_before_a_byte_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub

    class Api:
        def model_info(self, repo: str, **_: Any) -> Any:
            files = [type("F", (), {"rfilename": n, "size": 1}) for n in ("config.json", name)]
            return type("Info", (), {"siblings": files})

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    source = entry_of(kind="hub", repo="org/model", revision=hub.COMMIT).source[0]
    with pytest.raises(FetchError, match="org/model: the file name"):
        fetch_hub(source, tmp_path / "work", silent)


def test_temporary_names_of_other_members_lose_no_file(tmp_path: Path) -> None:
    members = [(name, name.encode()) for name in ("x.part", ".x.part", "x", ".into.member", ".x.1.tmp", ".into.part")]
    assert extracted(tar_of(tmp_path / "a.tar", members)) == dict(sorted(members))
    assert extracted(tar_of(tmp_path / "b.tar", members[::-1])) == dict(sorted(members))


def test_long_names_that_a_disk_holds_are_written_and_longer_ones_refused(tmp_path: Path, home: Path) -> None:
    for number, name in enumerate(("d/" + "x" * 247 + ".txt", "x" * 255, "\u56fe" * 83 + ".png")):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert extracted(zip_of(folder / "a.zip", [(name, b"one")])) == {name: b"one"}
    for name in ("x" * 256, "\u56fe" * 86, "/".join(["d"] * 300), "/".join(["d" * 100] * 45), "/".join("d" * 1500)):
        refused(tar_of(tmp_path / "b.tar", [("a", b"1"), (name, b"1")]), "too long")
    (tmp_path / "f").write_bytes(b"content")
    assert fetch_url((tmp_path / "f").as_uri(), home / ("y" * 255)).read_bytes() == b"content"


@pytest.mark.parametrize("date", [0, 0x21, 0xFFFF, 0x01A0])
def test_dates_that_do_not_exist_are_no_error(tmp_path: Path, date: int) -> None:
    path = raw_zip(tmp_path / "a.zip", b"a.txt", date=date)
    assert extracted(path) == {"a.txt": b"one"}
    inode = (tmp_path / "into/a.txt").stat().st_ino
    extract(path, {"*": ""}, tmp_path / "into")
    assert (tmp_path / "into/a.txt").stat().st_ino == inode  # a rerun knows the file by its time


@pytest.mark.parametrize("mtime", ["-1e9", "nan", "inf", "1e30"])
def test_times_of_a_tar_that_do_not_exist_are_no_traceback(tmp_path: Path, mtime: str) -> None:
    try:
        assert extracted(tar_of(tmp_path / "a.tar", [("a", b"1")], mtime=mtime)) == {"a": b"1"}
    except FetchError as error:
        assert mtime == "nan", error


def test_names_in_an_unknown_code_page_are_refused_and_utf8_is_read(tmp_path: Path) -> None:
    picture = "\u56fe\u7247.txt"
    for name in (picture.encode("gbk"), "\u753b\u50cf.txt".encode("cp932"), "d\u00e9.txt".encode("cp437")):
        assert "UTF-8" in refused(raw_zip(tmp_path / "a.zip", name), "not UTF-8").found
    refused(tar_of(tmp_path / "a.tar", [("\udcd6\udcd0.txt", b"1")]), "not UTF-8")
    assert extracted(raw_zip(tmp_path / "b.zip", picture.encode())) == {picture: b"one"}
    assert extracted(zip_of(tmp_path / "c.zip", [(picture, b"one"), ("d\u00e9", b"2")]))["d\u00e9"] == b"2"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("d/a", "d//a")])
def test_two_members_of_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    members = [(names[0], b"first"), ("b", b"x"), (names[1], b"last!")]
    for path in (tar_of(tmp_path / "a.tar", members), zip_of(tmp_path / "a.zip", members)):
        refused(path, "two members have the path")


def test_backslashes_of_windows_tools_are_folders_in_a_zip(tmp_path: Path) -> None:
    found = extracted(zip_of(tmp_path / "a.zip", [("a\\", b""), ("a\\1.txt", b"one"), ("a\\b\\2.txt", b"two")]))
    assert found == {"a/1.txt": b"one", "a/b/2.txt": b"two"}
    for name in ("..\\x", "a\\..\\..\\x", "C:\\x", "\\x", "\\\\server\\x"):
        refused(zip_of(tmp_path / "b.zip", [(name, b"x")]), "leaves the folder")
    refused(tar_of(tmp_path / "a.tar", [("a\\1.txt", b"x")]), "backslash")


def test_a_member_without_a_name_and_one_with_a_nul_are_refused(tmp_path: Path) -> None:
    for name in (".", "./", "./."):
        with pytest.raises(FetchError):
            extract(tar_of(tmp_path / "a.tar", [(name, b"1")]), {"*": ""}, tmp_path / "into")
    refused(raw_zip(tmp_path / "a.zip", b"a\0b"), "leaves the folder")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b"<html><body>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd"),
        (b"PK\x07\x08PK\x03\x04", "several volumes"),
    ],
)
def test_what_is_no_archive_is_named_with_what_to_do(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "a.zip").write_bytes(start + bytes(600))
    refused(tmp_path / "a.zip", what)


def test_every_cut_and_every_changed_byte_of_an_archive_is_a_clear_error_or_nothing(tmp_path: Path) -> None:
    members = [("a", b"one"), ("d/b", b"two")]
    for path in (zip_of(tmp_path / "a.zip", members), tar_of(tmp_path / "a.tar", members)):
        data = path.read_bytes()[:2200]
        for at in range(0, len(data), 3):
            for changed in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
                path.write_bytes(changed)
                try:
                    extract(path, {"*": ""}, tmp_path / "into")
                except VlmError:
                    assert not (tmp_path / "into").exists()
