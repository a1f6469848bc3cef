"""The full-size presets, built without memory, against the published sizes."""

import pytest
import torch

from vlm.models.checkpoint.formats import internvl, llava
from vlm.models.checkpoint.renaming import inverted, rename
from vlm.models.specs import load_preset
from vlm.models.vlm import VisionLanguageModel, make_model


def on_meta(preset: str) -> VisionLanguageModel:
    with torch.device("meta"):
        return make_model(load_preset(preset))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# encoder, projector, language model; OpenGVLab/V2PE, OpenGVLab/InternVL, alibaba/conv-llava (without the unused norm)
SIZES = {
    "internvl2-2b": (304_012_288, 12_595_200, 1_889_146_880),
    "internvl-chat-v1-2": (5_536_496_000, 143_170_560, 34_389_017_600),
    "internvl2_5-1b": (304_012_288, 4_482_816, 629_697_920),
    "internvl2_5-2b": (304_012_288, 12_595_200, 1_889_146_880),
    "internvl2_5-4b": (304_012_288, 12_595_200, 3_396_030_464),
    "internvl2_5-8b": (304_012_288, 33_570_816, 7_737_782_272),
    "internvl3-1b": (304_012_288, 4_482_816, 629_697_920),
    "internvl3-2b": (304_012_288, 8_662_016, 1_776_283_136),
    "internvl3-8b": (304_012_288, 27_540_480, 7_612_820_992),
    "internvl3-14b": (304_012_288, 47_204_352, 14_766_040_064),
    "internvl3-78b": (5_536_496_000, 172_008_448, 72_699_813_888),
    "convllava-768": (669_161_664, 29_368_320, 6_738_415_616),
    "convllava-1024": (669_161_664, 29_368_320, 6_738_415_616),
    "convllava-1536": (669_161_664, 29_368_320, 6_738_415_616),
}
# InternVL2.5 and InternVL3 with a Qwen2: what the shapes of the released weights sum to, with an output head of its own
TOTALS = {
    "internvl2-2b": 2_205_754_368,
    "internvl2_5-1b": 938_193_024,
    "internvl2_5-2b": 2_205_754_368,
    "internvl2_5-4b": 3_712_637_952,
    "internvl2_5-8b": 8_075_365_376,
    "internvl3-1b": 938_193_024,
    "internvl3-2b": 2_088_957_440,
    "internvl3-8b": 7_944_373_760,
    "internvl3-14b": 15_117_256_704,
    "internvl3-78b": 78_408_318_336,
    "internvl-chat-v1-2": 40_068_684_160,
    "convllava-768": 7_436_945_600,
    "convllava-1024": 7_436_945_600,
    "convllava-1536": 7_436_945_600,
}
TOKENS = {
    "internvl2-2b": 256,
    "internvl3-1b": 256,
    "internvl3-78b": 256,
    "internvl-chat-v1-2": 256,
    "convllava-768": 144,
    "convllava-1024": 256,
    "convllava-1536": 576,
}


@pytest.mark.parametrize("preset", SIZES)
def test_parts_have_the_published_number_of_parameters(preset):
    model = on_meta(preset)
    assert (count(model.encoder), count(model.projector), count(model.language_model)) == SIZES[preset]
    assert count(model) == TOTALS[preset]
    assert all(p.is_meta for p in model.parameters())


def test_the_published_count_of_convllava_holds_two_tensors_that_are_never_used():
    """The library's own class has a final norm; the published tower never calls it, and so we have none."""
    from transformers import ConvNextConfig, ConvNextModel

    spec = load_preset("convllava-1536").vision
    config = ConvNextConfig(
        depths=list(spec.depths),
        hidden_sizes=list(spec.widths),
        num_stages=5,
        stage_names=["stem", *(f"stage{i}" for i in range(1, 6))],
        out_features=["stage5"],
    )
    with torch.device("meta"):
        library = ConvNextModel(config)
    accounts = rename(list(library.state_dict()), llava.ENCODER)
    assert len(library.state_dict()) == 400 and len(accounts.renamed) == 398
    assert accounts.dropped == ["layernorm.weight", "layernorm.bias"] and not accounts.unknown
    assert count(library) == 669_167_808
    ours = on_meta("convllava-1536")
    assert {f"encoder.{name}" for name in ours.encoder.state_dict()} == set(accounts.renamed.values())
    assert count(library) + count(ours.projector) + count(ours.language_model) == 7_436_951_744


@pytest.mark.parametrize("preset", TOKENS)
def test_a_tile_makes_the_published_number_of_tokens(preset):
    model = on_meta(preset)
    assert model.tokens_per_tile == TOKENS[preset]
    pixels = torch.empty(2, 3, model.image_size, model.image_size, device="meta")
    assert model.encode_images(pixels).shape == (2, TOKENS[preset], model.spec.language.width)


@pytest.mark.parametrize(
    ("preset", "patterns", "published"),
    [
        # the published count has one fused tensor for q, k and v of each of 24 layers
        ("internvl2-2b", internvl.PATTERNS["internlm2"], 517),
        ("internvl-chat-v1-2", internvl.PATTERNS["llama"], 1138),
        # 398 of the tower, 4 of the projector, 291 of the language model
        ("convllava-1536", {**llava.PATTERNS["mlp"], **llava.ENCODER}, 693),
    ],
)
def test_every_tensor_has_a_published_name(preset, patterns, published):
    ours = {
        name.replace("q_proj.weight", "wqkv") if preset == "internvl2-2b" else name
        for name in on_meta(preset).state_dict()
        if preset != "internvl2-2b" or not name.endswith(("k_proj.weight", "v_proj.weight"))
    }
    result = rename(sorted(ours), inverted(patterns))
    assert not result.unknown
    assert len(set(result.renamed.values())) == published


@pytest.mark.parametrize("preset", ["tiny-internvl2", "tiny-convllava"])
def test_drop_path_needs_no_memory_either(preset):
    spec = load_preset(preset)
    spec = spec.model_copy(update={"vision": spec.vision.model_copy(update={"drop_path": 0.4})})
    with torch.device("meta"):
        model = make_model(spec)
    rates = [m.drop_prob for m in model.encoder.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4)
