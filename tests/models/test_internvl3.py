"""InternVL2.5 and InternVL3: both published layouts and ours, transformers' own classes, and the traps of the release.

The two golden folders hold the same weights, as OpenGVLab's code and as transformers name them.
"""

import json
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, InternVLForConditionalGeneration

from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.sample.chat import INTERNVL2_5_SYSTEM, prompt_text, user_message
from vlm.core.sample.encode import frames_as_images
from vlm.core.sample.records import image, video
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.models.checkpoint.assemble import assemble
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.formats.schema import QWEN2
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import Processor, load_processor
from vlm.models.specs import RopeScaling, load_preset

LAYOUTS = {"internvl3-tiny": "internvl", "internvl3-tiny-hf": "hf"}
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def tensors(folder: Path):
    return load_file(folder / "model.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def edited(source: Path, target: Path, change=lambda config: None, weights=lambda state: None) -> Path:
    """A copy of a checkpoint with another config.json and other tensors."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("cases*"))
    config, state = json.loads((target / "config.json").read_text()), tensors(target)
    change(config)
    weights(state)
    (target / "config.json").write_text(json.dumps(config))
    save_file(state, target / "model.safetensors")
    return target


@pytest.fixture
def remote(golden_data):
    return golden_data / "internvl3-tiny"


@pytest.fixture
def hf(golden_data):
    return golden_data / "internvl3-tiny-hf"


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ways_between_the_three_layouts_are_bit_for_bit(name, golden_data, tmp_path):
    start = golden_data / name
    other = next(layout for layout in LAYOUTS.values() if layout != LAYOUTS[name])
    ours = convert(start, "vlm", tmp_path / "ours")
    back = convert(convert(ours, other, tmp_path / "other"), LAYOUTS[name], tmp_path / "back")
    again = convert(back, "vlm", tmp_path / "again")
    assert same(tensors(ours), tensors(again))
    assert read_layout(ours).spec == read_layout(again).spec
    if LAYOUTS[name] == "internvl":
        assert same(tensors(start), tensors(back))
    expected = convert(golden_data / next(n for n in LAYOUTS if n != name), "vlm", tmp_path / "expected")
    assert same(tensors(ours), tensors(expected))


def test_both_layouts_describe_the_same_model(remote, hf):
    one, other = (read_layout(folder).spec for folder in (remote, hf))
    assert one.model_copy(update={"image_rule": other.image_rule}) == other
    assert (one.family, one.template, one.language.kind, one.language.tied) == (
        "internvl2_5",
        "internvl2_5",
        "qwen2",
        False,
    )
    assert one.language.rope_scaling == RopeScaling(kind="dynamic", factor=2.0)


@pytest.mark.parametrize("positions", ["plain", "fractional"])
def test_transformers_own_class_reads_what_we_write_and_gives_the_same_logits(positions, remote, tmp_path):
    folder = convert(remote, "hf", tmp_path / "hf")
    published, info = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not published.config.tie_word_embeddings and not published.config.text_config.tie_word_embeddings
    ours = load_model(remote)
    context = ours.spec.image_tokens.context_id
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, 7, *[context] * 4, 8, 9, 10, 11]])
    place = torch.arange(ids.shape[1])[None]
    if positions == "fractional":
        place = torch.tensor([[0, 1, 2, 2.25, 2.5, 2.75, 3, 4, 5, 6, 7]])
    given = {"input_ids": ids, "pixel_values": pixels, "position_ids": place}
    with torch.no_grad():
        want = published.eval()(**given, attention_mask=torch.ones_like(ids)).logits
        got = ours(**given).logits
    assert want.std() > 0.5
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("turn", "template"), [("'<|im_end|>\\n'", "internvl2_5"), ("'<|im_end|>'", "internlm2-chat")])
@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_a_llama_of_internvl2_5_is_known_by_the_newline_that_ends_its_turns(
    turn, template, file, golden_data, tmp_path
):
    """The library's converter makes a Llama of the InternLM2.5 of InternVL2.5, and writes a chat template beside it."""
    folder = convert(golden_data / "internvl2-v2pe-tiny", "hf", tmp_path / "hf")
    text = "{% for message in messages %}{{ message['content'] + " + turn + " }}{% endfor %}"
    (folder / file).write_text(json.dumps({"chat_template": text}) if file.endswith(".json") else text)
    assert read_layout(folder).spec.template == template


def test_what_transformers_saves_is_read(hf, remote, tmp_path):
    """Its own names, and the rotary settings in its newer form."""
    InternVLForConditionalGeneration.from_pretrained(hf).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["text_config"]["rope_parameters"]["rope_type"] == "dynamic"
    spec = read_layout(tmp_path / "saved").spec
    assert spec.language == read_layout(remote).spec.language
    saved, ours = (
        convert(f, "vlm", tmp_path / f.name / "vlm")
        for f in (tmp_path / "saved", shutil.copytree(remote, tmp_path / "r"))
    )
    assert same(tensors(saved), tensors(ours))


def test_tokenizer_and_pixels_of_transformers_are_ours(golden_data, remote, tmp_path, picture):
    source = tmp_path / "source"
    shutil.copytree(remote, source, ignore=shutil.ignore_patterns("cases*"))
    shutil.copytree(golden_data / "tokenizers/qwen2", source, dirs_exist_ok=True)
    folder = convert(source, "hf", tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_processor(source)
    for question in ("What is the colour?", "<image>\n你好，\n\nwindow  2024!"):
        messages = [user_message(question, [image(picture())] if "<image>" in question else [])]
        encoded = ours.encode(messages)
        stand_in = ["<img>" + "<IMG_CONTEXT>" * 4 * n + "</img>" for _, _, n in encoded.image_spans]
        text = prompt_text(messages, "internvl2_5", generation_prompt=True, images=stand_in)
        assert theirs(text)["input_ids"] == encoded.input_ids.tolist()
    assert theirs.eos_token_id == ours.tokenizer.eos_id == ours.stop_ids[0] and len(ours.stop_ids) == 1
    path = picture((10, 200, 90), (90, 40))
    encoded = ours.encode([user_message("?", [image(path)])])
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(path), return_tensors="pt").pixel_values
    assert pixels.shape == ours.pixels(encoded.pixels).shape
    torch.testing.assert_close(pixels, ours.pixels(encoded.pixels), atol=0.03, rtol=0)


# traps of the release -------------------------------------------------------------------------------------------------


def untie_by_default(config):
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]


