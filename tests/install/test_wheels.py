"""The five wheels in a clean environment outside of the checkout: the real commands, as a user types them.

It needs the package index, about 7 GB of disk and some minutes, most of them for torch.
"""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FIX = re.compile(r"^  fix: (.*)$", re.MULTILINE)
INSTALL = re.search(r"^(pip install dist/\*\.whl)( .*\[.*\]\S*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
assert INSTALL, "the README says in one line how to install the wheels"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What `make dist` builds."""
    out = tmp_path_factory.mktemp("wheels") / "dist"
    words = ["make", "-o", "setup", "dist", f"DIST={out}", f"BIN={Path(sys.executable).parent}"]
    subprocess.run(words, cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def clean(dist: Path, tmp_path_factory) -> Run:
    """A fresh environment with the wheels by the README's line, without its extras; runs lines in a new folder."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=True)
    here = folder / "here"
    here.mkdir()
    (here / "dist").symlink_to(dist)
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "VLM_"))}
    mine |= {"PATH": os.pathsep.join([str(folder / "env/bin"), "/usr/bin", "/bin"]), "HOME": str(folder)}

    def run(line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["bash", "-c", line], cwd=here, env=mine, capture_output=True, text=True, timeout=2400)
        assert done.returncode == code, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr, f"{line}\n{done.stderr[-3000:]}"
        return done

    wheels, extras = INSTALL.groups()
    assert extras
    run(f"{wheels} -c {ROOT / 'constraints.txt'} --no-cache-dir")
    Image.new("RGB", (64, 48), "red").save(here / "red.png")
    turns = [
        {"from": "human", "value": "What is in the picture?"},
        {"from": "gpt", "value": "A red square, or nothing."},
    ]
    lines = [json.dumps({"id": n, "conversations": turns}) for n in range(50)]
    (here / "words.jsonl").write_text("\n".join(lines) + "\n")
    return run


def fixed(run: Run, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line that lacks an extra, then the line that its error names, as it stands; return the error."""
    failed = run(line, code=7)
    (fix,) = FIX.findall(failed.stderr)
    assert "farlens-cli[" in fix
    run(fix)
    return failed


def test_five_wheels_are_built(dist: Path) -> None:
    names = sorted(path.name.split("-")[0] for path in dist.iterdir())
    assert names == [f"farlens_{name}" for name in ("cli", "core", "eval", "models", "train")]


def test_what_needs_no_extra_works_in_a_base_installation(clean: Run) -> None:
    said = clean("vlm --version").stdout
    assert said.startswith("vlm 0.1.0 (wheel)") and said.count("\nfarlens-") == 5 and "deepspeed" not in said
    assert "V2PE" in clean("vlm list weights").stdout
    assert "mm-niah" in clean("vlm list benchmarks").stdout.lower()
    assert clean("vlm list models").returncode == 0
    assert "v2pe-32k" in clean("vlm recipe check v2pe-32k").stdout
    told = clean("vlm doctor")
    assert "five packages, wheel" in told.stderr + told.stdout
    assert "nothing may go" in clean("vlm clean").stdout


def test_a_checkpoint_is_made_and_answers(clean: Run) -> None:
    clean("vlm data tokenizer words.jsonl --out pretrained/words --vocab-size 300")
    clean("vlm weights make tiny-internvl2 --out pretrained/tiny --tokenizer pretrained/words")
    clean('vlm chat -m tiny red.png "What is in the picture?" --max-new-tokens 4')


def test_an_evaluation_without_its_extra_names_the_line_that_makes_it_run(clean: Run) -> None:
    line = "vlm eval pope -m tiny --mini --limit 2 --max-new-tokens 2"
    assert "evaluating needs" in fixed(clean, line).stderr
    clean(line)


def test_the_workflow_is_placed_and_resolves_outside_of_the_checkout(clean: Run) -> None:
    fixed(clean, "vlm reproduce v2pe --dry-run")
    said = clean("vlm reproduce v2pe --dry-run")
    assert "put the workflow into" in said.stderr and "train_stage" in said.stdout
    assert "0 files placed" in clean("vlm workflow init").stdout
    assert "train_stage" in clean("snakemake -n --profile profiles/local").stdout


def test_training_to_a_report_runs_from_the_wheels(clean: Run) -> None:
    """The smallest workflow to its end: weights, data, stages, evaluations, report."""
    fixed(clean, "vlm train -r quickstart-v2pe-sft")
    clean("vlm reproduce all --profile local --config workflows/config/debug.yaml")
    assert "runs" in clean("vlm clean").stdout
    assert clean("ls runs/debug/report/index.html").returncode == 0


def test_the_line_of_the_readme_finds_everything_installed(clean: Run) -> None:
    clean(f"{INSTALL[0]} -c {ROOT / 'constraints.txt'}")
    assert "extras: tables, train, eval, serve, workflow\n" in clean("vlm --version").stdout
    assert "No broken requirements found" in clean("pip check").stdout
