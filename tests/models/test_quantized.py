"""`vlm weights convert --quantize`: an `-hf` folder that transformers opens quantized."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from vlm.cli.commands.weights import app
from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.extras import install_line
from vlm.models.checkpoint import quantized
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import load_model, save_model, save_state
from vlm.models.checkpoint.placement import quantized_linears
from vlm.models.checkpoint.quantized import convert_quantized
from vlm.models.processor import load_processor

LINEAR = re.compile(r"language_model\.model\.layers\.\d+\.\w+\.\w+_proj\.weight")
ERROR = {"8bit": 0.05, "4bit": 0.35}
"""Of the logits, relative; the same bounds as for `--quantize` of `vlm chat`."""

needs_bitsandbytes = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")


def dequantized(layer: torch.nn.Module) -> Tensor:
    """The weights that a layer of bitsandbytes computes with."""
    weight: Any = layer.weight
    if weight.dtype == torch.int8:
        return weight.data.float() * weight.SCB[:, None] / 127
    return bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state).float()


def allowed(weight: Tensor, quantize: str) -> Tensor:
    """The greatest error of each weight.

    8 bits: half a step of 1/127 of the row's maximum, after rounding to float16. 4 bits: half the widest gap of NF4,
    between -1 and -0.6962, of the maximum of 64 weights, which is itself rounded to 8 bits.
    """
    if quantize == "8bit":
        return weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)
    blocks = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    return (blocks * 0.152 + blocks.max() * 0.01).expand(-1, 64).reshape(weight.shape)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("preset", ["tiny-internvl2", "tiny-internvl3"])
class TestExport:
    pytestmark = needs_bitsandbytes

    def test_transformers_opens_it_quantized_and_it_answers(self, preset, quantize, checkpoint, tmp_path) -> None:
        bitsandbytes()
        source, out = checkpoint(preset), tmp_path / "low"
        plain = convert(source, "hf", tmp_path / "plain")
        done = CliRunner().invoke(app, ["convert", str(source), "--to", "hf", "--quantize", quantize, "-o", str(out)])
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == str(out) and sorted(p.name for p in tmp_path.iterdir()) == ["low", "plain"]

        # files: the same ones; the same content but for the layers and the note in config.json
        assert {p.name for p in out.iterdir()} == {p.name for p in plain.iterdir()}
        for file in plain.iterdir():
            assert (out / file.name).stat().st_mode == file.stat().st_mode
            if file.name not in ("config.json", "model.safetensors"):
                assert (out / file.name).read_bytes() == file.read_bytes()
        config = json.loads((out / "config.json").read_text())
        note = config.pop("quantization_config")
        assert config == json.loads((plain / "config.json").read_text())
        assert note["quant_method"] == "bitsandbytes" and note[f"load_in_{quantize}"] is True
        whole, low = load_file(plain / "model.safetensors"), load_file(out / "model.safetensors")
        layers = {name for name in whole if LINEAR.fullmatch(name)}
        assert len(layers) == len(quantized_linears(load_model(source)))
        for name in whole.keys() - layers:
            assert whole[name].dtype == low[name].dtype and torch.equal(whole[name], low[name]), name
        extra = sum(t.nbytes for name, t in low.items() if name not in whole or name in layers)
        spent = sum(whole[name].nbytes for name in layers)
        scales = sum(t.nbytes for name, t in low.items() if name not in whole)
        assert extra - scales == spent // (4 if quantize == "8bit" else 8)
        assert (out / "model.safetensors").stat().st_size < (plain / "model.safetensors").stat().st_size

        # in transformers: quantized as it is loaded, near the original, and able to answer
        model = AutoModelForImageTextToText.from_pretrained(out, device_map={"": "cpu"}).eval()
        full = AutoModelForImageTextToText.from_pretrained(plain).eval()
        assert model.get_memory_footprint() < full.get_memory_footprint()
        for name in layers:
            place = "model." + name.removesuffix(".weight").replace("language_model.model.", "language_model.")
            layer, weight = model.get_submodule(place), whole[name]
            assert layer.weight.dtype == (torch.int8 if quantize == "8bit" else torch.uint8)
            error = (dequantized(layer) - weight).abs()
            assert error.max() > 0 and (error <= allowed(weight, quantize)).all(), name
        Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "picture.png")
        content = [{"type": "image", "path": str(tmp_path / "picture.png")}, {"type": "text", "text": "What is it?"}]
        batch = AutoProcessor.from_pretrained(out).apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = [m(**batch).logits for m in (full, model)]
            first, second = (model.generate(**batch, max_new_tokens=6, do_sample=False) for _ in range(2))
        assert 0 < (logits[0] - logits[1]).norm() / logits[0].norm() < ERROR[quantize]
        assert first.shape[1] > batch["input_ids"].shape[1] and torch.equal(first, second)

        # what vlm says of it
        for read in (load_model, load_processor):
            with pytest.raises(CheckpointError, match="stored quantized, by bitsandbytes"):
                read(out)
        with pytest.raises(CheckpointError, match="stored quantized"):
            convert_quantized(out, tmp_path / "again", quantize)
        assert not (tmp_path / "again").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_shards_and_the_stored_type_are_kept(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    bitsandbytes()
    model = load_model(checkpoint(), dtype="bfloat16")
    save_model(model, tmp_path / "half", tokenizer=checkpoint())
    out = convert_quantized(tmp_path / "half", tmp_path / "low", "4bit", max_shard_size="100KB")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1 and not (out / "model.safetensors").exists()
    assert json.loads((out / "config.json").read_text())["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"
    found = AutoModelForImageTextToText.from_pretrained(out, device_map={"": "cpu"})
    tower = convert(tmp_path / "half", "hf", tmp_path / "plain") / "model.safetensors"
    weight = load_file(tower)["vision_tower.embeddings.patch_embeddings.projection.weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(found.model.vision_tower.embeddings.patch_embeddings.projection.weight, weight)


@pytest.fixture
def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes were installed: these end before it is used."""
    monkeypatch.setattr(quantized, "require", lambda *_: None)


