"""Archives and wheels: only the wanted members, never outside the target, damage is named."""

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vlm.core.errors import FetchError
from vlm.core.fetch.archive import extract, target_of
from vlm.core.fetch.catalogue import Entry, PackageSource
from vlm.core.fetch.fetch import fetch, pip_command
from vlm.core.fetch.manifest import MANIFEST, read_manifest


def write_zip(path: Path, names: list[str], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            z.writestr(info, f"content of {name}")
    return path


def write_tar(path: Path, members: list[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as t:
        for member in members:
            member.size = 4 if member.isfile() else 0
            t.addfile(member, io.BytesIO(b"data") if member.isfile() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("name", "pattern", "target", "expected"),
    [
        ("a/b/c.png", "a/*", "", "b/c.png"),
        ("a/b/c.png", "a/*.png", "x/", "x/b/c.png"),
        ("a/b/c.png", "a/b/c.png", "d.png", "d.png"),
        ("a/b/c.png", "a/b/c.png", "d/", "d/c.png"),
        ("a/b/c.png", "*", "", "a/b/c.png"),
        ("a/b/c.png", "*.jpg", "", None),
    ],
)
def test_a_pattern_keeps_what_follows_its_fixed_folder(name, pattern, target, expected):
    assert target_of(name, {pattern: target}) == expected


def test_wanted_members_of_zip_and_tar_are_extracted(tmp_path):
    z = write_zip(tmp_path / "a.zip", ["d/one.txt", "d/e/two.txt", "other.txt"])
    assert sorted(name for _, name in extract(z, {"d/*": "kept/"}, tmp_path / "z")) == [
        "kept/e/two.txt",
        "kept/one.txt",
    ]
    assert (tmp_path / "z/kept/e/two.txt").read_text() == "content of d/e/two.txt"
    t = write_tar(tmp_path / "a.tar.gz", [member("d", tarfile.DIRTYPE), member("d/one.bin")])
    assert extract(t, {"*": ""}, tmp_path / "t") == [(tmp_path / "t/d/one.bin", "d/one.bin")]
    with pytest.raises(FetchError, match=r"no member \*.jpg"):
        extract(z, {"d/*": "", "*.jpg": ""}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_an_archive_that_leaves_the_folder_is_refused_whole(tmp_path, name):
    into = tmp_path / "into"
    archives = [
        write_zip(tmp_path / "evil.zip", ["good.txt", name]),
        write_tar(tmp_path / "evil.tar.gz", [member("good.txt"), member(name)]),
    ]
    before = sorted(tmp_path.rglob("*"))
    for archive in archives:
        with pytest.raises(FetchError, match="leaves the folder; nothing was extracted"):
            extract(archive, {"*": ""}, into)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_and_nothing_is_written(tmp_path, kind):
    archive = write_tar(tmp_path / "l.tar.gz", [member("good.txt"), member("l", kind, "/etc"), member("l/passwd")])
    with pytest.raises(FetchError, match="link or a device"):
        extract(archive, {"*": ""}, tmp_path / "into")
    link = write_zip(tmp_path / "l.zip", ["l"], mode=0o120777)
    with pytest.raises(FetchError, match="link or a device"):
        extract(link, {"*": ""}, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(FetchError, match=r"text.zip is damaged"):
        extract(tmp_path / "text.zip", {"*": ""}, tmp_path / "into")
    good = write_zip(tmp_path / "good.zip", ["a.txt"])
    damaged = bytearray(good.read_bytes())
    damaged[40] ^= 255
    good.write_bytes(damaged)
    with pytest.raises(FetchError, match=r"good.zip is damaged"):
        extract(good, {"*": ""}, tmp_path / "into")


def write_wheel(folder: Path, *, tag: str = "py3-none-any", name: str = "tiny_data", payload: str = "hello") -> Path:
    """A real wheel with one data file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/data/a.txt": payload,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as z:
        for file, text in files.items():
            z.writestr(file, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{file},sha256={digest},{len(text)}\n"
        z.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


def wheel_entry(wheel: Path) -> Entry:
    source = {
        "kind": "package",
        "name": "tiny-data",
        "version": "1.0",
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "size": wheel.stat().st_size,
        "members": {"tiny_data/data/*": "data/"},
    }
    return Entry(name="tiny", kind="data", title="t", license="-", folder="dataset/tiny", source=source)


@pytest.fixture
def vlm_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_members_of_a_wheel_are_fetched_even_when_it_is_for_another_python(tmp_path, vlm_home):
    wheel = write_wheel(tmp_path / "wheels", tag="cp39-cp39-manylinux_2_17_aarch64.manylinux2014_aarch64")
    entry = wheel_entry(wheel)
    assert fetch(entry, find_links=wheel.parent) == "fetched"
    assert (entry.path / "data/a.txt").read_text() == "hello"
    assert sorted(p.name for p in entry.path.iterdir() if p.name != ".lock") == [MANIFEST, "data"]
    wheel.unlink()
    assert fetch(entry, find_links=wheel.parent) == "present"


def test_another_wheel_under_the_same_name_is_refused(tmp_path, vlm_home):
    entry = wheel_entry(write_wheel(tmp_path / "wheels"))
    write_wheel(tmp_path / "wheels", payload="changed")
    with pytest.raises(FetchError, match="sha256"):
        fetch(entry, find_links=tmp_path / "wheels")
    assert read_manifest(entry.path) is None
    assert not (entry.path / "data").exists()


def test_a_wheel_that_is_not_there_says_how_to_give_one(tmp_path, vlm_home):
    entry = wheel_entry(write_wheel(tmp_path / "wheels"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError, match=r"No matching distribution|Could not find a version") as error:
        fetch(entry, find_links=tmp_path / "empty")
    assert "--find-links" in error.value.fix


def test_pip_is_asked_for_exactly_the_wheel_of_the_catalogue(tmp_path):
    known = {"kind": "package", "name": "p", "version": "1", "sha256": "0" * 64, "size": 1, "members": {}}
    platform = PackageSource(**known, wheel="p-1-cp311-abi3-win_amd64.win32.whl")
    command = pip_command(platform, tmp_path, None)
    assert command[command.index("--python-version") + 1] == "311"
    assert command[command.index("--abi") + 1] == "abi3"
    assert [command[i + 1] for i, part in enumerate(command) if part == "--platform"] == ["win_amd64", "win32"]
    anywhere = pip_command(PackageSource(**known, wheel="p-1-py2.py3-none-any.whl"), tmp_path, tmp_path)
    assert "--platform" not in anywhere
    assert anywhere[-4:] == ["--no-index", "--find-links", str(tmp_path), "p==1"]
