"""kill -9 of `vlm download` and `vlm data organize` at random moments: the same commands then make the same bytes."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support import local_hub as hub
from vlm.core.fetch.manifest import finish_install, install

PICTURES = 40
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


def pictures(form: str, folder: str) -> dict[str, bytes]:
    files = {}
    for i in range(PICTURES):
        buffer = io.BytesIO()
        values = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize((160, 120)).save(buffer, form)
        files[f"{folder}/{i}.{form.lower()}"] = buffer.getvalue()
    return files


def packed() -> dict[str, bytes]:
    """A tar.gz in two parts, a zip of GIFs, and annotation that names a file which is not there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as t:
        for name, content in pictures("PNG", "a").items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_000_000_000
            t.addfile(info, io.BytesIO(content))
    split = buffer.getvalue()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z:
        for name, content in pictures("GIF", "b").items():
            z.writestr(zipfile.ZipInfo(name), content)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a picture"}]
    names = [f"a/{i}.png" for i in range(PICTURES + 1)] + [f"b/{i}.gif" for i in range(PICTURES)]
    records = [{"id": i, "image": name, "conversations": turns} for i, name in enumerate(names)]
    half = len(split) // 2
    return {
        "/file/a.tar.gz.partaa": split[:half],
        "/file/a.tar.gz.partab": split[half:],
        "/file/b.zip": zipped.getvalue(),
        "/file/all.json": json.dumps(records).encode(),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A slow server, a catalogue with a set from URLs and the hub, and the trees that undisturbed commands make."""
    folder = tmp_path_factory.mktemp("kills")
    with hub.serving() as server:
        server.files = packed()
        server.etags = {name: f'"{hashlib.md5(content).hexdigest()}"' for name, content in server.files.items()}
        server.pause = 0.03
        urls = [{"kind": "url", "url": server.url + name} for name in server.files]
        of_hub = {"kind": "hub", "repo": "org/model", "revision": hub.COMMIT}
        steps = [
            {"unpack": {"archives": "a.tar.gz.part*", "parts": True, "into": "a"}},
            {"unpack": {"archives": "b.zip", "into": "b"}},
            {"jpeg": {"folder": "b"}},
            {"link": {"from": "other", "to": "linked"}},
            {"records": {"from": "all.json", "to": "all.jsonl", "jpg": True}},
        ]
        known = {"name": "set", "kind": "data", "title": "t", "license": "-", "folder": "dataset/set"}
        entry = known | {"source": [*urls, of_hub], "organise": steps, "records": {"all.jsonl": 2 * PICTURES + 1}}
        (folder / "mine.yaml").write_text(json.dumps({"entries": [entry]}))
        yield World(folder, server)


DOWNLOAD, ORGANIZE = ("download",), ("data", "organize", "--max-lost", "0.1")
WORK = {DOWNLOAD: ".partial", ORGANIZE: ".partial/organise-set"}
"""What appears in the folder when the work begins."""


class World:
    """Runs `vlm` in homes below a folder. `trees` and `seconds` of work are those of undisturbed commands."""

    def __init__(self, folder: Path, server: Any):
        self.folder, self.server = folder, server
        self.homes = 0
        self.trees: dict[tuple[str, ...], dict[str, bytes]] = {}
        self.seconds: dict[tuple[str, ...], float] = {}
        home = self.new_home(DOWNLOAD)
        for words in (DOWNLOAD, ORGANIZE):
            process = self.start(home, words)
            self.wait(process, home / "dataset/set" / WORK[words])
            start = time.monotonic()
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
            self.seconds[words] = time.monotonic() - start
            self.trees[words] = hub.tree(home / "dataset/set")
            if words == DOWNLOAD:
                shutil.copytree(home, folder / "downloaded")

    def new_home(self, words: tuple[str, ...]) -> Path:
        """An empty home, or for organizing one with the download."""
        self.homes += 1
        home = self.folder / f"home{self.homes}"
        if words == ORGANIZE:
            shutil.copytree(self.folder / "downloaded", home)
        else:
            (home / "dataset/other").mkdir(parents=True)
            (home / "dataset/other/x").write_text("x")
        return home

    def start(self, home: Path, words: tuple[str, ...]) -> subprocess.Popen:
        command = [sys.executable, "-m", "vlm.cli.main", *words, "set", "--catalogue", str(self.folder / "mine.yaml")]
        settings = {"HF_ENDPOINT": self.server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")}
        env = os.environ | settings | {"VLM_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def wait(self, process: subprocess.Popen, sign: Path) -> None:
        """Until the work has begun or the command has ended."""
        deadline = time.monotonic() + 120
        while process.poll() is None and not sign.exists() and time.monotonic() < deadline:
            time.sleep(0.002)

    def finish(self, home: Path, words: tuple[str, ...]) -> None:
        done = self.start(home, words)
        said, _ = done.communicate(timeout=120)
        assert done.returncode == 0, said
        assert hub.tree(home / "dataset/set") == self.trees[words]

    def killed(self, words: tuple[str, ...], kills: int, rng: random.Random) -> int:
        """Kill the command that often at random moments, in a fresh home whenever it got through; after each life
        compare the trees. Returns how many kills left unfinished work."""
        unfinished = 0
        while kills:
            home = self.new_home(words)
            work = home / "dataset/set" / WORK[words]
            for _ in range(rng.randint(1, 5)):
                process = self.start(home, words)
                if rng.random() < 0.9:  # else while it starts
                    self.wait(process, work)
                time.sleep(rng.uniform(0, 1) * self.seconds[words])
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    kills -= 1
                process.communicate()
                unfinished += work.exists()
                if not kills:
                    break
            self.finish(home, words)
            shutil.rmtree(home)
        return unfinished


def test_the_undisturbed_tree_is_what_the_catalogue_says(world):
    found = world.trees[ORGANIZE]
    assert {name for name in found if "/" not in name} == {
        ".vlm-manifest.json", ".vlm-organised-set.json", "a.tar.gz.partaa", "a.tar.gz.partab", "all.json", "all.jsonl",
        "b.zip", "config.json", "ledger-set.jsonl", "linked",
    }  # fmt: skip
    assert sum(name.startswith("a/") for name in found) == PICTURES
    assert sum(name.startswith("b/") for name in found) == 2 * PICTURES
    assert len(found["all.jsonl"].splitlines()) == 2 * PICTURES
    assert [json.loads(line)["id"] for line in found["ledger-set.jsonl"].splitlines()] == [f"all.json:{PICTURES + 1}"]
    assert found["linked"] == b"-> ../other"
    assert found["weights/model.bin"] == hub.CONTENT


def test_a_kill_after_the_manifest_leaves_the_note_alone_and_the_next_run_clears_it(tmp_path, monkeypatch):
    staged = tmp_path / ".partial/4/x"
    staged.parent.mkdir(parents=True)
    staged.write_text("x")
    (staged.parent / "cache").write_text("left over")
    remove = shutil.rmtree

    def killed(path: Path, ignore_errors: bool) -> None:
        if path.name == ".partial":
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        install(tmp_path, [(staged, "x")], name="set", source=[])
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / ".partial").iterdir()} == {"install.json"}
    assert (tmp_path / ".vlm-manifest.json").exists()
    assert finish_install(tmp_path) and not (tmp_path / ".partial").exists()


@pytest.mark.parametrize(("kills", "seed"), [(2, 0), pytest.param(15, 1, marks=SLOW)])
def test_a_download_killed_at_random_moments_ends_in_the_same_tree(world, kills, seed):
    assert world.killed(DOWNLOAD, kills, random.Random(seed)) >= kills // 3


@pytest.mark.parametrize(("kills", "seed"), [(2, 2), pytest.param(15, 3, marks=SLOW)])
def test_an_organize_killed_at_random_moments_ends_in_the_same_tree(world, kills, seed):
    assert world.killed(ORGANIZE, kills, random.Random(seed)) >= kills // 3