def refused(source: Path, out: Path, error: type[Exception], message: str, **settings: Any) -> Any:
    """Convert, expect the error, and nothing left where the folder would be."""
    with pytest.raises(error, match=message) as found:
        convert_quantized(source, out, **{"quantize": "4bit", **settings})
    assert not list(out.parent.glob(f"*{out.name}*"))
    return found.value


@pytest.mark.parametrize("to", ["internvl", "llava", "vlm"])
def test_other_layouts_have_no_place_for_such_weights(to, checkpoint, tmp_path) -> None:
    found = refused(checkpoint(), tmp_path / "low", ConfigError, f"--quantize with --to {to}", to=to)
    assert found.expected == "--to hf"


def test_unknown_quantizations_losses_and_other_families_are_refused(with_library, checkpoint, tmp_path) -> None:
    out = tmp_path / "low"
    refused(checkpoint(), out, UnknownName, "unknown quantization '3bit'", quantize="3bit")
    refused(checkpoint("tiny-convllava"), out, ConfigError, "hf")
    model, changed = load_model(checkpoint()), tmp_path / "v2pe"
    spec = model.spec.model_copy(update={"strides": 64.0})
    save_state(model.state_dict(), spec, changed, tokenizer=checkpoint())
    refused(changed, out, ConfigError, "V2PE strides")


def test_without_bitsandbytes_the_error_names_the_extra(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = refused(checkpoint(), tmp_path / "low", HardwareError, "--quantize 4bit needs bitsandbytes")
    assert found.fix == install_line("quant")


def test_a_bitsandbytes_that_transformers_refuses_is_named(with_library, checkpoint, tmp_path, monkeypatch) -> None:
    def too_old(*_: Any, **__: Any) -> None:
        raise ImportError("requires bitsandbytes>=9")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", too_old)
    found = refused(checkpoint(), tmp_path / "low", HardwareError, "cannot use the installed bitsandbytes")
    assert "install -U bitsandbytes" in found.fix


def test_a_library_that_quantizes_the_tower_is_noticed(with_library, checkpoint, tmp_path, monkeypatch) -> None:
    plain = convert(checkpoint(), "hf", tmp_path / "plain")
    model = AutoModelForImageTextToText.from_pretrained(plain)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight = torch.nn.Parameter(module.weight.data.to(torch.int8), requires_grad=False)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: model)
    refused(checkpoint(), tmp_path / "low", CheckpointError, r"other modules than asked: model\.vision_tower")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.double(), "are float64"),
        (lambda t: t.fill_(torch.nan) if t.dim() == 1 else t, "NaN or infinity in"),
    ],
)
def test_weights_that_cannot_be_quantized_are_refused(change, message, with_library, checkpoint, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint(), broken)
    file = broken / "model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
    refused(broken, tmp_path / "low", CheckpointError, message)


@pytest.mark.parametrize("left", ["disk", "stop"])
def test_a_failure_midway_leaves_nothing(left, with_library, checkpoint, tmp_path, monkeypatch) -> None:
    class Half:
        def get_memory_footprint(self) -> int:
            return 10**18 if left == "disk" else 1

        def save_pretrained(self, folder: Path, **_: Any) -> None:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(quantized, "load_quantized", lambda *_: Half())
    kind, message = (HardwareError, "free at") if left == "disk" else (KeyboardInterrupt, "^$")
    refused(checkpoint(), tmp_path / "low", kind, message)


def test_a_folder_that_is_there_is_kept(with_library, checkpoint, tmp_path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="exists"):
        convert_quantized(checkpoint(), tmp_path / "low", "8bit")
    assert (tmp_path / "low" / "mine").read_text() == "x"


@pytest.mark.parametrize("note", [{"quant_method": "awq", "bits": 4}, {}, "gptq"])
def test_stored_quantized_weights_are_named_with_a_way_out(note, checkpoint, tmp_path) -> None:
    folder = tmp_path / "theirs"
    convert(checkpoint(), "hf", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": note}))
    if not note:
        load_model(folder)
        return
    with pytest.raises(CheckpointError, match=r"stored quantized, by (awq|gptq)") as found:
        load_model(folder)
    assert "--quantize 8bit or 4bit" in str(found.value.fix)


@pytest.mark.parametrize("extra", [("--remote-code", "."), ()])
def test_options_that_do_not_fit_are_refused(extra, checkpoint, tmp_path) -> None:
    source = checkpoint()
    if not extra:
        source = tmp_path / "adapter"
        source.mkdir()
        (source / "adapter_config.json").write_text("{}")
    line = ["convert", str(source), "--to", "hf", "--quantize", "4bit", "-o", str(tmp_path / "low"), *extra]
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, ConfigError) and "--quantize" in done.exception.found
    assert not (tmp_path / "low").exists()