def tie(config):
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


def test_a_stored_head_makes_an_untied_model_where_the_configuration_says_nothing(hf, tmp_path):
    """The class takes a missing key for true; the published 1B has none, and a head of its own."""
    folder = edited(hf, tmp_path / "silent", untie_by_default)
    assert not read_layout(folder).spec.language.tied
    model, want = load_model(folder), load_model(hf)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, want(ids).logits)
    assert torch.equal(
        InternVLForConditionalGeneration.from_pretrained(folder).lm_head.weight, model.language_model.lm_head.weight
    )


@pytest.mark.parametrize("stored", ["once", "twice"])
def test_a_tied_model_stays_tied(stored, hf, tmp_path):
    """A head that equals the embeddings is the second copy that pickles hold, and transformers ties it."""

    def weights(state):
        embedding = next(name for name in state if name.endswith("embed_tokens.weight"))
        if stored == "once":
            del state[HEAD]
        else:
            state[HEAD] = state[embedding].clone()

    folder = edited(hf, tmp_path / "tied", tie, weights)
    model = load_model(folder)
    assert model.spec.language.tied
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    there = convert(folder, "internvl", tmp_path / "remote")
    assert read_layout(there).spec.language.tied
    again = convert(there, "hf", tmp_path / "again")
    published = InternVLForConditionalGeneration.from_pretrained(again).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        want = published(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(ids).logits, want, atol=1e-4, rtol=0)


