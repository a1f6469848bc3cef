"""Pictures by address, and data sets of the hub: fetched once, within limits, at a commit that is said."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image

from support import local_hub as hub
from vlm.core.errors import DataError, FetchError
from vlm.core.rows import media
from vlm.core.rows.source import find_source
from vlm.core.rows.table import open_table
from vlm.core.rows.write import ImportOptions, write_normal

URLS = ImportOptions(urls=True, max_lost=1.0)


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(file, "PNG")
    return file.getvalue()


FILES = {
    "README.md": b"pets",
    "data/train.csv": b"image,question,answer\nred.png,What color is it?,red\n",
    "data/test.csv": b"image,question,answer\nred.png,Which color?,red\nred.png,Which?,red\n",
    "red.png": png(),
}


class Sets(hub.Handler):
    """A hub with one data set, org/pets."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, None))
        path = self.path.split("?")[0]
        name = path.partition(f"/resolve/{hub.COMMIT}/")[2]
        if path.startswith("/api/datasets/org/pets/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()]
            self.reply(200, hub.JSON, json.dumps(tree).encode())
        elif path.startswith("/api/datasets/org/pets"):
            siblings = [{"rfilename": n, "size": len(c)} for n, c in FILES.items()]
            known = {"id": "org/pets", "sha": hub.COMMIT, "siblings": siblings, "private": False, "tags": []}
            self.reply(200, hub.JSON, json.dumps({**known, "downloads": 0, "likes": 0}).encode())
        elif name in FILES and path.startswith("/datasets/org/pets/"):
            tag = hashlib.sha256(FILES[name]).hexdigest()
            self.send_from(FILES[name], 0, headers={"ETag": f'"{tag}"', "X-Repo-Commit": hub.COMMIT})
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """That hub, asked by the real client, and a home."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    found = hub.Server(("127.0.0.1", 0), Sets)
    found.asked, found.url = [], f"http://127.0.0.1:{found.server_address[1]}"  # type: ignore[attr-defined]
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)  # type: ignore[attr-defined]
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", found.url)  # type: ignore[attr-defined]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield found
    found.shutdown()
    found.server_close()


def test_a_set_of_the_hub_is_fetched_at_a_commit_that_is_said_and_then_stays(server: Any, tmp_path: Path) -> None:
    said: list[str] = []
    source = find_source("org/pets:test", say=said.append)
    assert source.said == f"org/pets@{hub.COMMIT}" and hub.COMMIT in said[0]
    assert (source.name, source.table.split, source.table.count()) == ("pets", "test", 2)
    done = write_normal(source.table, tmp_path / "out", source=source.said)
    assert (done["written"], done["source"]) == (2, source.said)
    asked = len(server.asked)
    assert find_source("org/pets").table.split == "train" and len(server.asked) == asked  # offline from now on


def test_what_the_hub_does_not_have_and_what_is_no_name_of_it_is_said(server: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="has no repository org/dogs"):
        find_source("org/dogs")
    for name in ("pets", "data/pets.csv", "a/b/c", "../x", "C:\\pets.csv"):
        asked = len(server.asked)
        with pytest.raises(DataError, match="no such file or folder"):
            find_source(name)
        assert len(server.asked) == asked


@pytest.fixture
def site() -> Iterator[Any]:
    with hub.serving() as found:
        yield found


def rows_of(tmp_path: Path, *urls: str) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"image": url, "conversations": turns}) + "\n" for url in urls))
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def test_a_picture_by_address_is_fetched_once_and_only_on_request(site: Any, tmp_path: Path) -> None:
    site.files["/file/a.png"] = png()
    table = open_table(rows_of(tmp_path, f"{site.url}/file/a.png", f"{site.url}/file/a.png"))
    with pytest.raises(DataError, match="fetched only with --allow-urls"):
        write_normal(table, tmp_path / "out")
    assert not site.asked
    assert write_normal(table, tmp_path / "out", URLS)["written"] == 2
    assert len(site.asked) == 1
    assert len(list((tmp_path / "home/.cache/media").iterdir())) == 1


def test_every_fault_of_an_address_costs_its_row(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MOST_BYTES", 5000)
    site.files |= {"/file/good.png": png(), "/file/page": hub.PAGE, "/file/large": bytes(6000)}
    names = ("file/good.png", "404/a.png", "file/page", "file/large")
    urls = [f"{site.url}/{name}" for name in names] + ["http://127.0.0.1:9/a.png", "http://[/a.png"]
    done = write_normal(open_table(rows_of(tmp_path, *urls)), tmp_path / "out", URLS)
    assert (done["read"], done["written"]) == (6, 1)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/ledger.jsonl").read_text().splitlines()]
    for reason, why in zip(reasons, ("404", "web page", "more than 5,000 bytes", "Connect", "url: "), strict=True):
        assert why in reason, reason
