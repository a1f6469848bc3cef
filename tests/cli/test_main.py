"""The `vlm` command: verbs exist, unknown names get the nearest known ones, errors carry the documented exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.cli.main import VERBS


def vlm(*words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **({"VLM_HOME": str(home)} if home else {})}
    return subprocess.run(
        [sys.executable, "-m", "vlm.cli.main", *words], capture_output=True, text=True, env=env, timeout=120, cwd=home
    )


@pytest.mark.parametrize("verb", VERBS)
def test_each_listed_verb_exists_and_shows_help(verb: str) -> None:
    done = vlm(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_unknown_verb_names_the_nearest() -> None:
    done = vlm("trian")
    assert done.returncode == 2
    assert "did you mean train" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("train", "--recipe", "convlava-stage3"), "convllava-stage3"),
        (("eval", "milebnch", "--mini"), "milebench"),
        (("download", "easyvqa"), "easy-vqa"),
        (("weights", "make", "quickstart-convlava", "-o", "x", "--tokenizer", "y"), "quickstart-convllava"),
    ],
)
def test_unknown_names_get_the_nearest_known_ones(words: tuple[str, ...], near: str, tmp_path: Path) -> None:
    done = vlm(*words, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert near in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_published_stage_says_what_it_lacks_with_the_lines_that_fetch_it(tmp_path: Path) -> None:
    done = vlm("train", "--recipe", "convllava-stage3", home=tmp_path)
    assert done.returncode == 1
    assert "vlm download ConvLLaVA-pretrain-768" in done.stderr
    assert "vlm data organize convllava-stage3" in done.stderr or "vlm download convllava-stage3" in done.stderr
    assert "8 GPUs of 80 GB" in done.stderr
    assert "7,436,945,600" in done.stderr
    assert not list(tmp_path.iterdir())


def test_milebench_as_written_says_which_models_and_data_are_possible(tmp_path: Path) -> None:
    done = vlm("eval", "mileBench", home=tmp_path)
    assert done.returncode in (2, 3)
    assert "vlm download" in done.stderr or "--model" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tells_the_attention_kernel_and_finds_a_shadowing_package(tmp_path: Path) -> None:
    done = vlm("doctor", "--json", home=tmp_path)
    facts = {row["what"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert "scaled_dot_product" in facts["attention kernel"]["found"] or "math" in facts["attention kernel"]["found"]
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "__init__.py").write_text("")
    from vlm.cli.commands import doctor

    code = "import sys; sys.path.insert(0, sys.argv[1]);import importlib.util as u; print(u.find_spec('vlm').origin)"
    stranger = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert str(tmp_path) in stranger.stdout  # the danger is real ...
    assert doctor.shadow()[1] is True  # ... and absent here


def test_ctrl_c_is_a_message_not_a_traceback(tmp_path: Path) -> None:
    code = "import vlm.cli.main as m\ndef stop(): raise KeyboardInterrupt\nm.app = stop\nm.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_recipes_and_lists_are_machine_readable(tmp_path: Path) -> None:
    assert json.loads(vlm("recipe", "show", "convllava-stage3", "--json").stdout)["optimizer"]["lr"] == 2e-5
    assert json.loads(vlm("list", "recipes", "--json", home=tmp_path).stdout)
    plan = json.loads(vlm("plan", "convllava-stage3", "--json", home=tmp_path).stdout)
    assert plan["parameters"]["encoder"] == 669_161_664
    assert sum(plan["trainable"].values()) == 29_368_320 + 6_738_415_616


@pytest.mark.parametrize(
    ("given", "code"), [("0", 2), ("-1", 2), ("", 2), ("two", 2), ("2,0", 2), ("2", 0), ("2,1", 0)]
)
def test_a_number_of_threads_that_cannot_be_is_said_at_once(given: str, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "VLM_HOME": str(tmp_path), "OMP_NUM_THREADS": given}
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli.main", "list", "recipes"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code
    assert ("fix: export OMP_NUM_THREADS=" in done.stderr) == (code == 2)
