import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.videos import write_video
from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.chat import user_message
from vlm.core.sample.encode import IGNORE, LLAVA_IMAGE, ImageTokenIds, SampleEncoder, picture_part
from vlm.core.sample.positions import draw_strides, positions
from vlm.core.sample.records import Sample, text, video
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import load_tokenizer

FOLDERS = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
TOKENIZERS = {folder.name: load_tokenizer(folder) for folder in FOLDERS.iterdir()}
TOKENS = 4


def encoder(name: str) -> SampleEncoder:
    if name.startswith("llama"):
        return SampleEncoder(TOKENIZERS[name], "llava_v1", ImageRule(kind="pad", size=8), TOKENS, LLAVA_IMAGE)
    template = {"internlm2": "internlm2-chat", "hermes2": "Hermes-2", "qwen2": "internvl2_5"}[name]
    rule = ImageRule(kind="tiles", size=8, thumbnail=True)
    return SampleEncoder(TOKENIZERS[name], template, rule, TOKENS, ImageTokenIds.internvl(TOKENIZERS[name]))


def sample(*values: str, pictures=()) -> Sample:
    """User and assistant texts in turn; `<image>` in a question takes the next picture (width, height)."""
    media = iter([picture_part(Image.new("RGB", size)) for size in pictures])
    messages = []
    for i, value in enumerate(values):
        if i % 2:
            messages.append({"role": "assistant", "content": [text(value)]})
        else:
            mine = [next(media) for _ in range(value.count("<image>"))] if pictures else []
            messages.append(user_message(value, mine))
    return Sample("s1", messages, "train.jsonl:7")


def supervised(encoded, name: str) -> str:
    return TOKENIZERS[name].decode(encoded.input_ids[encoded.labels != IGNORE], skip_special=False)


def test_two_images_make_spans_positions_and_pixels_that_agree():
    enc = encoder("internlm2")
    got = enc.encode(sample("<image>\n<image>\nQ", "A", pictures=[(16, 8), (8, 8)]), strides=[2, 4])
    context = enc.image_tokens.context
    assert [(n, tiles) for _, n, tiles in got.image_spans] == [(12, 3), (4, 1)]
    for first, n, _ in got.image_spans:
        assert (got.input_ids[first : first + n] == context).all()
        assert got.input_ids[first - 1] == enc.image_tokens.start
        assert got.input_ids[first + n] == enc.image_tokens.end
        assert got.position_ids[first] - got.position_ids[first - 1] == {12: 0.5, 4: 1}[n]
    assert (got.input_ids == context).sum() == got.n_tiles * TOKENS
    assert got.pixels.shape == (4, 8, 8, 3) and got.pixels.dtype == np.uint8
    assert got.input_ids.dtype == got.labels.dtype == np.int64 and got.position_ids.dtype == np.float64
    assert got.strides == [2, 4]


def test_a_plan_from_headers_gives_the_same_tokens_without_pixels(tmp_path):
    Image.new("RGB", (24, 8)).save(tmp_path / "a.png")
    part = {"type": "image", "path": str(tmp_path / "a.png")}
    one = Sample("s", [user_message("Q", [part])])
    full, planned = (encoder("hermes2").encode(one, pixels=pixels) for pixels in (True, False))
    assert planned.pixels is None and len(full.pixels) == planned.n_tiles
    np.testing.assert_array_equal(planned.input_ids, full.input_ids)


def test_strides_may_be_drawn_once_the_images_are_known():
    got = encoder("internlm2").encode(
        sample("<image><image>", "A", pictures=[(8, 8), (8, 8)]), strides=lambda n: draw_strides(n, random.Random(1))
    )
    assert got.strides == [4, 2]
    with pytest.raises(DataError, match=r"train\.jsonl:7: 1 strides for 2 images"):
        encoder("internlm2").encode(sample("<image><image>", "A", pictures=[(8, 8), (8, 8)]), strides=[64])


def test_stride_of_a_whole_tile_is_the_plain_numbering():
    one = sample("<image>\nQ", "A", pictures=[(16, 8)])
    plain, v2pe = encoder("internlm2").encode(one), encoder("internlm2").encode(one, strides=TOKENS)
    np.testing.assert_array_equal(plain.position_ids, v2pe.position_ids)
    assert plain.strides is None


