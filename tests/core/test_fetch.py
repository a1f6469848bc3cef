"""URLs and hub snapshots against a real local server: resume, retries, damage, kills, locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import local_hub as hub
from vlm.core.errors import ConfigError, FetchError, LockedError
from vlm.core.fetch.catalogue import Entry, HubSource, UrlSource, load_catalogue
from vlm.core.fetch.fetch import fetch, pinned
from vlm.core.fetch.manifest import MANIFEST, folder_state, read_manifest
from vlm.core.fetch.transfer import Patience, disk_errors, fetch_url
from vlm.core.home import locked

CONTENT, SHA, COMMIT, HUB_FILES, tree = hub.CONTENT, hub.SHA, hub.COMMIT, hub.HUB_FILES, hub.tree
QUICK = Patience(tries=3, backoff=0.01, timeout=5)


@pytest.fixture
def server():
    with hub.serving() as server:
        yield server


@pytest.fixture
def vlm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entry_of(url: str, **known: object) -> Entry:
    source = {"kind": "url", "url": url, "sha256": SHA, "size": len(CONTENT), **known}
    return Entry(name="thing", kind="data", title="t", license="none", folder="dataset/thing", source=source)


def test_a_url_is_fetched_with_a_manifest_and_the_second_run_asks_nothing(server, vlm_home):
    entry = entry_of(f"{server.url}/plain/file.bin")
    assert fetch(entry, patience=QUICK) == "fetched"
    manifest = json.loads((entry.path / MANIFEST).read_text())
    assert manifest["files"] == {"file.bin": {"size": len(CONTENT), "sha256": SHA}}
    assert sorted(tree(entry.path)) == [MANIFEST, "file.bin"]
    asked = len(server.asked)
    assert fetch(entry, patience=QUICK) == "present"
    assert len(server.asked) == asked


@pytest.mark.parametrize("behavior", ["429", "503", "truncated", "norange"])
def test_busy_and_cut_answers_are_tried_again_until_the_file_is_whole(server, vlm_home, behavior):
    entry = entry_of(f"{server.url}/{behavior}/file.bin")
    assert fetch(entry, patience=QUICK) == "fetched"
    assert (entry.path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) >= 3
    if behavior == "truncated":
        assert [r for _, r in server.asked] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_file_that_was_replaced_meanwhile_is_fetched_whole_even_without_a_known_checksum(server, tmp_path):
    server.files["/file/f"], server.etags["/file/f"] = b"new" * 1000, '"new"'
    (tmp_path / "f.part").write_bytes(b"old" * 100)
    (tmp_path / "f.part.etag").write_text('"old"')
    fetch_url(f"{server.url}/file/f", tmp_path / "f", patience=QUICK)
    assert (tmp_path / "f").read_bytes() == b"new" * 1000
    (tmp_path / "f").unlink()
    (tmp_path / "f.part").write_bytes(b"new" * 100)
    (tmp_path / "f.part.etag").write_text('"new"')
    fetch_url(f"{server.url}/file/f", tmp_path / "f", patience=QUICK)
    assert [r for _, r in server.asked] == ["bytes=300-", "bytes=300-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new" * 1000


def test_a_part_of_another_version_is_discarded_after_the_checksum_fails(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch_url(f"{server.url}/plain/file.bin", tmp_path / "file.bin", sha256=SHA, patience=QUICK)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize(
    ("path", "message"),
    [("corrupt/f", "expected: " + SHA), ("404/f", "answered 404"), ("403/f", "answered 403")],
)
def test_a_wrong_answer_is_an_error_with_a_fix_and_leaves_no_manifest(server, vlm_home, path, message):
    entry = entry_of(f"{server.url}/{path}")
    with pytest.raises(FetchError) as error:
        fetch(entry, patience=QUICK)
    assert message in str(error.value)
    assert error.value.fix
    assert folder_state(entry.path) == "partial"
    assert not (entry.path / "f").exists()


def test_a_server_that_stays_busy_or_is_not_there_is_given_up(server, vlm_home):
    with pytest.raises(FetchError, match="answered 503"):
        fetch(entry_of(f"{server.url}/503/f"), patience=Patience(tries=1, backoff=0.01))
    with pytest.raises(FetchError, match=r"ConnectError.*2 tries"):
        fetch(entry_of("http://127.0.0.1:9/f"), patience=Patience(tries=2, backoff=0.01))


def test_after_kills_at_several_moments_a_rerun_gives_the_same_tree(server, vlm_home):
    entry = entry_of(f"{server.url}/slow/file.bin")
    code = "import sys; from vlm.core.fetch.catalogue import Entry; from vlm.core.fetch.fetch import fetch;"
    code += "fetch(Entry.model_validate_json(sys.argv[1]))"
    part = entry.path / ".partial" / "0" / "file.bin.part"
    sizes = []
    for limit in (100_000, 400_000):
        process = subprocess.Popen([sys.executable, "-c", code, entry.model_dump_json()], env=os.environ.copy())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > limit):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_manifest(entry.path) is None
        assert folder_state(entry.path) == "partial"
        sizes.append(part.stat().st_size)
    assert fetch(entry, patience=QUICK) == "fetched"
    resumed = [r for _, r in server.asked if r]
    assert resumed == [f"bytes={size}-" for size in sizes]
    killed = tree(entry.path)
    whole = entry_of(f"{server.url}/slow/file.bin").model_copy(update={"folder": "dataset/other"})
    fetch(whole, patience=QUICK)
    assert tree(whole.path) == killed


def test_a_damaged_file_is_repaired_by_size_and_with_verify_by_checksum(server, vlm_home):
    entry = entry_of(f"{server.url}/plain/file.bin")
    fetch(entry, patience=QUICK)
    (entry.path / "file.bin").write_bytes(b"short")
    assert folder_state(entry.path) == "damaged"
    assert fetch(entry, patience=QUICK) == "fetched"
    (entry.path / "file.bin").write_bytes(bytes(len(CONTENT)))
    assert fetch(entry, patience=QUICK) == "present"
    assert fetch(entry, verify=True, patience=QUICK) == "fetched"
    assert (entry.path / "file.bin").read_bytes() == CONTENT


def test_a_new_version_of_an_entry_replaces_its_old_files_and_keeps_other_files(server, vlm_home):
    fetch(entry_of(f"{server.url}/plain/old.bin"), patience=QUICK)
    entry = entry_of(f"{server.url}/plain/new.bin")
    (entry.path / "mine.txt").write_text("kept")
    assert fetch(entry, patience=QUICK) == "fetched"
    assert sorted(tree(entry.path)) == [MANIFEST, "mine.txt", "new.bin"]


def test_a_folder_in_use_is_refused(server, vlm_home):
    entry = entry_of(f"{server.url}/plain/file.bin")
    code = "import sys, time; from pathlib import Path; from vlm.core.home import locked\n"
    code += "with locked(Path(sys.argv[1]), 'other'): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(entry.path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match="other"):
        fetch(entry, patience=QUICK)
    holder.kill()
    holder.communicate()
    with locked(entry.path, "free again"):
        pass
    assert fetch(entry, patience=QUICK) == "fetched"


def test_a_file_address_works_and_a_missing_one_is_named(vlm_home, tmp_path):
    (tmp_path / "a file.bin").write_bytes(CONTENT)
    entry = entry_of((tmp_path / "a file.bin").as_uri(), path="b.bin")
    assert fetch(entry) == "fetched"
    assert (entry.path / "b.bin").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="no such file"):
        fetch(entry_of((tmp_path / "missing").as_uri()))


def test_a_wrong_number_of_records_is_an_error(vlm_home, tmp_path):
    (tmp_path / "r.jsonl").write_text("{}\n{}\n")
    source = {"kind": "url", "url": (tmp_path / "r.jsonl").as_uri()}
    entry = Entry(
        name="r", kind="data", title="t", license="-", folder="dataset/r", source=source, records={"r.jsonl": 3}
    )
    with pytest.raises(FetchError, match=r"r.jsonl has 2 records"):
        fetch(entry)
    assert read_manifest(entry.path) is None


def test_a_full_disk_and_an_unwritable_folder_say_what_to_do(tmp_path, vlm_home):
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(FetchError, match="No space left") as error, disk_errors(tmp_path), full.open("wb") as f:
            f.write(CONTENT)
        assert "VLM_HOME" in error.value.fix
    with pytest.raises(FetchError, match="Read-only"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    vlm_home.write_text("a file where the home should be")
    with pytest.raises(FetchError, match="cannot write below"):
        fetch(entry_of("file:///nowhere"))
    vlm_home.unlink()
    with pytest.raises(FetchError, match="left") as error:
        fetch(entry_of("file:///nowhere").model_copy(update={"size": 1 << 60}))
    assert "GB" in str(error.value) or "TB" in str(error.value)


def test_manual_built_and_unpinned_entries_say_what_to_do_instead():
    known = {"name": "x", "kind": "data", "title": "t", "license": "-", "folder": "dataset/x"}
    with pytest.raises(FetchError, match="sign the form"):
        fetch(Entry(**known, source={"kind": "manual", "instructions": "sign the form"}))
    with pytest.raises(ConfigError, match="vlm data organize x"):
        fetch(Entry(**known, source={"kind": "built", "command": "vlm data organize x"}))
    hub = Entry(**known, source={"kind": "hub", "repo": "org/model", "revision": None})
    with pytest.raises(ConfigError, match="a branch moves") as error:
        fetch(hub, pinned_only=True)
    assert "--revision" in error.value.fix
    assert isinstance(pinned(hub, COMMIT)[0], HubSource)
    assert pinned(hub, COMMIT)[0].revision == COMMIT
    url = Entry(**known, source={"kind": "url", "url": "http://h/f"})
    assert isinstance(url.source[0], UrlSource)
    with pytest.raises(ConfigError, match="leave out --revision"):
        pinned(url, COMMIT)


def fetch_from_hub(server, *options: str) -> subprocess.CompletedProcess:
    """In a separate process, because the hub client reads its address when it is imported."""
    known = {"name": "m", "kind": "weights", "title": "t", "license": "-", "folder": "pretrained/m"}
    source = {"kind": "hub", "repo": "org/model", "revision": None}
    catalogue = Path(os.environ["VLM_HOME"]).parent / "mine.yaml"
    catalogue.write_text(json.dumps({"entries": [known | {"source": source}]}))
    command = [sys.executable, "-m", "vlm.cli.main", "download", "m", "--catalogue", str(catalogue), *options]
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(catalogue.parent / "hf")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_hub_snapshot_is_pinned_checked_and_left_alone_afterwards(server, vlm_home):
    done = fetch_from_hub(server, "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    folder = vlm_home / "pretrained" / "m"
    assert {n: c for n, c in tree(folder).items() if n != MANIFEST} == HUB_FILES
    assert read_manifest(folder)["source"][0]["revision"] == COMMIT
    asked = len(server.asked)
    again = fetch_from_hub(server)
    assert "already complete" in again.stdout, again.stderr
    assert len(server.asked) == asked


def test_a_damaged_hub_file_is_an_error_and_the_next_run_fixes_it(server, vlm_home):
    server.damaged = True
    damaged = fetch_from_hub(server, "--revision", COMMIT)
    assert damaged.returncode == 4, damaged.stderr
    assert "config.json, weights/model.bin arrived damaged" in damaged.stderr
    assert folder_state(vlm_home / "pretrained" / "m") == "partial"
    server.damaged = False
    fixed = fetch_from_hub(server, "--revision", COMMIT)
    assert fixed.returncode == 0, fixed.stderr
    assert (vlm_home / "pretrained/m/weights/model.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("environment", "revision", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, COMMIT, "cannot be reached"),
        ({}, "b" * 40, "no revision bbbb"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, COMMIT, "cannot be reached"),
    ],
)
def test_a_hub_without_network_or_revision_is_an_error_with_a_fix(
    server, vlm_home, monkeypatch, environment, revision, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
        server.url = value if name == "HF_ENDPOINT" else server.url
    done = fetch_from_hub(server, "--revision", revision)
    assert done.returncode == 4, done.stderr
    assert message in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_published_weight_is_downloaded_by_its_name_and_pinned(server, tmp_path):
    """The real client, as a user starts it; the hub holds small files at the commits that the catalogue pins."""
    entries = [entry for entry in load_catalogue().values() if entry.kind == "weights" and entry.automatic]
    entries = [entry for entry in entries if all(isinstance(source, HubSource) for source in entry.source)]
    entries = [entry for entry in entries if (entry.size or 0) < 16e9]  # a download asks for that much free disk
    assert {"InternVL2-2B", "V2PE", "ConvLLaVA-sft-768", "InternVL3-8B"} <= {entry.name for entry in entries}
    for entry in entries:
        files = {name.replace("*", "00001"): name.encode() * 100 for name in entry.tree}
        for source in entry.source:
            server.hub.repos[source.repo] = hub.published(files, source.revision or COMMIT)
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    env |= {"VLM_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}

    def download(*words):
        command = [sys.executable, "-m", "vlm.cli.main", "download", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)

    names = ["V2PE-32K" if entry.name == "V2PE" else entry.name for entry in entries]
    done = download(*names)
    assert done.returncode == 0, done.stderr
    for entry in entries:
        folder = tmp_path / "home" / entry.folder
        source = read_manifest(folder)["source"][0]
        assert source["revision"] == (entry.source[0].revision or COMMIT), entry.name
        assert {n: c for n, c in tree(folder).items() if n != MANIFEST} == server.hub.repos[source["repo"]].commits[
            source["revision"]
        ]
    taken = [line for line in done.stdout.splitlines() if "taken: commit" in line]
    assert len(taken) == sum(entry.source[0].revision is None for entry in entries)
    asked = len(server.asked)
    assert download(*names).returncode == 0 and len(server.asked) == asked
    server.fault = "503"
    away = download("--all", "weights", "--verify", "--locked")
    assert "Traceback" not in away.stderr, away.stderr
