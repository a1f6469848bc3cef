"""Features, logits, losses, gradients and greedy answers of tiny checkpoints against those of the published code.

Tolerances are those the fixtures recommend; the published code's own float32 noise is ten times smaller.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.decisions import Decision, decide
from golden.fixtures import Entry, Fixtures, sources
from golden.model_inputs import batch_of, facts_of, load_case_model, load_tensors
from golden.vision_outputs import vision_outputs
from torch import Tensor

from vlm.core.errors import DataError
from vlm.models.batch import Output
from vlm.models.checkpoint.fused_tensors import way_to_make
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.renaming import rename
from vlm.models.vlm import VisionLanguageModel

Tensors = dict[str, Tensor]
TOWER = "model.vision_tower.vision_tower."


def close(name: str, got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.detach(), want, atol=2e-4, rtol=1e-4, msg=lambda text: f"{name}: {text}")


def outputs_of(tensors: Tensors) -> Tensors:
    """The recorded results; there is at least one."""
    want = {name.removeprefix("out."): t for name, t in tensors.items() if name.startswith("out.")}
    strange = [name for name in tensors if not name.startswith(("in.", "out."))]
    assert want and not strange, f"no results are recorded, or tensors of no known kind: {strange}"
    return want


def compare_outputs(model: VisionLanguageModel, case: dict[str, Any], tensors: Tensors, batch: Tensors) -> Output:
    """Logits, loss, hidden states and what LLaVA's splicing made, where the case says they have a meaning."""
    out: Output = model(**batch)
    where = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if name := case.get("compare_where"):
        where = next(t.bool() for key, t in tensors.items() if key.split(".", 1)[1] == name)
    embeddings = model.embed(batch["input_ids"], batch.get("pixel_values"), batch.get("image_flags"))
    for name, t in outputs_of(tensors).items():
        if name in ("logits", "logits_fresh"):
            assert out.logits is not None
            close(name, out.logits[where], t[where])
        elif name == "loss":
            assert out.loss is not None
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
    if case.get("loss") is not None:
        assert out.loss is not None and out.loss.item() == pytest.approx(case["loss"], rel=1e-5)
    return out


def check_forward(
    model: VisionLanguageModel, folder: Path, entry: Entry, tensors: Tensors, decision: Decision | None
) -> None:
    batch = batch_of(model, folder, tensors)
    if decision is not None and decision.ours == "fresh":
        model(tensors["in.first_input_ids"], pixel_values=batch["pixel_values"])
        del tensors["out.logits"]
    compare_outputs(model, entry.case, tensors, batch)


def gradient_of(model: VisionLanguageModel, folder: Path, name: str) -> Tensor | None:
    """Our gradient of the parameter that the published checkpoint calls `name`; None if we have no such parameter."""
    # a tied head is the embedding under a second name
    layout, parameters = read_layout(folder), dict(model.named_parameters(remove_duplicate=False))
    patterns = layout.patterns
    if name.startswith(TOWER):
        name, patterns = name.removeprefix(TOWER), layout.towers[0][1]
    assert patterns is not None
    target = rename([name], patterns).renamed.get(name)
    if target is None:
        return None
    way = way_to_make(target, parameters)  # InternLM2's wqkv is three tensors of ours
    assert way is not None, f"{name}: none of our parameters is {target}"
    gradient: Tensor = way.make(*(parameters[need].grad for need in way.needs), model.spec.language)
    return gradient


def known_gradient(model: VisionLanguageModel, folder: Path, name: str) -> Tensor:
    gradient = gradient_of(model, folder, name)
    assert gradient is not None, f"{name}: no parameter of ours has this gradient"
    return gradient


def check_train(
    model: VisionLanguageModel, folder: Path, entry: Entry, tensors: Tensors, decision: Decision | None
) -> None:
    case = entry.case
    model.train()
    out = compare_outputs(model, case, tensors, batch_of(model, folder, tensors))
    assert out.loss is not None
    out.loss.backward()
    total = math.sqrt(sum(p.grad.norm().item() ** 2 for p in model.parameters() if p.grad is not None))
    assert total == pytest.approx(case["grad_norm_total"], rel=1e-4)
    for name, norm in case["grad_norms"].items():
        if name in case["params_without_grad"]:
            # where upstream leaves a part out, ours may run it on a dummy: its gradients are zero
            unused = gradient_of(model, folder, name)
            assert unused is None or not unused.any(), name
        else:
            # norms below a millionth of the total are rounding noise
            got = known_gradient(model, folder, name).norm().item()
            assert got == pytest.approx(norm, rel=1e-4, abs=1e-6 * total), name
    for name, want in tensors.items():
        if name.startswith("out.grad."):
            error = (known_gradient(model, folder, name.removeprefix("out.grad.")) - want).norm()
            assert error <= 1e-4 * want.norm() + 1e-6 * total, name


