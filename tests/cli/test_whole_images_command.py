"""Whole images on the command line: chat, evaluation, data check; and the warning of a model of single pictures."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from vlm.cli import main as command
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset


@pytest.fixture
def vlm(tmp_path, monkeypatch, capsys):
    """`vlm("chat", ...)`: exit code, standard output, standard error, in a home with tiny models and pictures."""
    from pathlib import Path

    tokenizers = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
    for preset, tokenizer in (("tiny-convllava", "llama"), ("tiny-internvl2", "internlm2")):
        model = build(load_preset(preset), tokenizer=tokenizers / tokenizer, seed=1)
        save_model(model, tmp_path / "pretrained" / preset, tokenizer=tokenizers / tokenizer)
    drawn = np.random.default_rng(0)
    for name, (width, height) in {"wide.png": (700, 100), "tall.png": (90, 300), "dot.png": (1, 4000)}.items():
        Image.fromarray(drawn.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["vlm", *words])
        with pytest.raises(SystemExit) as stop:
            command.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def chat(vlm, *words, model="tiny-convllava"):
    return vlm("chat", "-m", f"pretrained/{model}", "--device", "cpu", "--max-new-tokens", "4", *words)


def test_chat_about_a_picture_of_any_shape(vlm):
    for name in ("wide.png", "tall.png", "dot.png"):
        code, _, err = chat(vlm, "--image-rule", "whole:40", name, "Why?")
        assert code == 0, err
    padded = chat(vlm, "wide.png", "Why?")[1]
    assert chat(vlm, "--image-rule", "pad", "wide.png", "Why?")[1] == padded


@pytest.mark.parametrize("rule", ["wohle", "whole:0", "whole:x", "tiles"])
def test_a_rule_that_is_none_ends_in_an_error_with_the_rules(vlm, rule):
    code, _, err = chat(vlm, "--image-rule", rule, "wide.png", "Why?")
    assert code == 2 and "image rule" in err and "expected" in err and "Traceback" not in err


def test_a_transformer_encoder_refuses_the_rule(vlm):
    code, _, err = chat(vlm, "--image-rule", "whole", "wide.png", "Why?", model="tiny-internvl2")
    assert code == 2 and "convolutional encoder" in err and "Traceback" not in err


def test_an_evaluation_with_another_rule_has_its_own_folder_and_says_so(vlm, tmp_path):
    common = ("eval", "pope", "-m", "pretrained/tiny-convllava", "--mini", "--device", "cpu", "--limit", "2")
    code, _, err = vlm(*common, "--image-rule", "whole:40")
    assert code == 0, err
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    assert summary.parent.name == "whole-40"
    assert json.loads(summary.read_text())["variant"]["image_rule"] == "whole:40"
    code, _, err = vlm(*common)
    assert code == 0, err
    assert {s.parent.name for s in (tmp_path / "runs").rglob("summary.json")} == {"whole-40", "default"}


def test_a_server_decides_its_own_rule(vlm):
    code, _, err = vlm("chat", "--url", "http://127.0.0.1:9/v1", "--image-rule", "whole", "Why?")
    assert code == 2 and "the server decides it" in err


def test_data_check_counts_whole_images(vlm, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    records = [{"id": name, "image": name, "conversations": turns} for name in ("wide.png", "tall.png", "dot.png")]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ("data", "check", "set.jsonl", "--model", "pretrained/tiny-convllava", "--workers", "1")
    code, _, err = vlm(*words, "--image-rule", "whole:40", "--json", "check.json")
    assert code == 0, err
    found = json.loads((tmp_path / "check.json").read_text())
    (rows,) = found["rows"].values()
    tiles = [row[found["columns"].index("tiles")] for row in rows]
    assert tiles == [11 * 2, 1 * 5, 40]  # 700 x 100, 90 x 300, 1 x 4000 pixels
    code, _, err = vlm(*words, "--image-rule", "whole:zero")
    assert code == 2 and "whole:TOKENS" in err


def test_a_model_of_single_pictures_says_so_once_about_several(vlm):
    assert "trained on one picture" not in chat(vlm, "wide.png", "Why?")[2]
    err = chat(vlm, "wide.png", "tall.png", "Why?")[2]
    assert err.count("2 pictures, but the published models of the family convllava were trained on one") == 1
    assert "trained on one" not in chat(vlm, "wide.png", "tall.png", "Why?", model="tiny-internvl2")[2]


def test_the_warning_counts_the_history_and_videos(tmp_path, vlm):
    from vlm.core.sample.records import image, video
    from vlm.models import ChatSession

    session = ChatSession("pretrained/tiny-convllava", device="cpu")
    assert session.untrained() is None and session.untrained([tmp_path / "wide.png"]) is None
    assert "1 video," in session.untrained(videos=[video("film.mp4")])
    session.history.append({"role": "user", "content": [image(tmp_path / "wide.png")]})
    assert "2 pictures" in session.untrained([tmp_path / "tall.png"])
    session.reset()
    assert session.untrained([tmp_path / "tall.png"]) is None


def test_extract_swap_and_resize_on_the_command_line(vlm, tmp_path):
    model = "pretrained/tiny-internvl2"
    for part in ("encoder", "language"):
        code, out, err = vlm("weights", "extract", model, "--part", part, "-o", f"parts/{part}")
        assert code == 0 and part in out, err
    made = ("weights", "make", "tiny-internvl2", "-o", "pretrained/again", "--tokenizer", model)
    code, _, err = vlm(*made, "--base", model, "--language", "parts/language")
    assert code == 0 and "fresh from seed 0: nothing" in err
    assert chat(vlm, "wide.png", "Why?", model="again")[1] == chat(vlm, "wide.png", "Why?", model="tiny-internvl2")[1]
    code, _, err = vlm("weights", "extract", model, "--part", "head", "-o", "parts/head")
    assert code == 2 and "encoder" in err and not (tmp_path / "parts/head").exists()
    code, _, err = vlm(*made, "--base", "pretrained/none")
    assert code != 0 and "Traceback" not in err
