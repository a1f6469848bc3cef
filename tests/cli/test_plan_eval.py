"""`vlm plan --eval`: the longest prompt of a benchmark on a device, what else fits, and what cannot be asked."""

import json
import sys

import pytest

from support.long_ring import LANGUAGE, make_model, make_sample
from vlm.cli.commands.plan_eval import PRESETS
from vlm.cli.main import main
from vlm.core.errors import ConfigError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.eval.backends.native import Checkpoint
from vlm.eval.backends.teacher_forcing import TeacherForcedBackend
from vlm.eval.benchmark import load_benchmark, tables
from vlm.eval.longest import longest_prompt
from vlm.models.specs import load_preset
from vlm.train.plan.evaluation import PromptSize, Share, estimate_evaluation, what_fits
from vlm.train.plan.machines import get_machine
from vlm.train.plan.trace import LiveBytes


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Return the exit code and what was said."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["vlm", "plan", *words])
        main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def plan(capsys, *words: str) -> dict:
    _, out, _ = run(capsys, *words, "--json")
    return json.loads(out)


def test_the_parts_are_those_of_the_published_model(capsys) -> None:
    found = plan(capsys, "--eval", "long-vqa-64k", "--model", "V2PE-32K")
    assert found["fits"] and found["benchmark"] == "Long-VQA-64k"
    assert found["gb"]["weights"] == pytest.approx(4.4115, abs=1e-3)  # 2,205,754,368 parameters
    assert found["gb"]["KV cache"] == pytest.approx(98_304 * (64_000 + 256) / 1e9)  # bytes a token, as published
    assert found["gb"]["features of the images"] == pytest.approx(250 * 256 * 2048 * 2 / 1e9)


def test_keys_and_values_are_counted_by_their_dtype(capsys) -> None:
    words = ["--eval", "long-vqa-64k", "--model", "V2PE-32K"]
    tokens, values = 64_000 + 256, 2 * 8 * 128
    plain, small = plan(capsys, *words), plan(capsys, *words, "--kv-dtype", "int8")
    kept, read_back = 24 * values * (1 + 4 / 128), values * 2  # with a scale a head; a layer in bfloat16
    assert small["gb"]["KV cache"] == pytest.approx(tokens * (kept + read_back) / 1e9)
    assert {part: gb for part, gb in small["gb"].items() if part != "KV cache"} == {
        part: gb for part, gb in plain["gb"].items() if part != "KV cache"
    }
    _, out, _ = run(capsys, *words, "--kv-dtype", "int8")
    assert out.splitlines()[-1].endswith("--dtype bfloat16 --kv-dtype int8")
    spec, prompt, machine = load_preset("internvl2-2b"), PromptSize(500_000, 1900, 256), get_machine("h100")
    fit, _ = what_fits(spec, prompt, Share(), machine)
    assert fit is not None and (fit.share.kv_dtype, fit.share.gpus) == ("int8", 1)


def test_what_does_not_fit_ends_with_what_does_and_that_line_fits(capsys) -> None:
    words = ["--eval", "mm-niah-long-1m", "--model", "V2PE-256K", "--machine", "a100-40"]
    code, out, err = run(capsys, *words)
    assert code == 7 and "does not fit" in out and "GB of 40 GB" in err
    option, number = err.split("fix: ")[1].split()[:2]
    assert option == "--processes"
    code, out, err = run(capsys, *words, option, number)
    assert code == 0 and not err and "--processes" in out.splitlines()[-1]
    code, _, err = run(capsys, "--eval", "POPE", "--model", "InternVL-Chat-V1-2")
    assert code == 7 and "--gpus 2" in err
    assert run(capsys, "--eval", "POPE", "--model", "InternVL-Chat-V1-2", "--gpus", "2")[0] == 0


def test_layers_over_gpus_and_a_ring_share_what_they_can() -> None:
    spec = load_preset("internvl2-2b")
    prompt = PromptSize(64_000, 250, 256)
    one, four = (estimate_evaluation(spec, prompt, Share(gpus=n)) for n in (1, 4))
    assert four.gb["KV cache"] < one.gb["KV cache"] / 3 and four.gb["weights"] < one.gb["weights"]
    forced = PromptSize(1_000_000, 3906, 1, teacher_forced=True)
    ring = [estimate_evaluation(spec, forced, Share(processes=n)) for n in (2, 4, 8)]
    assert all(fit.gb["KV cache"] == 0 and fit.gb["weights"] == one.gb["weights"] for fit in ring)
    shares = [fit.gb["activations"] + fit.gb["features of the images"] for fit in ring]
    assert shares[0] / shares[1] == pytest.approx(2, rel=0.03) and shares[1] / shares[2] == pytest.approx(2, rel=0.03)


