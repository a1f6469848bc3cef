"""Prompts, ids and labels against those of the published preprocessing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.conftest import DATA
from golden.decisions import DECISIONS, OTHER_TEXTS, decide
from golden.fixtures import Entry, Fixtures, find_fixtures
from PIL import Image

from vlm.core.errors import DataError
from vlm.core.sample.chat import IMAGE, TEMPLATES, prompt_text, user_message
from vlm.core.sample.encode import GROUNDING, LLAVA_IMAGE, ImageTokenIds, SampleEncoder, picture_part
from vlm.core.sample.encoded import IGNORE, Encoded
from vlm.core.sample.records import Message, Sample, read_record, text
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import Tokenizer, load_tokenizer
from vlm.models.answers import left_padded
from vlm.train.run.stream import make_row

SIZE = 4


def picture(tiles: int) -> Image.Image:
    """An image that makes exactly that many tiles."""
    return Image.new("RGB", (SIZE * tiles, SIZE))


def template_name(published: str, recorded: str) -> str:
    """Our template of a published name whose system text is in the recorded text."""
    names = [name for name in (OTHER_TEXTS.get(published), published) if name in TEMPLATES]
    assert names, f"template {published!r} is not known; known: {sorted(TEMPLATES)}"
    return next((name for name in names if TEMPLATES[name].system in recorded), names[0])


def encoder_for(case: dict[str, Any], tokenizer: Tokenizer, tokens_per_tile: int) -> SampleEncoder:
    template = template_name(case["template"], case.get("prompt", ""))
    if TEMPLATES[template].images_first:
        # one token per image, as in the recorded ids: upstream expands -200 inside the model
        return SampleEncoder(tokenizer, template, ImageRule(kind="pad", size=SIZE), 1, LLAVA_IMAGE)
    tiles = [count // tokens_per_tile for count in case.get("num_image_token_list") or []]
    limit = max([40, *tiles, *(case.get("num_patches_list") or [])])
    rule = ImageRule(kind="tiles", size=SIZE, max_tiles=limit, thumbnail=False)
    return SampleEncoder(tokenizer, template, rule, tokens_per_tile, ImageTokenIds.internvl(tokenizer))


def sample_of(case: dict[str, Any], tmp_path: Path) -> tuple[Sample, int, list[int]]:
    """The record with real image files, the tokens per tile, and the tiles of each image."""
    if "num_image_token_list" in case:
        counts = case["num_image_token_list"]
        tokens = math.gcd(*counts) or 4
        tiles = [count // tokens for count in counts]
    else:
        tokens, tiles = 1, [1] * sum(t["value"].count(IMAGE) for t in case["conversations"])
    for n in set(tiles):
        picture(n).save(tmp_path / f"{n}.png")
    record = {"id": case["id"], "conversations": case["conversations"], "image": [f"{n}.png" for n in tiles]}
    return read_record(record, root=tmp_path, allow=("quoted-placeholders", "empty-answers")), tokens, tiles


def supervised_text(encoded: Encoded, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(encoded.input_ids[encoded.labels != IGNORE], skip_special=False)


def answers_of(case: dict[str, Any], template: str) -> str:
    """What should be supervised: each answer that is not empty, with its end."""
    form = TEMPLATES[template]
    values = [t["value"] for t in case["conversations"] if t["from"] == "gpt"]
    if case["conversations"][0]["from"] == "gpt":
        values = values[1:]
    values = [value.strip() if form.strip else value for value in values]
    return "".join(form.lead + value + form.ends["assistant"] for value in values if value or form.ends_empty)


def is_legacy(folder: Path) -> bool:
    """Whether a sentencepiece tokenizer treats text behind special tokens as transformers once did."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return config.get("legacy", True) is not False


