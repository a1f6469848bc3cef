"""Features, logits, losses, gradients and greedy answers of tiny checkpoints against those of the published code.

Tolerances are those the fixtures recommend; the published code's own float32 noise is ten times smaller.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm.core.errors import DataError
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.patterns import WQKV, fuse_wqkv, rename
from vlm.models.checkpoint.read_config import read_layout
from vlm.models.projector import pixel_unshuffle
from vlm.models.vision.convnext import ConvNext
from vlm.models.vision.intern_vit import InternVit
from vlm.models.vlm import VisionLanguageModel

LLAVA_IMAGE = -200
TOWER = "model.vision_tower.vision_tower."


def close(name: str, got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.detach(), want, atol=2e-4, rtol=1e-4, msg=lambda text: f"{name}: {text}")


def load_tensors(folder: Path, case: dict) -> dict[str, Tensor]:
    found = load_file(folder / case["file"])
    for name, ref in case.get("reuse", {}).items():
        with safe_open(folder / ref["file"], "pt") as f:
            found[name] = f.get_tensor(ref["tensor"])
    return found


def load_case_model(folder: Path, case: dict, tmp_path: Path) -> VisionLanguageModel:
    """The checkpoint with the case's configuration: an edited config.json beside links to the weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(case.get("config_override") or {})
    if case.get("llm_config_override"):
        config["llm_config"].update(case["llm_config_override"])
    if "rope_pos_id_version" in case:
        config.update({key: case[key] for key in ("rope_pos_id_version", "rope_pos_id_stride")})
    for item in folder.iterdir():
        if item.name != "config.json":
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(tmp_path)
    if isinstance(model.encoder, ConvNext):
        model.encoder.drop_remainder = True  # see the decision on sizes that are no multiple of the stride
    return model


def splice(ids: Tensor, mask: Tensor | None, labels: Tensor | None, tokens: int, config: dict) -> dict[str, Tensor]:
    """LLaVA's batch as ours: one placeholder for each feature, not for each image; pads outside the mask are dropped,
    rows cut to `tokenizer_model_max_length` and padded on `tokenizer_padding_side`. A row without a placeholder still
    takes one image, which counts as a dummy."""
    rows, flags = [], []
    for r in range(len(ids)):
        kept = mask[r].bool() if mask is not None else torch.ones_like(ids[r], dtype=torch.bool)
        row, label = ids[r][kept], (ids[r] if labels is None else labels[r])[kept]
        image = row == LLAVA_IMAGE
        times = torch.where(image, tokens, 1)
        label = label.masked_fill(image, -100).repeat_interleave(times)
        limit = config["tokenizer_model_max_length"]
        rows.append((row.repeat_interleave(times)[:limit], label[:limit]))
        flags += [1] * int(image.sum()) or [0]
    length = max(len(row) for row, _ in rows)
    left = config["tokenizer_padding_side"] == "left"

    def padded(row: Tensor, value: int) -> Tensor:
        gap = length - len(row)
        return nn.functional.pad(row, (gap, 0) if left else (0, gap), value=value)

    batch = {
        "input_ids": torch.stack([padded(row, 0) for row, _ in rows]),
        "attention_mask": torch.stack([padded(torch.ones_like(row), 0) for row, _ in rows]),
        "image_flags": torch.tensor(flags),
    }
    if labels is not None:
        batch["labels"] = torch.stack([padded(label, -100) for _, label in rows])
    return batch


