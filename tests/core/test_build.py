"""Haystacks, tokenizer and preview."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from support.haystack_sources import write_haystack_sources
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import dataset
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.synth.haystack import SHORTLY, HaystackOptions, build_haystack, counter
from vlm.core.synth.preview import preview
from vlm.core.synth.sentences import SENTENCES
from vlm.core.synth.train_tokenizer import SPECIAL, train_tokenizer
from vlm.core.synth.vqa_records import NUMBER_WORDS, vqa_record, write_jsonl

K = 16


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """digits, easy-vqa and photographs as they are organized, with few and tiny pictures."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    write_haystack_sources()
    return dataset()


def rows(path: Path) -> list[dict]:
    return [record for _, record in iter_jsonl(path)]


def small_tokenizer(folder: Path) -> Path:
    write_jsonl(folder / "t.jsonl", [vqa_record("a", "a.png", [("What colour is the shape?", "blue")])])
    train_tokenizer(folder / "tokenizer", [folder / "t.jsonl"], vocab_size=400)
    return folder / "tokenizer"


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_haystack_meets_its_budget_when_counted_again_and_hides_exactly_one_digit(
    sources, tmp_path, tokens, with_tokenizer
):
    tokenizer = small_tokenizer(tmp_path) if with_tokenizer else None
    count = counter(tokenizer / "tokenizer.json" if tokenizer else None)
    path = build_haystack("h", HaystackOptions(tokens, K, 20), tokenizer=tokenizer)
    for record in rows(path):
        human, gpt = record["conversations"]
        read_record(record, root=dataset())
        text = sum(map(count, human["value"].split("<image>")))
        total = text + (K + 2) * len(record["image"])
        assert abs(total - tokens) <= 0.01 * tokens
        assert record["meta"]["context_length"] == total
        digits = [name for name in record["image"] if name.startswith("digits/")]
        assert len(digits) == 1
        assert NUMBER_WORDS[int(Path(digits[0]).stem) % 10] == gpt["value"]
        assert human["value"].endswith("Which digit is hidden?" + SHORTLY)
        assert not set(re.findall(r"\w+", human["value"].lower())) & (set(NUMBER_WORDS) | set("0123456789"))


def test_depths_cover_the_document_evenly_and_digits_are_balanced(sources):
    path = build_haystack("h", HaystackOptions(2048, K, 50, split="test"))
    records = rows(path)
    assert set(Counter(r["answer"] for r in records).values()) == {5}
    depths = sorted(r["meta"]["placed_depth"][0] for r in records)
    for i, depth in enumerate(depths):
        assert abs(depth - (i + 0.5) / 50) < 0.03
    for record in records:  # the noted depth is where the digit really is
        parts = record["context"].split("<image>")
        at = next(i for i, name in enumerate(record["images_list"]) if name.startswith("digits/"))
        before = sum(map(counter(None), parts[: at + 1])) + (K + 2) * at
        assert abs(before / record["meta"]["context_length"] - record["meta"]["placed_depth"][0]) < 1e-3


def test_the_test_split_is_mm_niah_and_shares_no_picture_with_training(sources):
    train = rows(build_haystack("h", HaystackOptions(1024, K, 20)))
    path = build_haystack("h", HaystackOptions(1024, K, 20, split="test", times="2x"))
    test = rows(path)
    assert path == sources / "h" / "annotations" / "digit-haystack.jsonl"
    assert set(test[0]) == {"id", "images_list", "context", "question", "answer", "meta"}
    meta = test[0]["meta"]
    assert meta["choices"] is meta["choices_image_path"] is None
    assert meta["times"] == "2x"
    assert meta["context_length"] == meta["context_length_text"] + meta["context_length_image"]
    for record in test:
        assert record["context"].count("<image>") == len(record["images_list"]) == record["meta"]["num_images"]
        assert all((sources / "h" / "images" / name).is_file() for name in record["images_list"])
    shown = {name for r in test for name in r["images_list"]}
    assert not shown & {name for r in train for name in r["image"]}
    marker = json.loads((sources / "h" / "mini.json").read_text())
    assert marker == {"benchmark": "h", "seed": 0, "counts": {"digit-haystack": 20}}


@pytest.mark.parametrize("tokens", [84, 256, 2048])
def test_with_two_digits_the_question_is_about_the_first(sources, tokens):
    options = HaystackOptions(tokens, K, 24, split="test", task="order", image_share=0.6)
    records = rows(build_haystack("h", options))
    assert {record["question"] for record in records} == {"Which digit comes first?"}
    for record in records:
        assert abs(record["meta"]["context_length"] - tokens) <= max(2, 0.01 * tokens)
        shown = [name for name in record["images_list"] if name.startswith("digits/")]
        first, second = (NUMBER_WORDS[int(Path(name).stem) % 10] for name in shown)
        assert shown == record["meta"]["needles"]
        assert first == record["answer"] != second
        depths = record["meta"]["placed_depth"]
        assert 0 <= depths[0] < depths[1] <= 1


