"""A tiny home (three start checkpoints, a data set with images), recipes for it, and `vlm` in real child processes.

Children come from a fork server that has torch and DeepSpeed imported, so that one costs a tenth of a second and can
be killed, stopped, limited or joined to others by gloo like any process.
"""

import json
import multiprocessing
import os
import random
import runpy
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vlm.train.launch.launch import free_port

HERE = Path(__file__).parent
TOKENIZERS = HERE.parent / "golden" / "data" / "tokenizers"
START = {"tiny-internvl2": "internlm2", "tiny-convllava": "llama", "tiny-internvl3": "qwen2"}

RECIPE = {
    "title": "tiny",
    "model": {"start": "pretrained/tiny-internvl2", "preset": "tiny-internvl2"},
    "data": [{"name": "tiny", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny"}],
    "trainable": ["*"],
    "optimizer": {"lr": 0.003, "weight_decay": 0.1, "warmup": 0.2},
    "batch": {"samples": 6, "max_tokens": 512},
    "steps": 6,
    "strides": "random",
    "max_length": 512,
    "sources": {"": "test"},
}


def make_records(folder: Path, n: int = 24) -> list[dict]:
    """Records with no, one and two images in turn, answers of several lengths."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True)
    records = []
    for i in range(n):
        names = [f"images/{i}_{j}.png" for j in range(i % 3)]
        for name in names:
            size, grey = (rng.randint(40, 200), rng.randint(40, 200)), rng.randint(0, 255)
            Image.new("RGB", size, (grey, grey, 255 - grey)).save(folder / name)
        question = "<image>\n" * len(names) + "What " + "is " * rng.randint(1, 9) + "it?"
        answer = "It is " + "grey " * (1 + i % 5)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"id": f"s{i}", "image": names, "conversations": turns})
    return records


def write_jsonl(path: Path, records: list) -> None:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory):
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    home = tmp_path_factory.mktemp("home")
    for preset, name in START.items():
        model = build(load_preset(preset), tokenizer=TOKENIZERS / name, seed=0)
        save_model(model, home / "pretrained" / preset, tokenizer=TOKENIZERS / name)
    write_jsonl(home / "dataset/tiny/train.jsonl", make_records(home / "dataset/tiny"))
    return home


@pytest.fixture(autouse=True)
def home(tiny_home, monkeypatch):
    """VLM_HOME of every test here."""
    monkeypatch.setenv("VLM_HOME", str(tiny_home))
    return tiny_home


@pytest.fixture
def records(home) -> list[dict]:
    return [json.loads(line) for line in (home / "dataset/tiny/train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def recipe_file(tiny_home) -> Path:
    path = tiny_home / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def recipe(recipe_file):
    """`recipe("steps=3", data=[...])`: the tiny recipe with overrides."""
    from vlm.train.recipe.recipe import load_recipe

    def make(*overrides: str, **replaced):
        more = tuple(f"{k}={json.dumps(v)}" for k, v in replaced.items())
        return load_recipe(str(recipe_file), overrides=(*overrides, *more))

    return make


@pytest.fixture(scope="session")
def processor(tiny_home):
    from vlm.models import load_processor

    return load_processor(tiny_home / "pretrained/tiny-internvl2")


@pytest.fixture
def model(home):
    """The start model, fresh, in training mode."""
    from vlm.models import load_model

    return load_model(home / "pretrained/tiny-internvl2").train()


def curve(out: Path) -> list[str]:
    """What must repeat to the last bit: step, loss, rate and gradient norm of each line, as text."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return [json.dumps({k: line[k] for k in ("step", "loss", "lr", "grad_norm")}) for line in lines]


@pytest.fixture(name="curve")
def curve_fixture():
    return curve


@dataclass
class Child:
    """A running `vlm` process."""

    process: multiprocessing.process.BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, seconds: float = 60) -> int:
        """Its exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running:\n{self.said}"
        return self.process.exitcode

    @property
    def said(self) -> str:
        """What it wrote on both streams."""
        return self.log.read_text() if self.log.exists() else ""

    def until(self, condition, seconds: float = 60) -> None:
        """Wait for a condition while it runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"ended with {self.process.exitcode}:\n{self.said}"
            assert time.monotonic() < end, f"nothing happened:\n{self.said}"
            time.sleep(0.001)


@pytest.fixture(scope="session")
def fork_server():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "vlm.train.run.loop", "vlm.train.plan.run_plan", "vlm.cli.main"])
    return context