def facts_of(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What decisions look at beside the entry: recorded image tokens, and the rule of the tokenizer in `folder`."""
    tokenizer = load_tokenizer(folder)
    context = tokenizer.token_id("<IMG_CONTEXT>")
    quotes = tokenizer.specials.keys() - GROUNDING
    return {"image_ids": case.get("input_ids", []).count(context), "legacy": is_legacy(folder), "specials": quotes}


def test_our_fixtures_hold_the_special_cases_that_the_table_decides() -> None:
    own = find_fixtures(DATA)
    used = [
        decide("templates/training", entry.case, **facts_of(entry.case, own.tokenizer(entry, entry.case["tokenizer"])))
        for entry in own.entries["templates/training"]
    ]
    assert all(decision in used for decision in DECISIONS if decision.section == "templates/training")


@pytest.mark.cases("templates/training")
def test_ids_and_labels_equal_the_published_ones(entry: Entry, found: Fixtures, tmp_path: Path) -> None:
    case = entry.case
    folder = found.tokenizer(entry, case["tokenizer"])
    tokenizer = load_tokenizer(folder)
    decision = decide("templates/training", case, **facts_of(case, folder))
    ours = decision.ours if decision else ""
    max_length = case["model_max_length"]
    if ours == "refused":
        with pytest.raises(DataError, match=r"placeholders|truncation would cut image tokens"):
            sample, tokens, _ = sample_of(case, tmp_path)
            encoder_for(case, tokenizer, tokens).encode(sample, max_length=max_length)
        return
    sample, tokens, tiles = sample_of(case, tmp_path)
    if ours == "put in front":
        first = next(i for i, turn in enumerate(case["conversations"]) if turn["from"] == "human")
        turns = [dict(turn) for turn in case["conversations"]]
        turns[first]["value"] = f"{IMAGE}\n" + turns[first]["value"]
        wanted, *_ = sample_of({**case, "conversations": turns}, tmp_path)
        assert sample.messages == wanted.messages
        return
    encoder = encoder_for(case, tokenizer, tokens)
    encoded = encoder.encode(sample, max_length=None if ours.startswith("not cut") else max_length)
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    assert [n for _, _, n in encoded.image_spans] == tiles

    if encoder.image_tokens.start is not None:
        stand_ins = [f"<img>{'<IMG_CONTEXT>' * (n * tokens)}</img>" for n in tiles]
    else:
        stand_ins = [IMAGE] * len(tiles)
    if ours == "opening answer left out":
        opening = next(turn["value"] for turn in case["conversations"] if turn["from"] == "gpt")
        form = encoder.template
        opening = form.headers["assistant"] + opening + form.ends["assistant"] + form.tail
        assert opening in case["prompt"]
        n = len(tokenizer.encode(opening))
        at = len(tokenizer.encode(case["prompt"].partition(opening)[0]))
        case = {
            **case,
            "prompt": case["prompt"].replace(opening, "", 1),
            "input_ids": case["input_ids"][:at] + case["input_ids"][at + n :],
            "labels": case["labels"][:at] + case["labels"][at + n :],
        }
        del case["supervised_text"]
        ours = ""
    if ours != "placeholders kept":
        assert prompt_text(sample.messages, encoder.template, images=stand_ins) == case["prompt"]
    answers = answers_of(case, encoder.template.name)

    if ours == "":
        if "supervised_text" in case:
            assert supervised_text(encoded, tokenizer) == case["supervised_text"]
        assert ids == case["input_ids"]
        assert labels == case["labels"]
        assert encoded.truncated == (len(ids) == max_length)
    elif ours == "not padded":
        real = np.array(case["attention_mask"], bool)
        assert ids == np.array(case["input_ids"])[real].tolist()
        assert labels == np.array(case["labels"])[real].tolist()
    elif ours.startswith("not cut"):
        assert ids == case["input_ids"]
        if ours == "not cut":
            assert labels == case["labels"]
        else:
            supervised = supervised_text(encoded, tokenizer)
            assert supervised.replace(" ", "") == answers.replace(" ", "")
        assert len(encoder.encode(sample, max_length=max_length)) == max_length
    elif ours == "answers supervised":
        assert ids == case["input_ids"]
        assert supervised_text(encoded, tokenizer).replace(" ", "") == answers.replace(" ", "")
    elif ours == "placeholders kept":
        assert ids.count(LLAVA_IMAGE.context) == len(tiles) > 1
        assert [i for i in labels if i != IGNORE] == [i for i in case["labels"] if i != IGNORE]
    else:
        assert ours == "text is text"
        check_quotes(encoder, ids, case, len(sample.messages))
        assert supervised_text(encoded, tokenizer).replace(" ", "") == answers.replace(" ", "")


def check_quotes(encoder: SampleEncoder, ids: list[int], case: dict[str, Any], messages: int) -> None:
    """The structure of the ids is that of the template: what the texts quote adds no special token."""
    tokenizer, form = encoder.tokenizer, encoder.template
    if form.images_first:
        answers = sum(turn["from"] == "gpt" for turn in case["conversations"][1:])
        assert sum(i == tokenizer.eos_id for i in ids) == answers
        return
    start, end = (tokenizer.token_id(f"<|im_{name}|>") for name in ("start", "end"))
    turns = messages + (not any(turn["from"] == "system" for turn in case["conversations"]))
    assert [sum(i == mark for i in ids) for mark in (start, end)] == [turns, turns]
    assert tokenizer.decode(ids, skip_special=False).removeprefix("<s>") == case["prompt"]


@pytest.mark.cases("templates/generation")
def test_generation_prompts_equal_the_published_ones(entry: Entry, found: Fixtures) -> None:
    case = entry.case
    tokens = case.get("num_image_token", 1)
    tiles = case.get("num_patches_list") or [1] * case["question"].count(IMAGE)
    media = iter([picture_part(picture(n)) for n in tiles])
    encoder = encoder_for(case, load_tokenizer(found.tokenizer(entry, case["tokenizer"])), tokens)
    turns = [*(case.get("history") or []), [case["question"], None]]
    messages = []
    for question, answer in turns:
        n_marks = question.count(IMAGE) if IMAGE in question or case.get("history") else len(tiles)
        messages.append(user_message(question, [m for _, m in zip(range(n_marks), media, strict=False)]))
        if answer is not None:
            messages.append({"role": "assistant", "content": [text(answer)]})
    encoded = encoder.encode(Sample("g", messages), strides=case.get("rope_pos_id_stride"), generation_prompt=True)
    assert encoded.input_ids.tolist() == case["input_ids"]
    assert len(encoded.input_ids) == case.get("prompt_length", len(encoded.input_ids))
    assert encoded.n_supervised == 0 or case.get("history")
    if "eos_token_id" in case:
        assert encoder.stop_ids == [case["eos_token_id"]]
    if "position_ids" in case:
        np.testing.assert_array_equal(encoded.position_ids, case["position_ids"])
    if "prompt" in case:
        stand_ins = [f"<img>{'<IMG_CONTEXT>' * (n * tokens)}</img>" for n in tiles]
        if encoder.image_tokens.start is None:
            stand_ins = [IMAGE] * len(tiles)
        assert prompt_text(messages, encoder.template, generation_prompt=True, images=stand_ins) == case["prompt"]


@pytest.mark.cases("templates/batches")
def test_batches_of_prompts_equal_the_published_left_padded_ones(entry: Entry, found: Fixtures) -> None:
    """One image for each question, put in front of it where it has no placeholder."""
    case = entry.case
    tokenizer = load_tokenizer(found.tokenizer(entry, case["tokenizer"]))
    encoder = encoder_for(case, tokenizer, case["num_image_token"])
    questions = zip(case["questions"], case["num_patches_list"], strict=True)
    samples = [Sample("b", [user_message(q, [picture_part(picture(n))] if n else [])]) for q, n in questions]
    strides = case.get("rope_pos_id_stride")
    rows = [encoder.encode(sample, strides=strides, generation_prompt=True) for sample in samples]
    ids, mask, positions = left_padded(rows)
    if "position_ids" in case:
        assert positions[mask.bool()].tolist() == torch.tensor(case["position_ids"])[mask.bool()].tolist()
    assert mask.tolist() == case["attention_mask"]
    assert ids[mask.bool()].tolist() == torch.tensor(case["input_ids"])[mask.bool()].tolist()
    assert encoder.stop_ids == [case["eos_token_id"]]


@pytest.mark.cases("templates/raw_tokenization")
def test_raw_tokenization_equals_the_published_slow_tokenizers(entry: Entry, found: Fixtures) -> None:
    tokenizer = load_tokenizer(found.tokenizer(entry, entry.case["id"]))
    for string in entry.value:
        bos = [tokenizer.bos_id] if tokenizer.add_bos else []
        assert bos + tokenizer.encode(string["text"]) == string["input_ids"], string["text"]


@pytest.mark.cases("templates/templates")
def test_templates_have_the_published_texts(entry: Entry) -> None:
    theirs = entry.value
    ours = TEMPLATES[template_name(entry.case["id"], theirs["system_message"])]
    assert ours.system == theirs["system_message"]
    if "example_prompt_custom_system" in theirs:
        messages: list[Message] = [
            {"role": "user", "content": [text("Q1")]},
            {"role": "assistant", "content": [text("A1")]},
            {"role": "user", "content": [text("Q2")]},
        ]
        got = prompt_text(messages, ours, "Custom system.", generation_prompt=True)
        assert got == theirs["example_prompt_custom_system"]


@pytest.mark.cases("templates/collator")
def test_collated_samples_are_our_rows_cut_and_padded(entry: Entry) -> None:
    case = entry.case
    for i, sample in enumerate(case["samples"]):
        ids, labels = np.array(sample["input_ids"]), np.array(sample["labels"])
        row = make_row([Encoded(str(i), ids, labels, np.arange(len(ids)), [], None, [])], "token")
        n = min(len(row.input_ids), case["model_max_length"])
        assert row.input_ids[:n].tolist() == case["input_ids"][i][:n]
        assert row.labels[:n].tolist() == case["labels"][i][:n]
        assert case["attention_mask"][i] == [1] * n + [0] * (len(case["input_ids"][i]) - n)
        assert set(case["labels"][i][n:]) <= {IGNORE}