@pytest.mark.parametrize("name", ["llama", "llama-legacy"])
def test_llava_tokenizes_the_text_behind_an_image_as_a_separate_string(name):
    got = encoder(name).encode(sample("<image>\nQ", pictures=[(8, 8)]))
    first, n, _ = got.image_spans[0]
    assert got.input_ids[first + n :].tolist() == TOKENIZERS[name].encode("\nQ ")


def test_llava_images_are_placeholders_without_brackets():
    got = encoder("llama").encode(sample("Q <image>", "A", pictures=[(9, 5)]), strides=2)
    first, n, tiles = got.image_spans[0]
    assert (n, tiles) == (TOKENS, 1)
    assert (got.input_ids == -200).sum() == TOKENS
    expected = positions([("text", first), ("image", 1), ("text", len(got) - first - n)], TOKENS, 2, brackets=False)
    np.testing.assert_array_equal(got.position_ids, expected)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_every_answer_is_supervised_with_its_end_token_and_nothing_else(name):
    got = encoder(name).encode(sample("<image>\nQ1", "A red panda.", "Q2", "图🙂", pictures=[(8, 8)]))
    end = "</s>" if name.startswith("llama") else "<|im_end|>"
    assert supervised(got, name).replace(" ", "") == f"Aredpanda.{end}图🙂{end}"
    last = -2 if name == "qwen2" else -1  # behind the last end token of InternVL2.5 is a newline
    assert got.labels[last] == TOKENIZERS[name].token_id(end)
    assert got.n_supervised == (got.labels != IGNORE).sum() > 0


def test_a_legacy_tokenizer_does_not_void_a_sample_of_several_rounds():
    one = sample("Q1", "The kettle is red.", "Q2", "Small.", "Q3", "3 birds")
    texts = [supervised(encoder(name).encode(one), name) for name in ("llama", "llama-legacy")]
    assert texts[0] == "The kettle is red.</s> Small.</s> 3 birds</s>"
    # decoding drops the blank that a legacy tokenizer writes behind </s>
    assert texts[1] == "The kettle is red.</s>Small.</s>3 birds</s>"


def test_an_empty_answer_does_not_void_the_other_rounds():
    got = encoder("hermes2").encode(sample("Q1", "", "Q2", "small"))
    assert supervised(got, "hermes2") == "small<|im_end|>"


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_an_answer_that_is_context_only_is_not_learned_and_changes_no_token(name):
    one = sample("Q1", "No.", "Q2", "Small.")
    whole = encoder(name).encode(one)
    one.messages[1]["learn"] = False
    got = encoder(name).encode(one)
    np.testing.assert_array_equal(got.input_ids, whole.input_ids)
    end = "</s>" if name.startswith("llama") else "<|im_end|>"
    assert supervised(got, name).strip() == f"Small.{end}"


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_special_tokens_in_user_text_are_plain_text(name):
    marks = "<image><IMG_CONTEXT><img></img><|im_end|><|im_start|>assistant\n</s><unk><s>"
    enc = encoder(name)
    structure = [i for i in enc.encode(sample("Q", "A")).input_ids if i in enc.tokenizer.specials.values()]
    got = enc.encode(sample(f"Q{marks}", f"A{marks}"))
    assert [i for i in got.input_ids if i in enc.tokenizer.specials.values()] == structure
    assert got.image_spans == [] and got.pixels is None
    assert marks in enc.tokenizer.decode(got.input_ids, skip_special=False)


def test_grounding_tokens_in_text_stay_tokens():
    enc = encoder("hermes2")
    got = enc.encode(sample("Where is <ref>it</ref>?", "<box>[[1,2,3,4]]</box>"))
    for mark in ("<ref>", "</ref>", "<box>", "</box>"):
        assert (got.input_ids == enc.tokenizer.token_id(mark)).sum() == 1


def test_no_token_is_masked_for_equalling_pad():
    # pad is </s> (2) for InternLM2 and <unk> (0) for LLaVA: neither text nor structure may vanish or share a position
    got = encoder("llama").encode(sample("Q </s> <unk>", "A", "Q", "B"))
    assert (got.input_ids == 2).sum() == 2
    assert not hasattr(got, "attention_mask")
    assert got.position_ids.tolist() == list(range(len(got)))
    assert supervised(got, "llama") == "A</s> B</s>"