def test_a_system_message_of_null_is_the_text_of_the_template(remote, tmp_path, golden_data):
    """The repository's own model writes the word `None` into the prompt."""
    folder = edited(remote, tmp_path / "null", lambda config: config.update(system_message=None))
    processor = Processor(read_layout(folder).spec, golden_data / "tokenizers/qwen2")
    text = processor.tokenizer.decode(processor.encode([user_message("Hi")]).input_ids, skip_special=False)
    system, question = f"<|im_start|>system\n{INTERNVL2_5_SYSTEM}<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n"
    assert text == f"{system}{question}<|im_start|>assistant\n"


def test_the_system_text_has_the_published_bytes():
    assert "书生·万象" in INTERNVL2_5_SYSTEM and INTERNVL2_5_SYSTEM.count("\u00b7") == 1
    assert INTERNVL2_5_SYSTEM.count("，") == 2 and "," not in INTERNVL2_5_SYSTEM


def test_the_vocabulary_is_that_of_the_tokenizer_and_the_context_token_its_seventh_from_the_end():
    """151,674 rows, not the 151,936 of Qwen2.5's own checkpoints."""
    for name in ("internvl2_5-1b", "internvl3-1b", "internvl3-2b", "internvl3-8b", "internvl3-14b"):
        spec = load_preset(name)
        assert (spec.language.vocab, spec.image_tokens.context_id) == (151_674, 151_667)
        assert not spec.language.tied


def test_dynamic_scaling_never_touches_fractional_positions(remote):
    """The configuration scales plain positions beyond its limit of 48, and V2PE's not at any length."""
    scaled = load_model(remote)
    plain = load_model(remote, adjust=lambda spec: spec.with_language(rope_scaling=None))
    ids = torch.randint(10, 300, (1, 90), generator=torch.Generator().manual_seed(0))
    counted = torch.arange(90)[None]
    assert not torch.allclose(scaled(ids).logits, plain(ids).logits, atol=0.5)
    for step in (1.0, 0.25):
        place = counted.double() * step
        assert torch.equal(scaled(ids, position_ids=place).logits, plain(ids, position_ids=place).logits)


def test_a_v2pe_checkpoint_is_written_without_the_scaling_that_the_libraries_would_apply(remote, tmp_path):
    """Its increment is recorded, and the settings come back."""

    def v2pe(config):
        config.update(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1)

    folder = edited(remote, tmp_path / "v2pe", v2pe)
    spec = read_layout(folder).spec
    assert (spec.strides, spec.language.rope_scaling) == (1, None)
    for to in ("hf", "internvl"):
        written = convert(folder, to, tmp_path / to, allow=["strides"] if to == "hf" else ())
        config = json.loads((written / "config.json").read_text())
        language = config.get("text_config") or config["llm_config"]
        assert (language.get("rope_scaling") or language.get("rope_parameters", {}).get("rope_type", "default")) in (
            None,
            "default",
        )
        assert read_layout(written).spec == spec