def check_generate(
    model: VisionLanguageModel, folder: Path, entry: Entry, tensors: Tensors, decision: Decision | None
) -> None:
    case, want = entry.case, outputs_of(tensors)
    unknown = want.keys() - {"tokens", "step_logits"}
    assert not unknown, f"{sorted(unknown)} are not compared"
    tokens, logits = want.get("tokens"), want.get("step_logits")
    if decision is not None and decision.ours == "clean NTK":
        # before decoding the two attention paths agree; behind it ours is the path that counts the length once
        logits = want["step_logits"][:, :1]
        tokens = twin_tokens(entry, tensors)
    result = model.generate(
        **batch_of(model, folder, tensors),
        max_new_tokens=case["max_new_tokens"],
        eos_token_id=case["stop_token_id"],
        return_dict_in_generate=True,
        output_logits=True,
    )
    if logits is not None:
        close("step_logits", torch.stack(result.logits, dim=1)[:, : logits.shape[1]], logits)
    assert tokens is None or result.sequences.tolist() == tokens.tolist()


def twin_tokens(entry: Entry, tensors: Tensors) -> Tensor | None:
    """The tokens of the case with the same inputs that holds no fault, if the file has it."""
    for section in entry.head.values():
        for other in section if isinstance(section, list) else []:
            if isinstance(other, dict) and other.get("kind") == "generate" and not other.get("quirk"):
                twin = load_tensors(entry.path.parent, other)
                if torch.equal(twin["in.input_ids"], tensors["in.input_ids"]):
                    return twin["out.tokens"]
    return None


def check_vision(
    model: VisionLanguageModel, folder: Path, entry: Entry, tensors: Tensors, decision: Decision | None
) -> None:
    (pixels,) = (t for name, t in tensors.items() if name.startswith("in."))
    got = vision_outputs(model, folder, pixels)
    for name, want in outputs_of(tensors).items():
        assert name in got, f"{name} is not compared; known: {sorted(got)}"
        close(name, got[name], want)
    if "tokens" in entry.case:
        assert model.encode_images(pixels).shape[1] == entry.case["tokens"]


CHECKS = {"forward": check_forward, "train": check_train, "generate": check_generate, "vision": check_vision}


@pytest.mark.cases("models/cases")
def test_model_computes_what_the_published_code_computes(entry: Entry, found: Fixtures, tmp_path: Path) -> None:
    case = entry.case
    assert case["kind"] in CHECKS, f"kind {case['kind']!r} is not known; known: {sorted(CHECKS)}"
    model = load_case_model(found.model(entry), case, tmp_path, entry.head.get("img_context_id"))
    tensors = load_tensors(entry.path.parent, case)
    facts = facts_of(model, tmp_path, tensors, case)
    decision = decide("models/cases", case, **facts)
    if decision is not None and decision.ours == "dropped by option":
        model.encoder.drop_remainder = True
    if decision is not None and decision.ours == "unscaled":
        if "out.logits" in tensors:
            scaled = model(**batch_of(model, tmp_path, tensors)).logits
            assert not torch.allclose(scaled, tensors["out.logits"], atol=0.1), "the setting makes no difference here"
        model = load_model(tmp_path, adjust=lambda spec: spec.with_language(rope_scaling=None))
    if decision is not None and decision.ours == "refused":
        counts = rf"{facts['placeholders']} image placeholders .* {facts['features']} image features"
        with pytest.raises(DataError, match=counts):
            model(**batch_of(model, tmp_path, tensors))
        return
    CHECKS[case["kind"]](model, tmp_path, entry, tensors, decision)


@pytest.mark.cases("models/cases", per="file")
def test_every_recorded_tensor_file_is_at_hand(entry: Entry, found: Fixtures) -> None:
    cases = [other.case for other in found.entries["models/cases"] if other.path == entry.path]
    files = {source["file"] for case in cases for source in sources(case)}
    missing = sorted(name for name in files if not (entry.path.parent / name).is_file())
    assert not missing, f"{entry.path.parent}: {missing} are missing"
