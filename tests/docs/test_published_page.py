"""The generated page of the published READMEs: it has each weight, folder, stage, script and benchmark, and each
command of it parses, names what exists, and its dry run builds."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import parse
from support.workflow_dag import copy_workflow
from vlm.cli.find import find_entries
from vlm.cli.options import EntryChoice
from vlm.cli.published import evaluation, training
from vlm.core.fetch.catalogue import load_catalogue, weights_names
from vlm.eval.benchmark import load_benchmark
from vlm.eval.suites import benchmarks_of, suites
from vlm.train.recipe.recipe import load_recipe

GENERATE = Path(__file__).parents[2] / "docs" / "_generate"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The module that makes the page, as the hook of the site imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GENERATE))
        import published_pages

        yield published_pages


@pytest.fixture(scope="module")
def rows(made) -> list:
    return [row for system in made.SYSTEMS for row in made.rows(system)]


def words_of(rows, *kinds: str) -> list[list[str]]:
    return [shlex.split(row.command) for row in rows if row.kind in kinds]


def test_the_page_has_everything_that_the_catalogue_recipes_scripts_and_suites_have(made, rows) -> None:
    (page,) = made.pages().values()
    assert all(row.command in page for row in rows)
    groups = {system.group for system in made.SYSTEMS}
    entries = [e for e in load_catalogue().values() if e.kind == "weights" and groups & {*e.groups}]
    shown = {row.here for row in rows if row.kind == "weights"}
    assert shown == {folder for entry in entries for folder in weights_names(entry)} and len(shown) >= 17
    assert {"pretrained/V2PE/V2PE-32K", "pretrained/V2PE/V2PE-256K"} < shown
    stages = {row.here for row in rows if row.kind == "stage"}
    assert {r for r in training.SCRIPTS.values() if not r.startswith("internvl2_5")} <= stages
    named = {row.command.split()[2].lower() for row in rows if row.kind == "benchmark"}
    assert named == {bench.lower() for suite in suites().values() for bench in suite.benchmarks}
    scripts = " ".join(row.published for row in rows if row.kind == "script")
    for name in (*evaluation.FIXED, "evaluate.sh", "evaluate_longvqa.sh", "evaluate_mmniah_long.sh"):
        assert name in scripts
    folders = {row.published for row in rows if row.kind == "folder"}
    assert {"V2PE-Data", "internvl-chat-v1-2-sft", "convllava-stage1", "convllava-stage3"} <= folders


def test_each_command_parses_and_names_what_exists(rows) -> None:
    catalogue = load_catalogue()
    for words in words_of(rows, "weights", "folder", "stage", "script", "benchmark"):
        assert words[0] == "vlm"
        parse(words[1:])
        if words[1] == "download":
            assert find_entries(catalogue, words[2:], EntryChoice())
        elif words[1:3] == ["data", "organize"]:
            assert catalogue[words[3]].organize
        elif words[1] == "launch":
            assert load_recipe(words[3]).name == words[3]
        else:
            assert words[1] == "eval"
            for bench in benchmarks_of(words[2 : words.index("--model")]):
                load_benchmark(bench)


def test_each_target_is_one_of_the_workflow(rows) -> None:
    rules = (GENERATE.parents[1] / "workflows/rules/targets.smk").read_text()
    for *start, target in words_of(rows, "workflow"):
        assert start == ["snakemake", "--profile", "slurm"] and f"\nrule {target}:" in rules


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_dry_run_builds(rows, tmp_path) -> None:
    checkout = copy_workflow(tmp_path / "checkout")
    lines = {tuple(words) for words in words_of(rows, "workflow")}
    lines |= {("vlm", "train", "--recipe", words[3], "--dry-run") for words in words_of(rows, "stage")}
    lines |= {(*words, "--dry-run") for words in words_of(rows, "weights")}
    for line in sorted(lines):
        module = ["snakemake", *line[1:], "-n"] if line[0] == "snakemake" else ["vlm.cli.main", *line[1:]]
        done = subprocess.run([sys.executable, "-m", *module], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr[-2000:])