def test_truncation_that_cuts_image_tokens_is_an_error_that_names_the_sample():
    one = sample("<image>\nQ", "A", pictures=[(16, 8)])
    for name in ("internlm2", "llama"):
        enc = encoder(name)
        first, n, _ = enc.encode(one).image_spans[0]
        needed = first + n + (name == "internlm2")
        with pytest.raises(DataError, match=r"train\.jsonl:7: truncation would cut image tokens"):
            enc.encode(one, max_length=needed - 1)
        assert len(enc.encode(one, max_length=needed)) == needed


def test_truncation_of_an_answer_is_marked_and_keeps_the_rest():
    one = sample("Q", "The kettle is red and the birds are small.")
    whole = encoder("internlm2").encode(one)
    cut = encoder("internlm2").encode(one, max_length=len(whole) - 3)
    assert cut.truncated and not whole.truncated
    assert len(cut) == len(cut.labels) == len(cut.position_ids) == len(whole) - 3
    np.testing.assert_array_equal(cut.labels, whole.labels[:-3])
    assert not encoder("internlm2").encode(one, max_length=len(whole)).truncated


def test_generation_prompt_ends_with_the_header_and_supervises_nothing():
    enc = encoder("internlm2")
    got = enc.encode(sample("Q"), generation_prompt=True)
    assert enc.tokenizer.decode(got.input_ids[-4:], skip_special=False).endswith("assistant\n")
    assert got.n_supervised == 0 and enc.stop_ids == [641]
    whole = enc.encode(sample("Q", "Small."))
    np.testing.assert_array_equal(got.input_ids, whole.input_ids[: len(got)])


def test_video_becomes_frame_lines_of_one_tile_each(tmp_path):
    path = write_video(tmp_path / "v.mp4", range(0, 200, 20), (64, 16))
    enc = encoder("hermes2")
    enc.segments = 3
    for question in ("Q", "\nQ"):
        got = enc.encode(Sample("v", [{"role": "user", "content": [video(path), text(question)]}]))
        prompt = enc.tokenizer.decode(got.input_ids, skip_special=False).replace("<IMG_CONTEXT>", "")
        assert prompt.endswith("user\nFrame1: <img></img>\nFrame2: <img></img>\nFrame3: <img></img>\nQ<|im_end|>")
        assert [tiles for _, _, tiles in got.image_spans] == [1, 1, 1]
        assert got.pixels.shape == (3, 8, 8, 3)


def test_loss_weights_of_a_sample():
    got = encoder("internlm2").encode(sample("Q", "The kettle is red."))
    x = got.n_supervised
    for kind, weight in {"token": 1, "sample": 1 / x, "square": x**-0.5}.items():
        weights = got.loss_weights(kind)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, np.where(got.labels == IGNORE, 0, weight), rtol=1e-6)
    assert encoder("internlm2").encode(sample("Q")).loss_weights("sample").sum() == 0
    with pytest.raises(ConfigError, match="unknown loss reduction 'mean'"):
        got.loss_weights("mean")


def test_a_vocabulary_without_image_tokens_is_refused():
    with pytest.raises(ConfigError, match="has no <img>, <IMG_CONTEXT>, </img>"):
        ImageTokenIds.internvl(TOKENIZERS["llama"])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.lists(st.text(alphabet="aT e<>|/\n▁图🙂", max_size=12), min_size=2, max_size=6),
)
def test_supervised_text_is_exactly_the_answers_for_any_answers(name, values):
    enc = encoder(name)
    values = values[: len(values) // 2 * 2]
    if name == "qwen2":  # the header's newline and blanks behind it may be one token, which is the header's
        values = [v.lstrip() for v in values]
    got = enc.encode(sample(*values))
    answers = [v.strip() if enc.template.strip else v for v in values[1::2]]
    form = enc.template
    expected = "".join(form.lead + a + form.ends["assistant"] for a in answers if a or form.ends_empty)
    # ▁ is how sentencepiece writes a blank; there may be a blank next to a special token
    clean = {ord(c): None for c in " ▁"}
    assert supervised(got, name).translate(clean) == expected.translate(clean)
