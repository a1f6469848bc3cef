"""Every option of every verb, each once with a typical value: it is taken, and nothing ends in a traceback.

The home is empty, so that a command ends where its work would begin: with a plan, or with an error that a user can fix.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command_line import all_commands
from vlm.cli import main as command

CODES = {0, 1, 2, 3, 4, 5, 6, 7}
"""The documented exit codes of a command that nobody interrupts."""

BASE = {
    "doctor": [],
    "list": ["models"],
    "download": ["easy-vqa", "--dry-run"],
    "data check": ["records.jsonl", "--preset", "tiny-internvl2", "--tokenizer", "tokenizer"],
    "data ledger": ["runs/none"],
    "data show": ["records.jsonl"],
    "data import": ["records.jsonl", "out"],
    "data organize": ["easy-vqa"],
    "data tokenizer": ["none.txt", "--out", "out"],
    "data preview": ["records.jsonl"],
    "data mini": ["pope", "--n", "2"],
    "data adopt": ["none", "pope"],
    "data build long-mr": ["--out", "x", "--model", "none", "--tokens", "4K"],
    "data build long-vqa": ["records.jsonl", "--out", "x", "--model", "none", "--tokens", "4K"],
    "data build haystack": ["--out", "x", "--tokens", "64", "--tokens-per-image", "4", "--count", "1"],
    "weights make": ["tiny-internvl2", "-o", "out", "--tokenizer", "none"],
    "weights extract": ["none", "--part", "encoder", "-o", "out"],
    "weights inspect": ["none"],
    "weights convert": ["none", "--to", "vlm", "-o", "out"],
    "weights diff": ["none", "none"],
    "push": ["none", "ada/none", "--dry-run"],
    "use": [],
    "recipe show": ["v2pe-32k"],
    "recipe check": ["v2pe-32k"],
    "recipe verify": ["v2pe-32k", "-a", "none.sh"],
    "plan": ["quickstart-v2pe-sft"],
    "train": ["-r", "quickstart-v2pe-sft"],
    "watch": ["--once"],
    "launch": ["-r", "quickstart-v2pe-sft", "--print"],
    "eval score": ["pope", "none.jsonl"],
    "eval evaluate": ["pope", "-m", "none", "--mini"],
    "infer": ["photos", "-m", "none", "--prompt", "Why?", "-o", "out.jsonl"],
    "diff": ["runs/eval/a", "runs/eval/b"],
    "report": ["runs/none"],
    "view": ["runs/none"],
    "reproduce": ["convllava", "--dry-run", "--config", "none.yaml"],
    "workflow init": [],
    "clean": [],
    "cite": [],
    "eval from-script": ["none.sh"],
    "recipe from-script": ["none.sh"],
    "chat": ["Why?", "-m", "none"],
    "serve": ["-m", "none"],
}
"""What each command needs at least."""

TYPICAL = {
    "all": "quickstart",
    "allow": "strides",
    "allow_outside": "/",
    "allow_missing": "1",
    "allow_host": "vlm.example",
    "allow_images_from": "example.org",
    "api_key": "secret",
    "api_key_env": "KEY",
    "attention": "sdpa",
    "kv_dtype": "int8",
    "a": "none.sh",
    "backend": "native",
    "base_url": "http://127.0.0.1:9/v1",
    "batch_size": "2",
    "beams": "2",
    "benchmark": "pope",
    "cache_gb": "1",
    "catalogue": "none.yaml",
    "clip": "1:10-1:25",
    "columns": "question=q,answer=a",
    "concurrency": "2",
    "config": "none.yaml",
    "count": "1",
    "data": "none",
    "device": "cpu",
    "dtype": "bfloat16",
    "encoder": "none",
    "eval_data": "none",
    "every": "1",
    "f": "md",
    "family": "internvl2",
    "files": "none",
    "find_links": "none",
    "frames": "4",
    "gpus_per_node": "2",
    "group": "quickstart",
    "haystack_text": "10",
    "host": "127.0.0.1",
    "image": "none.png",
    "image_rule": "whole:64",
    "images": "none",
    "image_share": "0.5",
    "jobs": "2",
    "judge_key_env": "KEY",
    "judge_model": "m",
    "judge_url": "http://127.0.0.1:9/v1",
    "label": "x",
    "language": "none",
    "launcher": "torchrun",
    "limit": "1",
    "machine": "a100-80",
    "max_context": "64",
    "max_length": "64",
    "max_lost": "0.5",
    "max_new_tokens": "2",
    "max_queue": "2",
    "max_running": "2",
    "max_seconds": "5",
    "max_shard_size": "1GB",
    "max_tiles": "2",
    "model": "none",
    "n": "2",
    "name": "mine",
    "nodes": "2",
    "offload": "cpu",
    "out": "out",
    "part": "projector",
    "paste": "2",
    "port": "0",
    "positions": "float32",
    "preset": "tiny-internvl2",
    "processes": "2",
    "profile": "slurm",
    "projector": "none",
    "prompt": "What is it?",
    "quantize": "4bit",
    "question": "What is it?",
    "questions_per_record": "2",
    "rate": "60",
    "recipe": "quickstart-v2pe-sft",
    "base": "none",
    "newline": "each",
    "remote_code": "none",
    "retries": "1",
    "revision": "main",
    "root": "none",
    "rows": "2",
    "run": "runs/mine",
    "samples": "2",
    "scorer": "contains",
    "seed": "1",
    "set": "steps=2",
    "shard": "0/2",
    "source": "modelscope",
    "split": "val",
    "stride": "64",
    "strides": "64",
    "suffix": "Answer in one word.",
    "url": "http://127.0.0.1:9/v1",
    "system": "Be brief.",
    "task": "chartqa",
    "temperature": "0.5",
    "text": "none",
    "tiles": "2",
    "timeout": "1",
    "times": "2",
    "template": "llava_v1",
    "tls_certificate": "none.pem",
    "tls_key": "none.pem",
    "to": "hf",
    "tokenizer": "none",
    "tokens": "4K",
    "tokens_per_image": "4",
    "tokens_per_sample": "64",
    "top_p": "0.5",
    "train": "1",
    "val": "1",
    "val_share": "0.5",
    "vision": "tower",
    "vocab_size": "64",
    "workers": "2",
    "json": "out.json",
    "png": "out.png",
    "atol": "0.1",
    "format": "md",
    "partition": "gpu",
    "account": "lab",
    "against": "none.sh",
    "data check: allow": "empty-answers",
    "data import: allow": "empty-answers",
    "data build haystack: tokens": "64",
    "plan: tokens": "4096",
    "plan: images": "2",
    "gpus": "2",
    "eval": "pope",
    "data build haystack: split": "test",
    "data build haystack: task": "order",
    "time": "01:00:00",
    "benchmark_text": "10",
}
"""A value for each option by its long name; an option that is new needs one here."""


COMMANDS = all_commands()


def options(name: str, node: Any) -> Iterator[list[str]]:
    """Yield the words of each option: a flag and its opposite, another option with a typical value."""
    for parameter in node.params:
        if parameter.param_type_name != "option" or "completion" in parameter.name:
            continue
        long = max(parameter.opts, key=len)
        if parameter.is_flag:
            yield from ([word] for word in (long, *parameter.secondary_opts))
        else:
            key = long.lstrip("-").replace("-", "_")
            yield [long, TYPICAL.get(f"{name}: {key}") or TYPICAL[key]]


def test_every_command_has_its_least_words() -> None:
    assert COMMANDS.keys() == BASE.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BASE)
def test_every_option_is_taken_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception that is no error of ours comes out of `main` and fails the test."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ran = []

    def start(file: str, words: list[str]) -> None:
        ran.append(words)

    monkeypatch.setattr(os, "execvp", start)
    (tmp_path / "records.jsonl").write_text('{"id": 1, "conversations": []}\n')
    words = [] if name == "eval evaluate" else name.split()[1:]
    for option in [[], *options(name, COMMANDS[name])]:
        line = ["vlm", name.split()[0], *words, *BASE[name], *option]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            command.main()
        out, err = capsys.readouterr()
        code = stop.value.code or 0
        assert code in CODES, (line, code)
        assert "Traceback" not in out + err and "No such option" not in err and "Usage:" not in err, (line, err)
        assert code == 0 or "error: " in err or name == "doctor", (line, code, err)
    assert not ran
