import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from vlm.core.errors import CheckpointError, UnknownName
from vlm.core.sample.tokenizer import FastTokenizer, as_tokenizer, load_tokenizer
from vlm.core.synth.train_tokenizer import train_tokenizer

FOLDERS = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
CORPUS = ["The kettle is red. assistant\nuser\n There are 3 birds, all small."] * 5
SPECIALS = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
TEXTS = st.lists(st.sampled_from([*SPECIALS, "a", " ", "\n", "The kettle", "图", "🙂", "<", "|im_end|>", "</s>"]))


def fast(kind: str) -> FastTokenizer:
    """A tiny tokenizer.json of one of the kinds that models ship."""
    if kind == "bytes":
        rust = RustTokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder, rust.post_processor = decoders.ByteLevel(), processors.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        rust = RustTokenizer(models.BPE(unk_token="<unk>"))
        alphabet = []
        if kind == "prepend":
            rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            rust.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(CORPUS, trainer)
    return FastTokenizer(json.loads(rust.to_str()), {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})


FAST = {kind: fast(kind) for kind in ("bytes", "first", "prepend")}
SLOW = {folder.name: load_tokenizer(folder) for folder in FOLDERS.iterdir()}


@given(TEXTS)
def test_fast_tokenizers_give_the_ids_of_the_library(parts):
    for tokenizer in FAST.values():
        value = "".join(parts)
        assert tokenizer.encode(value) == tokenizer._full.encode(value, add_special_tokens=False).ids


@given(TEXTS)
def test_plain_text_never_becomes_a_special_token(parts):
    value = "".join(parts)
    for name, tokenizer in {**SLOW, **FAST}.items():
        unknown = {tokenizer.token_id("<unk>")}
        assert not set(tokenizer.encode_plain(value)) & (set(tokenizer.specials.values()) - unknown)
        if name in SLOW or name == "bytes":
            assert tokenizer.decode(tokenizer.encode_plain(value)) == value


@given(TEXTS, st.booleans())
def test_tokens_begin_at_characters_in_reading_order(parts, start):
    value = "".join(parts)
    for tokenizer in {**SLOW, **FAST}.values():
        begins = [at for _, at in tokenizer.tokenize(value, start)]
        assert begins == sorted(begins)
        assert all(0 <= at < len(value) for at in begins)


@given(TEXTS)
def test_decoding_returns_the_text_with_its_special_tokens(parts):
    value = "".join(parts)
    for tokenizer in (*SLOW.values(), FAST["bytes"]):
        assert tokenizer.decode(tokenizer.encode(value), skip_special=False) == value


def test_special_tokens_can_be_left_out_and_placeholders_always_are():
    tokenizer = SLOW["llama"]
    assert tokenizer.decode([1, -200, *tokenizer.encode("red"), 2]) == "red"


def test_legacy_flag_decides_the_blank_after_a_special_token():
    new, legacy = (SLOW[name].encode("a</s>USER") for name in ("llama", "llama-legacy"))
    assert legacy == [*new[:2], SLOW["llama"].token_id("▁"), *new[2:]]


def test_ids_of_the_five_published_layouts():
    assert [(n, t.bos_id, t.eos_id, t.pad_id, t.add_bos, len(t)) for n, t in sorted(SLOW.items())] == [
        ("hermes2", 1, 7, 0, False, 609),
        ("internlm2", 1, 2, 2, True, 651),
        ("llama", 1, 2, 0, True, 560),
        ("llama-legacy", 1, 2, 0, True, 560),
        ("qwen2", None, 315, 313, False, 344),
    ]
    assert SLOW["hermes2"].token_id("<IMG_CONTEXT>") == 602
    assert SLOW["llama"].token_id("<IMG_CONTEXT>") is None


def test_added_tokens_may_take_the_blanks_beside_them():
    spec = json.loads(FAST["bytes"]._full.to_str())
    next(t for t in spec["added_tokens"] if t["content"] == "<img>")["rstrip"] = True
    tokenizer = FastTokenizer(spec, {})
    assert tokenizer.encode("a<img>  b") == tokenizer._full.encode("a<img>  b", add_special_tokens=False).ids


def test_bos_follows_the_post_processor_when_the_config_is_silent():
    spec = json.loads(FAST["bytes"]._full.to_str())
    config = {"bos_token": {"content": "<|endoftext|>"}}
    assert not FastTokenizer(spec, config).add_bos
    rust = RustTokenizer.from_str(json.dumps(spec))
    rust.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    assert FastTokenizer(json.loads(rust.to_str()), config).add_bos


def test_transformers_tokenizers_are_read_again_from_their_files():
    vocab_file = str(FOLDERS / "llama-legacy" / "tokenizer.model")
    theirs = SimpleNamespace(vocab_file=vocab_file, get_added_vocab=lambda: {"</s>": 2})
    assert as_tokenizer(theirs).encode("a</s>b") == SLOW["llama-legacy"].encode("a</s>b")
    with pytest.raises(CheckpointError, match="has no <new>, added in memory"):
        as_tokenizer(SimpleNamespace(vocab_file=vocab_file, get_added_vocab=lambda: {"<new>": 560}))
    backed = SimpleNamespace(backend_tokenizer=FAST["bytes"]._full, eos_token="<|im_end|>")
    assert as_tokenizer(backed).eos_id == 3
    with pytest.raises(CheckpointError, match="no Rust backend"):
        as_tokenizer(SimpleNamespace())


def test_broken_and_missing_files_are_errors_that_name_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_we_train_is_read_by_libraries_of_the_published_pins(tmp_path):
    """tokenizers 0.15 reads merges as strings alone; transformers adds <s> by the post-processor."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"conversations": [{"from": "human", "value": "what is this? " * 9}]}))
    train_tokenizer(tmp_path / "out", [tmp_path / "t.jsonl"], vocab_size=300)
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert content["model"]["merges"] and all(
        isinstance(m, str) and m.count(" ") == 1 for m in content["model"]["merges"]
    )
    theirs = RustTokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "out")
    assert theirs.encode("what is").ids == [ours.bos_id, *ours.encode("what is")]
    assert ours.add_bos and ours.encode("what is") == ours.encode_plain("what is")


def test_the_role_words_of_a_template_become_tokens_where_it_is_named(tmp_path):
    turns = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "red"}] * 20
    (tmp_path / "t.jsonl").write_text(json.dumps({"conversations": turns}))
    for name, template in (("with", "llava_v1"), ("without", None)):
        train_tokenizer(tmp_path / name, [tmp_path / "t.jsonl"], vocab_size=320, haystack=False, template=template)
    words = "USER: ASSISTANT:"
    counts = {name: len(load_tokenizer(tmp_path / name).encode(words)) for name in ("with", "without")}
    assert counts == {"with": 4, "without": 16}
    with pytest.raises(UnknownName, match="llava_v1"):
        train_tokenizer(tmp_path / "x", [tmp_path / "t.jsonl"], template="llava_v2")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["internlm2", "llama", "hermes2", "qwen2"])
def test_rows_of_a_model_that_no_token_has_decode_to_nothing(kind):
    """Published tables are padded: a model may answer with a row behind the last token."""
    tokenizer = load_tokenizer(FOLDERS / kind)
    ids = tokenizer.encode("The kettle")
    assert tokenizer.decode([*ids, len(tokenizer), 151_935]) == tokenizer.decode(ids) != ""
