"""Logits that are no numbers are an error of their item: no token that follows from them is scored."""

import json
from pathlib import Path

import pytest
import torch

from vlm.core.errors import CheckpointError, DataError
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.backends.teacher_forcing import TeacherForcedBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.models import ChatSession
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.generation.decoding import check_finite
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), tmp_path / "m", tokenizer=TOKENIZER)
    return tmp_path / "m"


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_model_whose_logits_are_no_numbers_answers_nothing(value, folder: Path, tmp_path: Path) -> None:
    data = make_mini("POPE", tmp_path / "pope", n=2)
    checkpoint = Checkpoint(folder, device="cpu")
    with torch.no_grad():
        checkpoint.model.language_model.lm_head.weight[7, 3] = value
    with pytest.raises(DataError, match=r"none of \d+ items was answered.*logits are not finite"):
        run_evaluation(load_benchmark("pope"), NativeBackend(checkpoint), tmp_path / "out", Options(), data=data)
    found = rows(tmp_path / "out")
    assert {row["outcome"] for row in found} == {"error"} and {row["score"] for row in found} == {None}


def test_one_prompt_without_numbers_costs_its_neighbors_nothing(folder: Path, tmp_path: Path) -> None:
    data = make_mini("POPE", tmp_path / "pope", n=2)
    checkpoint, table = Checkpoint(folder, device="cpu"), load_benchmark("pope")
    run_evaluation(table, NativeBackend(checkpoint), tmp_path / "clean", Options(), data=data)
    clean = rows(tmp_path / "clean")
    backend = NativeBackend(checkpoint)
    with torch.no_grad():
        seen = [set(backend.processor.tokenizer.encode(row["prompt"])) for row in clean]
        own = next(iter(seen[0] - set.union(*seen[1:])), None) or next(iter(seen[0] - seen[-1]))
        checkpoint.model.language_model.get_input_embeddings().weight[own] = float("nan")
    run_evaluation(table, backend, tmp_path / "out", Options(), data=data)
    found = rows(tmp_path / "out")
    hit = [own in tokens for tokens in seen]
    assert 0 < sum(hit) < len(hit)
    for row, before, bad in zip(found, clean, hit, strict=True):
        assert row["outcome"] == "error" and "not finite" in row["why"] if bad else row == before


def test_teacher_forcing_and_chat_name_it_too(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder, device="cpu")
    with torch.no_grad():
        checkpoint.model.language_model.lm_head.weight[7, 3] = float("nan")
    backend = TeacherForcedBackend(checkpoint)
    words = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    words.append({"role": "assistant", "content": [{"type": "text", "text": "two"}]})
    with pytest.raises(CheckpointError, match="not finite"):
        backend.answer([backend.encode("1", words)], max_new_tokens=1, min_new_tokens=1)
    session = ChatSession(folder)
    with torch.no_grad():
        session.model.language_model.lm_head.weight[7, 3] = float("nan")
    for settings in ({}, {"num_beams": 2}, {"do_sample": True, "temperature": 1.0}):
        with pytest.raises(CheckpointError, match="not finite"):
            session.ask("Hello", max_new_tokens=2, **settings)
    assert session.history == [] and not session.model.language_model.lm_head._forward_hooks


def test_numbers_of_any_size_pass() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits = torch.full((2, 1, 200_000), torch.finfo(torch.float16).max, dtype=dtype)
        assert check_finite(logits) is logits
        logits[1, 0, 5] = float("nan")
        with pytest.raises(CheckpointError, match=r"^1 of 400,000 logits"):
            check_finite(logits)