@pytest.mark.parametrize("tokens", [84, 256, 2048])
def test_a_number_in_a_sentence_is_hidden_among_pictures_without_digits(sources, tokens):
    options = HaystackOptions(tokens, K, 20, split="test", task="text", image_share=0.6)
    records = rows(build_haystack("h", options))
    assert {record["question"] for record in records} == {"Which number is written?"}
    assert set(Counter(record["answer"] for record in records).values()) == {2}
    count = counter(None)
    for record in records:
        assert abs(record["meta"]["context_length"] - tokens) <= max(2, 0.01 * tokens)
        (needle,), (depth,) = record["meta"]["needles"], record["meta"]["placed_depth"]
        assert needle == f"The number is {record['answer']}." and record["context"].count(needle) == 1
        assert not any(name.startswith("digits/") for name in record["images_list"])
        before = record["context"][: record["context"].index(needle)].split("<image>")
        at = sum(map(count, before)) + (K + 2) * (len(before) - 1)
        assert abs(at / record["meta"]["context_length"] - depth) < 1e-3
    depths = sorted(record["meta"]["placed_depth"][0] for record in records)
    assert depths[0] < 0.2 and depths[-1] > 0.7


def test_the_same_seed_gives_the_same_bytes_and_a_second_run_writes_nothing(sources):
    options = HaystackOptions(1024, K, 10)
    first = build_haystack("a", options)
    content, written = first.read_bytes(), first.stat().st_mtime_ns
    assert build_haystack("a", options).stat().st_mtime_ns == written
    assert build_haystack("b", options).read_bytes() == content
    assert build_haystack("b", HaystackOptions(1024, K, 10, seed=1)).read_bytes() != content
    about = json.loads((sources / "a" / "manifest-train.json").read_text())
    assert about["made_of"]["sources"]["digits"] == {"made": "digits"}
    assert about["statistics"]["records"] == 10
    first.write_text("cut")
    assert build_haystack("a", options).read_bytes() == content


def test_documents_that_do_not_fit_and_missing_sources_are_errors(sources, tmp_path):
    with pytest.raises(ConfigError, match="do not hold 1 image"):
        build_haystack("h", HaystackOptions(40, K, 1))
    with pytest.raises(ConfigError, match="vlm data tokenizer"):
        build_haystack("h", HaystackOptions(1024, K, 1), tokenizer=tmp_path / "none.json")
    (sources / "digits" / ".vlm-manifest.json").unlink()
    with pytest.raises(DataError, match="vlm data organize digits"):
        build_haystack("h", HaystackOptions(1024, K, 1))


def test_the_grammar_has_about_forty_words():
    words = {word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()}
    assert 35 <= len(words) <= 50
    assert len(set(SENTENCES)) == len(SENTENCES)


def test_the_tokenizer_is_deterministic_lossless_and_loads_in_transformers(tmp_path):
    folder = small_tokenizer(tmp_path)
    code = "import sys; from pathlib import Path; from vlm.core.synth.train_tokenizer import train_tokenizer as t;"
    code += "t(Path(sys.argv[1]), [Path(sys.argv[2])], vocab_size=400)"
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-c", code, again, tmp_path / "t.jsonl"], check=True, env=os.environ.copy())
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(loaded) == 400
    assert loaded.convert_tokens_to_ids(list(SPECIAL)) == list(range(8))
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<unk>", "<s>", "</s>")
    text = "What colour is the shape? Grüße, 東京\n\ttab"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert loaded.decode(ids) == text
    assert loaded("a<|im_end|>", add_special_tokens=False)["input_ids"][-1] == 4
    assert len(loaded.tokenize(" garden")) == 1  # a word of the haystack sentences


def test_texts_of_benchmarks_count_and_wrong_input_is_named(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([["zyxwvzyxwv?", "zyxwv", 0]] * 50))
    (tmp_path / "plain.txt").write_text("qqqkkk\n" * 50)
    extra = [tmp_path / "q.json", tmp_path / "plain.txt"]
    assert train_tokenizer(tmp_path / "t", [], vocab_size=300, extra=extra, haystack=False) <= 300
    vocabulary = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "zyxwv" in vocabulary
    assert "qqqkkk" in vocabulary
    with pytest.raises(ConfigError, match="at least 264"):
        train_tokenizer(tmp_path / "t", [], vocab_size=100)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(tmp_path / "t", [], haystack=False)
    write_jsonl(tmp_path / "bad.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"bad.jsonl:1: no `conversations`"):
        train_tokenizer(tmp_path / "t", [tmp_path / "bad.jsonl"])


def test_a_preview_is_one_page_without_outside_references(tmp_path):
    Image.new("RGB", (600, 300), "blue").save(tmp_path / "a.png")
    records = [vqa_record(f"r{i}", "a.png", [("<b>What?</b>", f"answer {i}")]) for i in range(10)]
    write_jsonl(tmp_path / "t.jsonl", records)
    assert preview(tmp_path / "t.jsonl", tmp_path / "page.html", count=3) == 3
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 3
    assert "http" not in page
    assert "&lt;b&gt;What?&lt;/b&gt;" in page
    assert "answer 0" in page
    before = hashlib.sha256(page.encode()).hexdigest()
    preview(tmp_path / "t.jsonl", tmp_path / "page.html", count=3)
    assert hashlib.sha256((tmp_path / "page.html").read_bytes()).hexdigest() == before
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no record"):
        preview(tmp_path / "empty.jsonl", tmp_path / "page.html")
