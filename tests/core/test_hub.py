"""A hub that answers as hubs, mirrors and proxies do: every failure is ours with its fix, and commits are noted.

The hub is local; the client is the real huggingface-hub.
"""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from support import local_hub as hub
from vlm.core.errors import ConfigError, FetchError
from vlm.core.fetch import hub as ours
from vlm.core.fetch.catalogue import Entry
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.hub import resolve_commit
from vlm.core.fetch.manifest import MANIFEST, folder_state, read_manifest

COMMIT = hub.COMMIT


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that the client in this process asks."""
    with hub.serving() as server:
        hub.point_client(server, monkeypatch, tmp_path)
        yield server


def entry_of(revision: str | None = COMMIT, **more: Any) -> Entry:
    source = {"kind": "hub", "repo": "org/model", "revision": revision, **more}
    return Entry(name="m", kind="weights", title="t", license="-", folder="pretrained/m", source=source)


def failed(entry: Entry, **options: Any) -> FetchError:
    with pytest.raises(FetchError) as error:
        fetch(entry, **options)
    assert error.value.fix and "\x1b" not in str(error.value) and len(str(error.value)) < 800
    assert read_manifest(entry.path) is None
    return error.value


WORDS = {
    "401": ("has no repository org/model", "hf auth login"),
    "gated": ("org/model is gated", "accept its license"),
    "gated files": ("gated", "accept its license"),
    "disabled": ("was disabled", "page"),
    "proxy 403": ("refuses the request (403)", "proxy"),
    "proxy 407": ("refuses the request (407)", "proxy"),
    "404": ("has no repository org/model", "check the name"),
    "plain 404": ("404", "HF_ENDPOINT"),
    "429": ("rate limit", "wait some minutes"),
    "500": ("answered 500", "wait"),
    "503": ("answered 503", "wait"),
    "page": ("cannot be read", "browser"),
    "empty": ("", ""),
    "list": ("cannot be read", "browser"),
    "deep": ("cannot be read", "browser"),
    "no json": ("cannot be read", "browser"),
}


@pytest.mark.parametrize("fault", WORDS)
@pytest.mark.parametrize("revision", [COMMIT, None])
def test_every_bad_answer_of_the_hub_is_our_error_with_its_fix(
    server: Any, monkeypatch: pytest.MonkeyPatch, fault: str, revision: str | None
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's own pauses
    server.fault = fault
    error = failed(entry_of(revision))
    found, fix = WORDS[fault]
    assert found in error.found and fix in (error.fix or "")
    server.fault = ""
    assert fetch(entry_of(revision)) == "fetched"


def test_a_bad_token_and_a_rate_limit_are_told_apart(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    server.fault = "bad token"
    error = failed(entry_of())
    assert "does not accept the token" in error.found and "HF_TOKEN" in (error.fix or "")
    assert "hf_bad" not in str(error)
    server.fault = "429"
    error = failed(entry_of())
    assert "rate limit" in error.found and "hf auth login" not in (error.fix or "")


def test_a_file_shorter_than_announced_is_fetched_again_by_the_same_command(server: Any) -> None:
    server.fault = "short"
    error = failed(entry_of())
    assert "shorter than announced" in error.found and "same command" in (error.fix or "")
    server.fault = ""
    assert fetch(entry_of()) == "fetched"
    assert (entry_of().path / "weights/model.bin").read_bytes() == hub.CONTENT


def test_a_file_longer_than_announced_ends_soon(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "SLACK", 5_000_000)
    server.fault = "endless"
    started = time.monotonic()
    error = failed(entry_of())
    assert "more than" in error.found or "cannot be reached" in error.found
    assert time.monotonic() - started < 30
    on_disk = sum(p.stat().st_size for p in entry_of().path.rglob("*") if p.is_file())
    assert on_disk < 300_000_000


@pytest.mark.parametrize("answered", range(4))
def test_a_connection_that_is_cut_is_made_again(server: Any, answered: int) -> None:
    server.answered, server.cuts = answered, 2  # the repository's page, then each request of a file
    assert fetch(entry_of()) == "fetched" and server.cuts == 0
    server.cuts = 2
    assert resolve_commit(entry_of(None).source[0]) == COMMIT


def test_a_hub_that_cuts_every_connection_is_an_error(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "TRIES", 2)
    server.cuts = 1_000_000
    assert "cannot be reached" in failed(entry_of()).found
    server.cuts = 0
    assert fetch(entry_of()) == "fetched"


def test_a_download_that_stalls_ends(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "STALL", 1.0)
    server.pause = 3.0
    assert "too slow" in failed(entry_of()).found


@pytest.mark.parametrize(
    ("endpoint", "found", "fix"),
    [
        ("http://127.0.0.1:9", "cannot be reached", "HF_ENDPOINT"),
        ("http://no-such-host.invalid", "cannot be reached", "HF_ENDPOINT"),
        ("hf-mirror.com", "HF_ENDPOINT=hf-mirror.com is no address", "https://hf-mirror.com"),
    ],
)
def test_a_hub_that_is_not_there_is_an_error_with_a_fix(
    server: Any, monkeypatch: pytest.MonkeyPatch, endpoint: str, found: str, fix: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for revision in (COMMIT, None):
        error = failed(entry_of(revision))
        assert found in error.found and fix in (error.fix or "")


def test_tls_and_proxy_faults_name_their_variable(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url.replace("http://", "https://"))
    assert "cannot be reached" in failed(entry_of()).found
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("NO_PROXY", "[::1]")
    assert "NO_PROXY has the entry [::1]" in failed(entry_of()).found
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    error = failed(entry_of())
    assert "secret" not in str(error)


def test_an_offline_hub_client_says_which_variable(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (COMMIT, None):
        error = failed(entry_of(revision))
        assert "HF_HUB_OFFLINE" in error.found and error.fix == "unset HF_HUB_OFFLINE"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_below_the_client_is_our_error(
    server: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import huggingface_hub

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, "no", "/cache/xet/log")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    error = failed(entry_of())
    assert "/cache/xet/log" in error.found and "VLM_HOME" in (error.fix or "")


# commits -------------------------------------------------------------------------------------------------------------


def test_a_repository_that_nothing_pins_is_taken_at_its_newest_commit_and_stays_there(server: Any) -> None:
    said: list[str] = []
    entry = entry_of(None)
    with pytest.raises(ConfigError, match="a branch moves"):
        fetch(entry, pinned_only=True)
    assert not server.asked
    assert fetch(entry, say=said.append) == "fetched"
    assert len(said) == 1 and COMMIT in said[0] and "org/model" in said[0]
    manifest = read_manifest(entry.path)
    assert manifest and manifest["source"][0]["revision"] == COMMIT
    asked = len(server.asked)
    assert fetch(entry, say=said.append) == "present"
    assert fetch(entry, pinned_only=True) == "present"  # pinned from there on
    assert len(server.asked) == asked and len(said) == 1


def test_an_interrupted_download_goes_on_at_the_commit_that_it_began_with(server: Any) -> None:
    entry, said = entry_of(None), []
    server.fault = "short"
    failed(entry)
    assert folder_state(entry.path) == "partial"
    server.fault = ""
    assert fetch(entry, pinned_only=True, say=said.append) == "fetched" and not said


def test_a_branch_is_resolved_to_its_commit(server: Any) -> None:
    source = entry_of("main").source[0]
    assert resolve_commit(source) == COMMIT
    assert fetch(entry_of(None), revision="main") == "fetched"
    manifest = read_manifest(entry_of().path)
    assert manifest and manifest["source"][0]["revision"] == COMMIT
    assert (
        "no revision nope"
        in failed(Entry.model_validate(entry_of("nope").model_dump() | {"folder": "dataset/n"})).found
    )


@pytest.mark.slow
def test_the_command_says_the_commit_and_exits_with_4_without_a_hub(server: Any, tmp_path: Path) -> None:
    import os

    (tmp_path / "mine.yaml").write_text(json.dumps({"entries": [entry_of(None).model_dump(mode="json")]}))
    command = [sys.executable, "-m", "vlm.cli.main", "download", "m", "--catalogue", str(tmp_path / "mine.yaml")]
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    for endpoint in ("http://127.0.0.1:9", "no-scheme.example"):
        away = subprocess.run(command, env=env | {"HF_ENDPOINT": endpoint}, capture_output=True, text=True, timeout=120)
        assert away.returncode == 4 and "fix:" in away.stderr and "Traceback" not in away.stderr, away.stderr
    here = subprocess.run(command, env=env | {"HF_ENDPOINT": server.url}, capture_output=True, text=True, timeout=120)
    assert here.returncode == 0, here.stderr
    assert f"taken: commit {COMMIT}" in here.stdout
    assert json.loads((entry_of().path / MANIFEST).read_text())["source"][0]["revision"] == COMMIT
