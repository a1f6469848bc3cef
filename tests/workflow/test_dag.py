"""The DAG: it resolves for each configuration, each rule is one `vlm` command, configuration and recipes agree."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlm.cli.main import VERBS
from vlm.train.recipe import load_recipe

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "workflows/config").glob("*.yaml") if p.stem != "schema")


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The workflow's files alone, with nothing made yet."""
    for name in ("Snakefile", "workflows", "profiles"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return tmp_path


def config(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflows/config/{name}.yaml").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_job_is_one_vlm_command(name: str, checkout: Path) -> None:
    done = snakemake(
        checkout, "--configfile", f"workflows/config/{name}.yaml", "-n", "--printshellcmds", "--quiet", "host"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (done.stdout + done.stderr).splitlines()
    shells = [line.split("Shell command: ")[-1].strip() for line in lines if "vlm " in line and " > " in line]
    jobs = len(config(name)["stages"]) + sum(
        len(v) for m in config(name)["evaluate"].values() for v in m["benchmarks"].values()
    )
    assert len(shells) >= jobs
    for shell in shells:
        command = shlex.split(shell.split(" > ")[0])
        assert command[0] == "vlm" and command[1] in VERBS
        assert not set(";|&") & set(shell.split(" > ")[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_of_the_configuration_are_those_of_the_recipes(name: str) -> None:
    values = config(name)
    for recipe_name, stage in values["stages"].items():
        recipe = load_recipe(recipe_name, run=values["run"])
        assert recipe.model.start == stage["start"].format(run=values["run"])
        needed = {Path(entry.file).parent for entry in recipe.data}
        assert needed == {Path(file).parent for file in stage["data"]}


def test_an_unknown_key_in_the_configuration_is_refused(checkout: Path) -> None:
    bad = checkout / "bad.yaml"
    bad.write_text(yaml.safe_dump({**config("quickstart"), "stagse": {}}))
    done = snakemake(checkout, "--configfile", str(bad), "-n")
    assert done.returncode != 0
    assert "stagse" in done.stdout + done.stderr