@pytest.fixture(scope="session")
def two_ranks(fork_server, tiny_home):
    """`two_ranks("worker.py", NAME=value)`: a script of this folder in two processes that find each other by gloo."""

    def run(script: str, **given: object) -> None:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = []
        for r in "01":
            env = {"VLM_HOME": str(tiny_home), **shared, "RANK": r, "LOCAL_RANK": r}
            job = (str(HERE / script), {"ENV": env, **given}, "worker")
            ranks.append(fork_server.Process(target=runpy.run_path, args=job, daemon=True))
            ranks[-1].start()
        for rank in ranks:
            rank.join(120)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        assert codes == [0, 0]

    return run


@pytest.fixture
def vlm(fork_server, home, tmp_path):
    """`vlm("train", ..., env={...})`: the command in a separate process."""
    children = []

    def start(
        *args: object,
        env: dict[str, str] | None = None,
        max_file: int | None = None,
        script: str = "train_worker.py",
    ) -> Child:
        log = tmp_path / f"child{len(children)}.log"
        given = {
            "ARGS": [str(a) for a in args],
            "ENV": {"VLM_HOME": str(home), "OMP_NUM_THREADS": "1", **(env or {})},
            "LOG": str(log),
            "MAX_FILE": max_file,
        }
        worker = str(HERE / script)
        process = fork_server.Process(target=runpy.run_path, args=(worker, given, "worker"), daemon=True)
        process.start()
        children.append(Child(process, log))
        return children[-1]

    yield start
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()


@pytest.fixture
def ranks(vlm):
    """`ranks(2, "train", ...)`: the command as gloo ranks; returns when all have ended well."""
    from vlm.train.launch.launch import free_port

    def start(n: int, *args: object, expect: int = 0) -> list[Child]:
        shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        children = [vlm(*args, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(n)]
        assert children[0].wait(120) == expect, children[0].said
        return children

    return start


@pytest.fixture
def cut(vlm, recipe_file, tmp_path):
    """`cut("steps=8", ...)`: two running ranks of the tiny recipe in the run folder `cut`."""

    def start(*sets: str) -> list[Child]:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        given = [x for s in sets for x in ("--set", s)]
        args = ("train", "-r", recipe_file, "--run", tmp_path / "cut", "--quiet", *given)
        return [vlm(*args, env={**shared, "RANK": r, "LOCAL_RANK": r}) for r in "01"]

    return start


@pytest.fixture
def killed(cut, tmp_path):
    """`killed("steps=8", ...)`: both ranks killed after the first checkpoint; the stage folder that they leave."""
    from vlm.train.run import checkpoint

    def kill(*sets: str) -> Path:
        pair, out = cut(*sets), tmp_path / "cut/train/tiny"
        pair[0].until(lambda: checkpoint.complete(out / "checkpoints"))
        for child in pair:
            child.process.kill()
            child.process.join()
        assert not (out / "model").exists()
        return out

    return kill


def numbers(out: Path, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(name="numbers")
def numbers_fixture():
    """One number of each step of a stage folder."""
    return numbers


@pytest.fixture
def trained(ranks, recipe_file, tmp_path):
    """Train the tiny recipe with `n` ranks: `trained(2, "name", "key=value", ...)`; its stage folder."""

    def trained(n: int, name: str, *sets: str, **kw) -> Path:
        given = [x for s in sets for x in ("--set", s)]
        ranks(n, "train", "-r", recipe_file, "--run", tmp_path / name, "--quiet", *given, **kw)
        return tmp_path / name / "train/tiny"

    return trained


@pytest.fixture
def alone(recipe, tmp_path):
    """Train it in this process alone; its folder."""
    from vlm.train.run.loop import train

    def alone(*sets: str) -> Path:
        train(recipe(*sets), tmp_path / "alone", quiet=True)
        return tmp_path / "alone"

    return alone
