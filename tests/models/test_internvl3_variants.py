"""Other InternVL3s than the golden one: sizes, tied or not, shards, tokenizer and configuration, saved by transformers.

Weights are random, so transformers' own class is the reference for logits, its processor for ids and pixels.
"""

import json
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from vlm.core.sample.chat import INTERNVL2_SYSTEM, prompt_text, user_message
from vlm.core.sample.positions import positions
from vlm.core.sample.records import image
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.formats import hf as hf_format
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import load_processor

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGES = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

VARIANTS = {
    "tied, one key head, nine tokens a tile": {
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True},
        "vision": {"hidden_size": 36, "num_attention_heads": 3, "image_size": [42, 42], "patch_size": [7, 7]},
    },
    "shards, six tiles": {
        "text": {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 4},
        "vision": {"hidden_size": 24, "num_attention_heads": 2},
        "shard": "60KB",
        "tiles": 6,
    },
    "ids in another order, more rows than tokens": {
        "text": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
        "vision": {"hidden_size": 32, "num_attention_heads": 4, "image_size": [56, 56], "patch_size": [14, 14]},
        "turned": True,
        "rows": 23,
    },
    "tied in shards, the larger encoder's norms, no scaling": {
        "text": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
        "vision": {"hidden_size": 40, "num_attention_heads": 5, "use_qk_norm": True, "norm_type": "rms_norm"},
        "bias": False,
        "rope": {"rope_type": "default", "rope_theta": 5e5},
        "shard": "100KB",
        "tiles": 4,
    },
}


def make_tokenizer(turned: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the tokens of an InternVL3 behind its own words, in the published order or turned round."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the window of the house", "what is on the mat", "the cat sat"] * 5, trainer)
    names = [*CHATML, *(f"<|extra_{i}|>" for i in range(5)), *IMAGES]
    added = [AddedToken(name, special=True, normalized=False) for name in (names[::-1] if turned else names)]
    tokenizer.add_special_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CHATML[2], pad_token=CHATML[0])