def batch_of(model: VisionLanguageModel, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The case's inputs as arguments of our forward."""
    given = {name.removeprefix("in."): t for name, t in tensors.items() if name.startswith("in.")}
    mask = given.pop("attention_mask", None)
    if read_layout(folder).name == "llava":
        images, labels = given.pop("images", None), given.pop("labels", None)
        cells = [side // model.encoder.stride for side in images.shape[-2:]] if images is not None else (0, 0)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        batch = splice(given.pop("input_ids"), mask, labels, model.projector.tokens(*cells), config)
        assert not given
        return {**batch, "pixel_values": images} if images is not None else {**batch, "image_flags": None}
    if mask is not None:  # packed rows are recorded with document boundaries in place of a mask
        given.update({"cu_seqlens": mask[0]} if mask.dtype == torch.int32 else {"attention_mask": mask})
    given.pop("first_input_ids", None)
    if "loss_weight" in given:
        given["loss_weights"] = given.pop("loss_weight")
    return given


def compare_outputs(model: VisionLanguageModel, case: dict, tensors: dict[str, Tensor], batch: dict[str, Tensor]):
    """Logits, loss, hidden states and what LLaVA's splicing made, where the case says they have a meaning."""
    out = model(**batch)
    want = {name.removeprefix("out."): t for name, t in tensors.items() if name.startswith("out.")}
    where = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if name := case.get("compare_where"):
        where = next(t.bool() for key, t in tensors.items() if key.split(".", 1)[1] == name)
    embeddings = model.embed(batch["input_ids"], batch.get("pixel_values"), batch.get("image_flags"))
    for name, t in want.items():
        if name in ("logits", "logits_fresh"):
            close(name, out.logits[where], t[where])
        elif name == "loss":
            torch.testing.assert_close(out.loss.detach(), t, rtol=1e-5, atol=0)
        elif name == "spliced_embeds":
            close(name, embeddings[where], t[where])
        elif name in ("spliced_labels", "spliced_attention_mask"):
            assert torch.equal(batch[name.removeprefix("spliced_")], t.long()), name
        elif name.startswith("lm_hidden_states."):
            mask, positions = batch.get("attention_mask"), batch.get("position_ids")
            decoded = model.decode(embeddings, attention_mask=mask, position_ids=positions, output_hidden_states=True)
            close(name, decoded.hidden_states[int(name.rsplit(".", 1)[1])], t)
        else:
            assert name.startswith("grad."), f"{name} is not compared"
    return out


def check_forward(model, folder, case, tensors, ours, golden) -> None:
    batch = batch_of(model, folder, tensors)
    if ours == "refused":
        with pytest.raises(DataError, match=r"3 image placeholders .* 4 image features"):
            model(**batch)
        return
    if ours == "fresh":
        model(tensors["in.first_input_ids"], pixel_values=batch["pixel_values"])
        tensors.pop("out.logits")
    compare_outputs(model, case, tensors, batch)


def gradient_of(model: VisionLanguageModel, folder: Path, name: str) -> Tensor | None:
    """Our gradient of the parameter that the published checkpoint calls `name`; None if we have no such parameter."""
    layout, parameters = read_layout(folder), dict(model.named_parameters())
    patterns = layout.patterns
    if name.startswith(TOWER):
        name, patterns = name.removeprefix(TOWER), layout.towers[0][1]
    target = rename([name], patterns).renamed.get(name)
    if target is None:
        return None
    if match := WQKV.match(target):
        parts = [parameters[f"{match[1]}{letter}_proj.weight"].grad for letter in "qkv"]
        return fuse_wqkv(*parts, model.spec.language)
    return parameters[target].grad


def check_train(model, folder, case, tensors, ours, golden) -> None:
    model.train()
    out = compare_outputs(model, case, tensors, batch_of(model, folder, tensors))
    assert out.loss.item() == pytest.approx(case["loss"], rel=1e-5)
    out.loss.backward()
    total = math.sqrt(sum(p.grad.norm().item() ** 2 for p in model.parameters() if p.grad is not None))
    assert total == pytest.approx(case["grad_norm_total"], rel=1e-4)
    for name, norm in case["grad_norms"].items():
        if name in case["params_without_grad"]:
            # where upstream leaves a part out, ours may run it on a dummy: its gradients are zero
            got = gradient_of(model, folder, name)
            assert got is None or not got.any(), name
        else:
            # norms below a millionth of the total are rounding noise
            got = gradient_of(model, folder, name).norm().item()
            assert got == pytest.approx(norm, rel=1e-4, abs=1e-6 * total), name
    for name, want in tensors.items():
        if name.startswith("out.grad."):
            error = (gradient_of(model, folder, name.removeprefix("out.grad.")) - want).norm()
            assert error <= 1e-4 * want.norm() + 1e-6 * total, name


def check_generate(model, folder, case, tensors, ours, golden) -> None:
    tokens, logits = tensors["out.tokens"], tensors["out.step_logits"]
    if ours == "clean NTK":
        # before decoding the two attention paths agree; behind it ours is the path that counts the length once
        logits = logits[:, :1]
        tokens = twin_tokens(case, tensors, golden)
    result = model.generate(
        **batch_of(model, folder, tensors),
        max_new_tokens=case["max_new_tokens"],
        eos_token_id=case["stop_token_id"],
        return_dict_in_generate=True,
        output_logits=True,
    )
    close("step_logits", torch.stack(result.logits, dim=1)[:, : logits.shape[1]], logits)
    assert tokens is None or result.sequences.tolist() == tokens.tolist()


def twin_tokens(case: dict, tensors: dict[str, Tensor], golden: Path) -> Tensor | None:
    """The tokens of the case with the same inputs that holds no fault, if this folder has it."""
    folder = golden / case["id"].split("/")[0]
    for other in json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]:
        if other["kind"] == "generate" and not other.get("quirk") and (folder / other["file"]).is_file():
            found = load_tensors(folder, other)
            if torch.equal(found["in.input_ids"], tensors["in.input_ids"]):
                return found["out.tokens"]
    return None


def intern_vit_outputs(model: VisionLanguageModel, pixels: Tensor) -> dict[str, Tensor]:
    """Everything a recorded vision case of InternViT may hold."""
    encoder = model.encoder
    state, height, width = encoder.embeddings(pixels)
    first = encoder.encoder.layers[0]
    got = {
        "embeddings": state,
        "layer0_norm1": first.norm1(state),
        "layer0_attention_output": first.attn(first.norm1(state)),
        "position_embedding": encoder.embeddings.positions(height, width),
        "hidden_states.0": state,
        "features": model.encode_images(pixels),
    }
    for i, layer in enumerate(encoder.encoder.layers, 1):
        got[f"hidden_states.{i}"] = state = layer(state)
    got |= {"last_hidden_state": state, "pooler_output": state[:, 0]}
    for version in ("v1", "v2"):
        merged = pixel_unshuffle(encoder(pixels), version)
        got[f"pixel_shuffle_{version}"] = merged
        got[f"features_{version}"] = nn.Sequential.forward(model.projector, merged.flatten(1, 2))
    return got


def convnext_outputs(model: VisionLanguageModel, pixels: Tensor) -> dict[str, Tensor]:
    """Everything a recorded vision case of ConvNeXt may hold."""
    state = model.encoder.stem(pixels)
    got = {"stem": state, "projected": model.encode_images(pixels), "features": model.encoder(pixels).flatten(1, 2)}
    for i, stage in enumerate(model.encoder.stages, 1):
        got[f"stage{i}"] = state = stage(state)
    return got


def check_vision(model, folder, case, tensors, ours, golden) -> None:
    outputs = intern_vit_outputs if isinstance(model.encoder, InternVit) else convnext_outputs
    pixels = next(t for name, t in tensors.items() if name.startswith("in."))
    got = outputs(model, pixels)
    for name, want in tensors.items():
        if name.startswith("out."):
            close(name, got[name.removeprefix("out.")], want)


CHECKS = {"forward": check_forward, "train": check_train, "generate": check_generate, "vision": check_vision}


@pytest.mark.cases("*/cases.json", "cases")
def test_model_computes_what_the_published_code_computes(case, golden, decisions, tmp_path):
    decision = decisions.decide("cases.json", case)
    assert decision or not case.get("quirk"), "an upstream fault without a decision"
    folder = golden / case["id"].split("/")[0]
    model = load_case_model(folder, case, tmp_path)
    tensors = load_tensors(folder, case)
    CHECKS[case["kind"]](model, tmp_path, case, tensors, decision.ours if decision else "", golden)


def test_every_checkpoint_has_cases_of_every_kind_at_hand(golden):
    """Cases without their tensor file are left out, and would otherwise be so without a sound."""
    for index in golden.glob("*/cases.json"):
        cases = json.loads(index.read_text(encoding="utf-8"))["cases"]
        present = {case["kind"] for case in cases if (index.parent / case["file"]).is_file()}
        assert {"forward", "generate", "vision"} <= present, index.parent.name
