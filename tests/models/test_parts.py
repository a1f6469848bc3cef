"""Models built from pretrained parts: every tensor is used, dropped by name, or the build fails."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.assemble import build, with_tokenizer
from vlm.models.specs import TimmSpec, load_preset

TRUNK = TimmSpec(name="test_resnet", level=-1)


@pytest.fixture
def tokenizers(golden_data):
    return golden_data / "tokenizers"


def test_vocabulary_and_context_id_come_from_the_tokenizer(tokenizers):
    spec = with_tokenizer(load_preset("tiny-internvl2"), tokenizers / "internlm2")
    assert (spec.language.vocab, spec.image_tokens.context_id) == (651, 644)
    spec = with_tokenizer(load_preset("tiny-convllava"), tokenizers / "llama")
    assert (spec.language.vocab, spec.image_tokens.context_id) == (560, -200)
    with pytest.raises(CheckpointError, match=r"llama has no token <IMG_CONTEXT>"):
        with_tokenizer(load_preset("tiny-internvl2"), tokenizers / "llama")


def test_a_timm_trunk_is_filled_by_order_and_shape_or_refused(tokenizers, tmp_path):
    spec = load_preset("tiny-convllava").model_copy(update={"vision": TRUNK})
    torch.manual_seed(7)
    state = {f"their.{i}": t for i, t in enumerate(timm.create_model("test_resnet").state_dict().values())}
    torch.save(state, tmp_path / "trunk.pth")
    model = build(spec, tokenizer=tokenizers / "llama", encoder=tmp_path / "trunk.pth")
    assert torch.equal(model.encoder.trunk.state_dict()["conv1.0.weight"], state["their.0"])
    state.popitem()
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"short\.pth: \d+ tensors do not match test_resnet"):
        build(spec, tokenizer=tokenizers / "llama", encoder=tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="holds a timm trunk but the encoder is convnext"):
        build(load_preset("tiny-convllava"), tokenizer=tokenizers / "llama", encoder=tmp_path / "trunk.pth")


def test_a_language_model_gets_mean_rows_for_new_tokens_or_is_refused(tokenizers, tmp_path):
    spec = load_preset("tiny-internvl2")
    donor = build(spec, tokenizer=tokenizers / "internlm2", seed=5).language_model.state_dict()
    donor = {k: v[:640].clone() if v.shape[0] == 651 else v for k, v in donor.items()}
    save_file(donor, tmp_path / "model.safetensors")
    model = build(spec, tokenizer=tokenizers / "internlm2", language=tmp_path).language_model
    table = model.model.embed_tokens.weight
    assert torch.equal(table[:640], donor["model.embed_tokens.weight"])
    torch.testing.assert_close(table[640:], donor["model.embed_tokens.weight"].mean(0).expand(11, -1))
    assert torch.equal(model.model.norm.weight, donor["model.norm.weight"])
    donor.pop("model.norm.weight")
    save_file(donor, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are in no part, first language_model\.model\.norm\.weight"):
        build(spec, tokenizer=tokenizers / "internlm2", language=tmp_path)