@pytest.mark.parametrize("increment", [1, 1 / 4, 1 / 256])
def test_documents_with_fractional_positions_are_as_alone_in_a_packed_row(increment, remote):
    """No position is rounded, and no step other than 1 begins a document."""
    model = load_model(remote).double()
    context = model.spec.image_tokens.context_id
    documents, place = [], []
    for n, seed in ((9, 1), (5, 2), (14, 3)):
        words = torch.randint(10, 300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
        documents.append([*words[:3], *[context] * 4, *words[3:]])
        last = 2 + 4 * increment
        place.append(
            [0, 1, 2, *[2 + (k + 1) * increment for k in range(4)], *[int(-(-last // 1)) + 1 + k for k in range(n - 3)]]
        )
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(4)).double()
    alone = [
        model(
            torch.tensor([ids]), pixel_values=pixels[i : i + 1], position_ids=torch.tensor([at], dtype=torch.float64)
        ).logits
        for i, (ids, at) in enumerate(zip(documents, place, strict=True))
    ]
    borders = torch.tensor([0, *torch.tensor([len(d) for d in documents]).cumsum(0).tolist()], dtype=torch.int32)
    row = torch.tensor([[*chain(*documents)]])
    at = torch.tensor([[*chain(*place)]], dtype=torch.float64)
    packed = model(row, pixel_values=pixels, position_ids=at, cu_seqlens=borders).logits
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=0)
    if increment != 1:
        rounded = model(row, pixel_values=pixels, position_ids=at.long().double(), cu_seqlens=borders).logits
        assert not torch.allclose(rounded, packed, atol=0.05)


def test_training_numbers_frames_with_a_hyphen_and_benchmarks_do_not():
    picture = Image.new("RGB", (4, 4))
    film = video("film.mp4")
    for part, words in (
        (film, "Frame-1: <image>\nFrame-2: <image>\n"),
        ({**film, "frames": 2}, "Frame1: <image>\nFrame2: <image>\n"),
    ):
        (message,) = frames_as_images(
            [{"role": "user", "content": [part]}], lambda path, n, clip: [picture] * n, 2, "Frame-{}: "
        )
        assert "".join(p["text"] if p["type"] == "text" else "<image>" for p in message["content"]) == words


@pytest.mark.parametrize("name", ["InternLM3ForCausalLM", "Qwen3ForCausalLM"])
def test_a_language_model_that_we_do_not_have_is_refused_by_name(name, remote, tmp_path):
    folder = edited(remote, tmp_path / "other", lambda config: config["llm_config"].update(architectures=[name]))
    with pytest.raises(CheckpointError, match=rf"llm_config: {name} is not supported"):
        read_layout(folder)


def test_a_sliding_window_is_refused(remote, tmp_path):
    folder = edited(remote, tmp_path / "window", lambda config: config["llm_config"].update(use_sliding_window=True))
    with pytest.raises(CheckpointError, match="use_sliding_window"):
        read_layout(folder)


def test_a_qwen2_has_no_place_in_the_layout_of_llava(remote, tmp_path):
    with pytest.raises(ConfigError, match="no place in the llava layout"):
        convert(remote, "llava", tmp_path / "llava")


def test_a_tokenizer_of_vocabulary_and_merges_alone_gives_the_same_ids(golden_data, tmp_path):
    """As Qwen2's slow tokenizer is stored: no tokenizer.json."""
    whole = golden_data / "tokenizers/qwen2"
    shutil.copytree(whole, tmp_path / "slow", ignore=shutil.ignore_patterns("tokenizer.json"))
    slow, fast = load_tokenizer(tmp_path / "slow"), load_tokenizer(whole)
    assert len(slow) == len(fast) == 344 and slow.specials == fast.specials
    for text in ("Hello  world\n\nwin", "<|im_start|>user\n<img>你好</img>", " 2024 don't", "é e\u0301"):
        assert slow.encode(text) == fast.encode(text)


def test_a_model_is_assembled_from_qwens_own_checkpoint(golden_data, hf, tmp_path):
    """Biases of q, k and v are found; without a head the preset must tie, as Qwen2.5 does."""
    state = {
        k.removeprefix("language_model."): v
        for k, v in tensors(convert(hf, "vlm", tmp_path / "o")).items()
        if k.startswith("language_model.")
    }
    part = tmp_path / "qwen"
    part.mkdir()
    save_file(state, part / "model.safetensors")
    spec = load_preset("tiny-internvl3").with_language(depth=3, mlp_width=80)
    start = assemble(spec, tokenizer=golden_data / "tokenizers/qwen2", language=part)
    assert start.fresh == ["encoder", "projector"]
    biases = [name for name in state if name.endswith("_proj.bias")]
    assert len(biases) == 9 and all(
        name.replace("layers.0", "layers.{}") in QWEN2 for name in biases if "layers.0." in name
    )
    model = start.model()
    assert all(torch.equal(model.language_model.state_dict()[name], tensor) for name, tensor in state.items())
