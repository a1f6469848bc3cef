"""What is downloaded or unpacked is hashed as it is written; only what an earlier run left is read."""

import subprocess
import sys
import zipfile
from json import loads
from pathlib import Path

import pytest

from support import local_hub as hub
from support.local_hub import CONTENT, SHA
from vlm.core.fetch import manifest, transfer
from vlm.core.fetch.archive import extract
from vlm.core.fetch.catalogue import Entry, UrlSource
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.manifest import PARTIAL, damaged_files, install, read_manifest, sha256_of
from vlm.core.fetch.transfer import Patience, RunningDigest, fetch_url

BENCH = Path(__file__).parents[2] / "bench"
QUICK = Patience(tries=3, backoff=0.01, timeout=5)


@pytest.fixture
def server():
    with hub.serving() as server:
        yield server


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read to be hashed."""
    names: list[str] = []

    def spy(path: Path) -> str:
        names.append(Path(path).name)
        return sha256_of(path)

    for module in (manifest, transfer):
        monkeypatch.setattr(module, "sha256_of", spy)
    return names


def test_a_download_is_read_again_neither_for_its_sum_nor_for_the_manifest(server, tmp_path, monkeypatch, hashed):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    source = UrlSource(kind="url", url=f"{server.url}/truncated/file.bin", sha256=SHA, size=len(CONTENT))
    entry = Entry(name="thing", kind="data", title="t", license="none", folder="dataset/thing", source=(source,))
    assert fetch(entry, patience=QUICK) == "fetched"
    assert hashed == []
    assert read_manifest(entry.path)["files"] == {"file.bin": {"size": len(CONTENT), "sha256": SHA}}


def test_a_resumed_download_counts_what_lies_there(server, tmp_path, hashed):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    sums: dict[str, str] = {}
    fetch_url(f"{server.url}/plain/file.bin", tmp_path / "file.bin", sha256=SHA, patience=QUICK, sums=sums)
    assert (sums, hashed) == ({str(tmp_path / "file.bin"): SHA}, [])


def test_a_digest_of_other_bytes_than_the_file_has_is_none(tmp_path):
    digest = RunningDigest(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"abcdef")
    digest.start(0)
    digest.add(b"abc")
    assert digest.of_whole() is None
    digest.start(3)
    digest.add(b"def")
    assert digest.of_whole() == sha256_of(tmp_path / "f")


def test_members_are_hashed_as_they_are_written_and_those_of_an_earlier_run_are_read(tmp_path, hashed):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        for name in ("d/one.txt", "d/two.txt"):
            z.writestr(name, name)
    folder, sums = tmp_path / "set", dict[str, str]()
    into = folder / PARTIAL / "tree"
    extract(archive, {"*": ""}, into, sums=sums)
    assert sums == {str(path): sha256_of(path) for path in into.rglob("*.txt")}
    again: dict[str, str] = {}
    (into / "d/two.txt").unlink()
    staged = extract(archive, {"*": ""}, into, sums=again)
    assert list(again) == [str(into / "d/two.txt")]
    install(folder, staged, name="x", source=[], sums=again)
    assert hashed == ["one.txt"]
    assert damaged_files(folder, read_manifest(folder), verify=True) == []


def test_the_report_of_a_check_grows_by_little_for_each_record():
    few, many = (
        loads(subprocess.check_output([sys.executable, BENCH / "check_memory.py", str(records)]))
        for records in (20_000, 120_000)
    )
    assert many["records"] - few["records"] == 100_000
    assert (many["own_bytes"] - few["own_bytes"]) / 100_000 < 200  # most of it the cache of 32 MB, as it fills


def test_a_file_more_in_an_archive_needs_hardly_more_memory_to_unpack(tmp_path):
    code = "import sys, unpack; from pathlib import Path; unpack.make(Path(sys.argv[1]), int(sys.argv[2]))"
    peaks = []
    for files in (5_000, 11_000):  # the first few thousand names are held
        archive, out = tmp_path / f"{files}.tar", tmp_path / str(files)
        subprocess.check_call([sys.executable, "-c", code, archive, str(files)], cwd=BENCH)
        out.mkdir()
        peaks.append(1024 * loads(subprocess.check_output([sys.executable, BENCH / "unpack.py", "ours", archive, out])))
        assert len(read_manifest(out)["files"]) == files
    assert (peaks[1] - peaks[0]) / 6_000 < 400  # 1,900 where every name, digest and move is held