def test_what_fits_is_the_smallest_spread() -> None:
    spec, machine = load_preset("internvl-chat-v1-2"), get_machine("a100-80")
    fit, larger = what_fits(spec, PromptSize(2304, 1, 10), Share(dtype="float32"), machine)
    assert fit is not None and (fit.share.dtype, fit.share.gpus) == ("bfloat16", 2)
    assert larger == ""  # 160 GB of float32 on no machine
    nothing, _ = what_fits(spec, PromptSize(200_000_000, 1, 10), Share(), machine)
    assert nothing is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eval", "popo", "--model", "V2PE-32K"], "pope"),
        (["--eval", "pope", "--model", "V2PE-64K"], "V2PE-"),
        (["--eval", "pope", "--model", "V2PE-32K", "--machine", "a100"], "a100-80"),
        (["--eval", "pope", "--model", "V2PE-32K", "--processes", "4"], "teacher-forced"),
        (["--eval", "pope", "--model", "V2PE-32K", "--gpus", "25"], "24 layers"),
        (["--eval", "mm-niah-long-1m", "--model", "V2PE-32K", "--gpus", "2", "--processes", "2"], "one of them"),
        (["--eval", "pope", "--model", "V2PE-32K", "--dtype", "int3"], "bfloat16"),
        (["--eval", "pope", "--model", "V2PE-32K", "--tokens", "100", "--images", "9"], "counts those of the images"),
        (["--eval", "digit-haystack-4x", "--model", "V2PE-32K"], "--tokens N"),
        (["--eval", "pope", "--nodes", "2"], "--nodes with --eval"),
        (["v2pe-32k", "--eval", "pope"], "one of them"),
        (["v2pe-32k", "--gpus", "2"], "--gpus without --eval"),
        (["v2pe-32k", "--kv-dtype", "int8"], "--kv-dtype without --eval"),
        (["--eval", "pope", "--model", "V2PE-32K", "--kv-dtype", "int3"], "int8"),
        (["--eval", "mm-niah-long-1m", "--model", "V2PE-32K", "--kv-dtype", "int8"], "no KV cache"),
        (["--eval", "pope"], "no --model"),
    ],
)
def test_what_cannot_be_planned_is_named(words: list[str], said: str, capsys) -> None:
    code, out, err = run(capsys, *words)
    assert code not in (0, 1, 7) and said in err and not out


def test_each_table_of_a_published_benchmark_says_how_long_it_is() -> None:
    spec = load_preset("internvl2-2b")
    lengths = {name: longest_prompt(table, spec) for name in tables() if (table := load_benchmark(name)).kind != "ours"}
    assert len(lengths) > 40
    assert all(found.tokens >= found.tiles * spec.tokens_per_tile and found.source for found in lengths.values())
    assert lengths["long-vqa-40k"].tokens == 40_000 and lengths["mm-niah-long-1m"].tokens == 1_200_000
    assert lengths["docvqa"].tiles == 19 and lengths["milebench"].tiles == 109 and lengths["mmmu"].tiles == 7 * 7
    with pytest.raises(ConfigError, match="--tokens N"):
        longest_prompt(load_benchmark("digit-haystack-4x"), spec)


def test_a_whole_image_may_be_all_the_cells_of_its_budget() -> None:
    spec = load_preset("convllava-768").with_image_rule("whole:576")
    found = longest_prompt(load_benchmark("docvqa"), spec)
    assert found.tiles == 576 * longest_prompt(load_benchmark("docvqa"), load_preset("convllava-768")).tiles
    assert found.tokens >= found.tiles * spec.tokens_per_tile


def test_each_released_model_has_a_shape() -> None:
    for name, preset in PRESETS.items():
        load_preset(preset)
        if name != "InternVL-Chat-V1-2-Plus":
            find_entry(name, load_catalogue())


def test_the_activations_are_those_that_a_real_pass_allocates(tmp_path) -> None:
    make_model(tmp_path / "model")
    sample = make_sample(tmp_path / "model", 4096, tmp_path)
    backend = TeacherForcedBackend(Checkpoint(tmp_path / "model"), stride=1.0)
    live = LiveBytes()
    live.ignore(list(backend.checkpoint.model.parameters()))
    with live:
        backend.predicted(sample)
    spec = load_preset("tiny-internvl2").with_language(**LANGUAGE)
    found = estimate_evaluation(spec, PromptSize(4096, 16, 1, teacher_forced=True), Share("float32"))
    predicted = found.gb["activations"] + found.gb["features of the images"]
    assert predicted == pytest.approx(live.peak / 1e9, rel=0.05)
