"""`--source modelscope`: the same files from a second site, each held to its checksum; every failure is our error.

The server is local. That it speaks the site's protocol is shown by the site's own client, where that is installed.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support import modelscope_server as site
from vlm.cli.commands.download import app
from vlm.core.errors import ConfigError, FetchError, UnknownName, VlmError
from vlm.core.fetch.catalogue import Entry, find_entry, load_catalogue
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.manifest import MANIFEST, folder_state, read_manifest
from vlm.core.fetch.transfer import Patience

FILES = {"config.json": b'{"a": 1}\n', "model.bin": bytes(range(256)) * 40, "code/a file.py": b"x = 1\n"}
QUICK = Patience(tries=2, backoff=0.01, timeout=5)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    with site.serving("org/twin", dict(FILES)) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server


def entry_of(**more: Any) -> Entry:
    source = {"kind": "hub", "repo": "org/model", "revision": "a" * 40, "modelscope": "org/twin", **more}
    return Entry(name="m", kind="weights", title="t", license="-", folder="pretrained/m", source=source)


def held(entry: Entry) -> dict[str, bytes]:
    files = {p.relative_to(entry.path).as_posix(): p for p in entry.path.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in (MANIFEST, ".lock")}


def test_all_files_come_with_their_commit_in_the_manifest_and_once(server: Any) -> None:
    said: list[str] = []
    entry = entry_of().from_modelscope()
    assert fetch(entry, patience=QUICK, say=said.append) == "fetched"
    assert held(entry) == FILES and site.NEW in said[0]
    manifest = read_manifest(entry.path)
    assert manifest and manifest["source"][0] | {"files": [], "place": {}, "known": {}} == {
        "kind": "modelscope", "repo": "org/twin", "revision": site.NEW, "files": [], "place": {}, "known": {},
    }  # fmt: skip
    assert any(f"Revision={site.NEW}" in path and "FilePath=model.bin" in path for path, _ in server.asked)
    asked = len(server.asked)
    assert fetch(entry, patience=QUICK) == "present" and len(server.asked) == asked


def test_a_cut_download_goes_on_where_it_stopped(server: Any) -> None:
    entry = entry_of().from_modelscope()
    server.fault = "cut"
    with pytest.raises(FetchError):
        fetch(entry, patience=Patience(tries=1, backoff=0.01, timeout=5))
    assert folder_state(entry.path) == "partial" and read_manifest(entry.path) is None
    server.fault = ""
    assert fetch(entry, patience=QUICK, pinned_only=True) == "fetched"  # at the commit that it began with
    assert held(entry) == FILES
    assert ("/cdn/model.bin", f"bytes={len(FILES['model.bin']) // 2}-") in server.asked


@pytest.mark.parametrize(
    ("fault", "found"),
    [("damaged", "sha256"), ("503", "answered 503"), ("page", "cannot be read")],
)
def test_every_bad_answer_is_our_error_with_a_fix(server: Any, fault: str, found: str) -> None:
    server.fault = fault
    with pytest.raises(FetchError, match=found) as error:
        fetch(entry_of().from_modelscope(), patience=QUICK)
    assert error.value.fix and read_manifest(entry_of().path) is None


def test_a_site_that_is_not_there_and_a_repository_or_revision_that_is_not(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchError, match="no repository org/none"):
        fetch(entry_of(modelscope="org/none").from_modelscope(), patience=QUICK)
    with pytest.raises(FetchError, match="with the revision nope"):
        fetch(entry_of().from_modelscope(), revision="nope", patience=QUICK)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(entry_of().from_modelscope(), patience=QUICK)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "modelscope.cn")
    with pytest.raises(ConfigError, match="is no address"):
        fetch(entry_of().from_modelscope(), patience=QUICK)


def test_the_checksums_of_the_catalogue_hold_there_too(server: Any) -> None:
    right = {"model.bin": {"sha256": hashlib.sha256(FILES["model.bin"]).hexdigest()}}
    with pytest.raises(FetchError, match=r"another model\.bin than the catalogue knows"):
        fetch(entry_of(known={"model.bin": {"sha256": "0" * 64}}).from_modelscope(), patience=QUICK)
    assert fetch(entry_of(known=right).from_modelscope(), patience=QUICK) == "fetched"


@pytest.mark.parametrize("name", ["../out.py", ".vlm-manifest.json"])
def test_a_name_that_leaves_the_folder_is_refused(server: Any, name: str) -> None:
    server.files = {**FILES, name: b"x"}
    with pytest.raises(FetchError, match="is not accepted"):
        fetch(entry_of().from_modelscope(), patience=QUICK)
    assert not (entry_of().path.parent / "out.py").exists()


def test_the_command_offers_it_where_it_exists_and_only_there(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from huggingface_hub import constants

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    entries = [entry_of().model_dump(mode="json")]
    entries.append(entry_of(modelscope="").model_dump(mode="json") | {"name": "alone", "folder": "pretrained/alone"})
    (tmp_path / "mine.yaml").write_text(json.dumps({"entries": entries}))

    def run(*words: str) -> VlmError | None:
        done = CliRunner().invoke(app, [*words, "--catalogue", str(tmp_path / "mine.yaml")])
        assert done.exception is None or isinstance(done.exception, VlmError | SystemExit), done.exception
        return done.exception if isinstance(done.exception, VlmError) else None

    offered, alone = run("m"), run("alone")
    assert offered and "vlm download m --source modelscope" in str(offered.fix)
    assert alone and "modelscope" not in str(alone.fix)
    refused = run("alone", "--source", "modelscope")
    assert isinstance(refused, ConfigError) and "not known to be on ModelScope" in refused.found
    assert isinstance(run("m", "--source", "elsewhere"), UnknownName)
    assert run("m", "--source", "modelscope") is None  # what was offered
    assert held(entry_of()) == FILES
    asked = len(server.asked)
    assert run("m") is None and run("m", "--verify") is None  # it stays with the site that it came from
    assert len(server.asked) == asked


def test_the_catalogue_names_what_is_there() -> None:
    catalogue = load_catalogue()
    for name in ("InternVL2-2B", "ConvLLaVA-sft-768", "InternVL3-8B"):
        assert find_entry(name, catalogue).on_modelscope, name
    for name in ("V2PE", "ConvLLaVA-ConvNeXt-768"):
        assert not find_entry(name, catalogue).on_modelscope, name


def test_the_sites_own_client_gets_the_same_from_this_server(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    modelscope_hub = pytest.importorskip("modelscope_hub", reason="the client of ModelScope is not installed")
    folder = tmp_path / "theirs"
    modelscope_hub.HubApi(endpoint=server.url).download_repo("org/twin", repo_type="model", local_dir=folder)
    theirs = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {name: theirs.get(name) for name in FILES} == FILES