def write_variant(folder, *, text, vision, bias=True, rope=None, shard="5GB", tiles=12, turned=False, rows=0):
    tokenizer = make_tokenizer(turned)
    pad, _, eos = tokenizer.convert_tokens_to_ids(CHATML)
    vision = {"num_hidden_layers": 2, "image_size": [28, 28], "patch_size": [7, 7], "attention_bias": bias, **vision}
    rope = rope or {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    ids = {"bos_token_id": pad, "eos_token_id": eos, "pad_token_id": pad, "vocab_size": len(tokenizer) + rows}
    text = {"num_hidden_layers": 2, "intermediate_size": 56, "max_position_embeddings": 64, **ids, **text}
    side = vision["image_size"][0]
    config = InternVLConfig(
        vision_config={"intermediate_size": 2 * vision["hidden_size"], **vision},
        text_config={"model_type": "qwen2", "rope_parameters": rope, **text},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(side // vision["patch_size"][0] // 2) ** 2,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    model, random = InternVLForConditionalGeneration(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            if parameter.dim() > 1:
                parameter.copy_(drawn if "embed_tokens" in name else drawn * 0.8 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(drawn * 0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    size = {"height": side, "width": side}
    GotOcr2ImageProcessor(
        size=size, min_patches=1, max_patches=tiles, crop_to_patches=True, **IMAGENET
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """`variants(name)`: the folder that transformers has saved, and of the same in OpenGVLab's layout. Not to be
    written to."""

    @cache
    def make(name: str) -> tuple[Path, Path]:
        folder = write_variant(tmp_path_factory.mktemp("variant") / "hf", **VARIANTS[name])
        return folder, convert(folder, "internvl", folder.parent / "remote")

    return make


@pytest.fixture(params=VARIANTS)
def variant(request, variants):
    return variants(request.param)


def tensors(folder: Path):
    return dict(chain.from_iterable(load_file(file).items() for file in sorted(folder.glob("*.safetensors"))))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def document(model, words: int, increment: float | None, seed: int = 0):
    """ids [1, n], positions [1, n] and pixels of two images among random words."""
    random, tokens = torch.Generator().manual_seed(seed), model.tokens_per_tile
    text = torch.randint(10, 250, (words,), generator=random).tolist()
    context = [model.spec.image_tokens.context_id] * tokens
    ids = torch.tensor([[*text[:3], *context, *text[3:5], *context, *text[5:]]])
    layout = [("text", 3), ("image", 1), ("text", 2), ("image", 1), ("text", words - 5)]
    strides = None if increment is None else increment * tokens
    place = torch.from_numpy(positions(layout, tokens, strides, brackets=False))[None]
    side = model.image_size
    return ids, place if strides else place.long(), torch.randn(2, 3, side, side, generator=random)


@pytest.mark.parametrize(("words", "increment"), [(12, None), (100, None), (12, 1 / 4), (100, 1 / 256)])
def test_logits_are_those_of_transformers(words, increment, variant):
    """Plain positions below and beyond those of the scaling, and fractional ones, which nothing scales."""
    published = InternVLForConditionalGeneration.from_pretrained(variant[0]).eval()
    if increment is not None:
        language = published.config.text_config
        language.rope_parameters = {"rope_type": "default", "rope_theta": language.rope_parameters["rope_theta"]}
        published.model.language_model.rotary_emb = Qwen2RotaryEmbedding(language)
    for folder in variant:
        ours = load_model(folder)
        ids, place, pixels = document(ours, words, increment)
        given = {"input_ids": ids, "pixel_values": pixels}
        with torch.no_grad():
            theirs = published(**given, position_ids=place.float() if increment else place, attention_mask=ids >= 0)
            got = ours(**given, position_ids=place).logits
        assert theirs.logits.std() > 0.5
        torch.testing.assert_close(got, theirs.logits, atol=1e-4, rtol=0)


def test_there_and_back_is_bit_for_bit_and_transformers_reads_every_tensor(variant, tmp_path):
    hf, remote = variant
    model = InternVLForConditionalGeneration.from_pretrained(hf)
    ours = convert(hf, "vlm", tmp_path / "ours")
    for source in (remote, ours):
        back = convert(source, "hf", tmp_path / source.name / "back", max_shard_size="80KB")
        read, info = InternVLForConditionalGeneration.from_pretrained(back, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert same(model.state_dict(), read.state_dict())
        head, embedding = read.lm_head.weight, read.get_input_embeddings().weight
        assert (head is embedding) == model.config.tie_word_embeddings == read_layout(back).spec.language.tied
        assert read_layout(back).spec == read_layout(hf).spec
        assert same(tensors(convert(back, "internvl", tmp_path / source.name / "again")), tensors(remote))
        assert same(tensors(convert(back, "vlm", tmp_path / source.name / "vlm")), tensors(ours))


def test_ids_and_pixels_are_those_of_transformers_processor(variant, tmp_path):
    hf, remote = variant
    theirs, ours = AutoProcessor.from_pretrained(convert(remote, "hf", tmp_path / "hf")), load_processor(hf)
    noise = np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    question = "What is it? héllo 你好  2024"
    encoded = ours.encode([user_message(f"<image>\n{question}", [image(tmp_path / "noise.png")])])
    content = [{"type": "image", "path": str(tmp_path / "noise.png")}, {"type": "text", "text": question}]
    given = theirs.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert given["input_ids"][0].tolist() == encoded.input_ids.tolist()
    assert len(encoded.pixels) > 1
    torch.testing.assert_close(given["pixel_values"], ours.pixels(encoded.pixels), atol=0.04, rtol=0)


@pytest.mark.parametrize("increment", [1, 1 / 2, 1 / 4, 1 / 16, 1 / 256])
def test_packed_documents_are_as_alone(increment, variant):
    model = load_model(variant[1]).double()
    rows = [document(model, words, increment, seed) for seed, words in enumerate((9, 6, 14))]
    alone = [model(ids, pixel_values=pixels.double(), position_ids=place).logits for ids, place, pixels in rows]
    ids, place, pixels = zip(*rows, strict=True)
    borders = torch.tensor([0, *np.cumsum([row.shape[1] for row in ids])], dtype=torch.int32)
    packed = model(
        torch.cat(ids, 1),
        pixel_values=torch.cat(pixels).double(),
        position_ids=torch.cat(place, 1),
        cu_seqlens=borders,
    ).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-10, rtol=0)


# configurations that say less --------------------------------------------------------------------------------------


def sparse(config, library):
    """What versions 4 of the library save: the type, and what differs from the class."""
    usual = library.to_dict()
    return {key: value for key, value in config.items() if key == "model_type" or value != usual.get(key)}


@pytest.mark.parametrize("layout", ["hf", "remote"])
def test_keys_left_out_have_the_values_of_the_class(layout, variants, tmp_path):
    name = "tied, one key head, nine tokens a tile" if layout == "hf" else "shards, six tiles"
    folder = variants(name)[layout == "remote"]
    want, config = read_layout(folder).spec, json.loads((folder / "config.json").read_text())
    if layout == "hf":
        config = sparse(config, InternVLConfig())
        config["text_config"] = sparse(config["text_config"], Qwen2Config())
        config["vision_config"] = sparse(config["vision_config"], InternVLVisionConfig())
    else:
        for key in ("rms_norm_eps", "tie_word_embeddings", "model_type"):
            del config["llm_config"][key]
        del config["vision_config"]["layer_norm_eps"], config["tie_word_embeddings"]
    assert "rms_norm_eps" not in (config.get("text_config") or config["llm_config"])
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_layout(tmp_path).spec == want


def test_the_sizes_of_a_configuration_that_says_none_are_the_library_s(tmp_path):
    sides = {"image_size": (448, 448), "patch_size": (14, 14)}
    vision = InternVLVisionConfig()
    assert {key: getattr(vision, key) for key in hf_format.VISION} == {**hf_format.VISION, **sides}
    for kind, library in (("llama", LlamaConfig()), ("qwen2", Qwen2Config())):
        config = {"model_type": "internvl", "vision_config": {}, "text_config": {"model_type": kind}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        spec = read_layout(tmp_path).spec
        assert spec.image_tokens.context_id == InternVLConfig().image_token_id
        assert (spec.vision.width, spec.vision.depth, spec.vision.image_size) == (1024, 24, 448)
        language = spec.language
        assert (language.vocab, language.width, language.mlp_width, language.depth, language.heads) == (
            library.vocab_size,
            library.hidden_size,
            library.intermediate_size,
            library.num_hidden_layers,
            library.num_attention_heads,
        )
        assert (language.max_positions, language.norm_eps) == (library.max_position_embeddings, library.rms_norm_eps)
        assert language.rope_theta == library.rope_parameters["rope_theta"] == 10000.0


# InternVL2-1B: a Qwen2 with an older template ------------------------------------------------------------------------


def test_internvl2_1b_has_the_system_text_and_the_turns_of_internvl2(variants, tmp_path):
    folder = variants("shards, six tiles")[1]
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    config["template"] = "Hermes-2"
    del config["system_message"]
    config.pop("vlm", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_layout(tmp_path).spec
    assert (spec.family, spec.language.kind, spec.system) == ("internvl2", "qwen2", None)
    text = prompt_text([user_message("Hi")], spec.template, generation_prompt=True)
    system, question = f"<|im_start|>system\n{INTERNVL2_SYSTEM}<|im_end|>", "<|im_start|>user\nHi<|im_end|>"
    assert text == f"{system}{question}<|im_start|>assistant\n"
    ours = convert(tmp_path, "vlm", tmp_path / "ours")
    for to in ("internvl", "hf"):
        there = convert(ours, to, tmp_path / to)
        assert read_layout(there).spec == spec
        assert same(tensors(convert(there, "vlm", tmp_path / f"{to}-back")), tensors(ours))
    written = json.loads((tmp_path / "internvl/config.json").read_text())
    assert (written["template"], written["system_message"]) == ("Hermes-2", INTERNVL2_SYSTEM)  # a published name
