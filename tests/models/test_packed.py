"""Packed bfloat16 weights of a model that only answers: the numbers of torch's own linear layers, to the bit."""

from typing import Any

import pytest
import torch
from torch import nn

from vlm.models.checkpoint.load import initialized, load_model, save_model
from vlm.models.linear.packed import PackedLinear, packs
from vlm.models.session import ChatSession
from vlm.models.specs import TimmSpec, load_preset

pytestmark = pytest.mark.skipif(
    not packs({"cpu"}, torch.bfloat16), reason="a processor without instructions for bfloat16"
)
SIZES = ((1, 1), (7, 5), (64, 32), (192, 576), (320, 64))


@pytest.fixture
def stored(checkpoint: Any, preset: str, tmp_path: Any) -> Any:
    """A checkpoint of each family in bfloat16."""
    save_model(load_model(checkpoint(preset), dtype="bfloat16"), tmp_path / "model", tokenizer=checkpoint(preset))
    return tmp_path / "model"


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_same_to_the_bit(outputs: int, inputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias, dtype=torch.bfloat16)
    packed = PackedLinear(layer)
    packed.pack(layer.weight.detach())
    packed.bias = layer.bias
    shapes = [(1,), (3,), (2, 1), (2, 9), (2, 4, 5), (1, 300), (0,), (2, 0)]
    contiguous = [torch.randn(*rows, inputs) for rows in shapes]
    strided = [torch.randn(2, 8, 2 * inputs)[..., ::2], torch.randn(2, 8, 2 * inputs)[:, -1:, :inputs]]
    moved = [torch.randn(inputs, 6).t(), torch.randn(2, inputs, 3, 3).permute(0, 2, 3, 1)]
    with torch.inference_mode():
        for x in (*contiguous, *strided, *moved):
            assert torch.equal(packed(x.bfloat16()), layer(x.bfloat16())), x.shape


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_a_model_that_answers_has_the_same_numbers_and_tokens(stored: Any, prompt: Any, tiles: Any, dtype: str) -> None:
    whole, packed = load_model(stored, dtype=dtype), load_model(stored, dtype=dtype, infer=True)
    linears = [m for m in packed.modules() if isinstance(m, nn.Linear)]
    assert linears and all(isinstance(m, PackedLinear) and m.weight is None for m in linears)
    inputs = {"input_ids": prompt(whole, 3, "image", 4), "pixel_values": tiles(whole, 1).bfloat16()}
    with torch.inference_mode():
        assert torch.equal(packed(**inputs).logits, whole(**inputs).logits)
    tokens = [model.generate(**inputs, max_new_tokens=6).tolist() for model in (whole, packed)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "how",
    [{"dtype": "float32"}, {"dtype": "bfloat16", "offload": "disk"}, {"dtype": "bfloat16", "device": {"": "meta"}}],
)
def test_where_packing_does_not_pay_the_weights_stay(checkpoint: Any, how: dict[str, Any]) -> None:
    model = load_model(checkpoint(), infer=True, **how)
    assert not [m for m in model.modules() if isinstance(m, PackedLinear)]


def test_quantized_layers_are_not_packed_and_the_others_are(checkpoint: Any) -> None:
    model = load_model(checkpoint(), dtype="bfloat16", quantize="int8", infer=True)
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert all((kind == "LowBitLinear") == name.startswith("language_model") for name, kind in kinds.items())
    assert set(kinds.values()) == {"LowBitLinear", "PackedLinear"}


def test_a_head_that_is_the_embedding_stays(checkpoint: Any) -> None:
    spec = load_model(checkpoint()).spec
    tied = load_model(checkpoint())
    tied.spec = spec.with_language(tied=True)
    folder = checkpoint().parent / "tied"
    save_model(tied, folder, tokenizer=checkpoint())
    model = load_model(folder, dtype="bfloat16", infer=True)
    head, embedding = model.language_model.lm_head, model.language_model.get_input_embeddings()
    assert head.weight is embedding.weight


def test_layers_of_timm_stay(tmp_path: Any, checkpoint: Any) -> None:
    spec = load_preset("tiny-convllava").model_copy(update={"vision": TimmSpec(name="edgenext_xx_small")})
    save_model(initialized(spec, seed=0).to(torch.bfloat16), tmp_path / "model", tokenizer=checkpoint("tiny-convllava"))
    model = load_model(tmp_path / "model", dtype="bfloat16", infer=True)
    trunk = [m for m in model.encoder.trunk.modules() if isinstance(m, nn.Linear)]
    assert trunk and not [m for m in trunk if isinstance(m, PackedLinear)]
    assert isinstance(model.language_model.lm_head, PackedLinear)


def test_a_chat_is_packed_and_a_loaded_model_can_be_saved(checkpoint: Any, tmp_path: Any) -> None:
    session = ChatSession(checkpoint(), dtype="bfloat16")
    assert isinstance(session.model.language_model.lm_head, PackedLinear)
    model = load_model(checkpoint(), dtype="bfloat16")
    assert not [m for m in model.modules() if isinstance(m, PackedLinear)]
    save_model(model, tmp_path / "again", tokenizer=checkpoint())
