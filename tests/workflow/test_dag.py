"""The DAG: it resolves for each configuration, each job is one `vlm` command that parses, configuration and recipes
agree, and `vlm reproduce` adds it up."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from support.command_line import parse
from support.workflow_dag import HEAD, ROOT, SHELL, copy_workflow, printed_jobs
from vlm.cli.main import VERBS
from vlm.cli.show.dag import gpu_hours_of
from vlm.cli.workflow.dag import checkpoint_marker, downloads_of
from vlm.cli.workflow.estimate import estimate_dag
from vlm.cli.workflow.guards import evaluation, one_process
from vlm.cli.workflow.jobs import planned_jobs
from vlm.core.errors import UnknownName, VlmError
from vlm.core.fetch.catalogue import load_catalogue, weights_names
from vlm.train.recipe.recipe import load_recipe

CONFIGS = sorted(p.stem for p in (ROOT / "workflows/config").glob("*.yaml") if p.stem != "schema")


def snakemake(folder: Path, *words: str, profile: str = "profiles/local") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *words, "--profile", profile, "--nocolor"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def config(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflows/config/{name}.yaml").read_text())


def dry_run(folder: Path, name: str, *targets: str) -> str:
    file = f"workflows/config/{name}.yaml"
    done = snakemake(folder, *(targets or ["all"]), "--dry-run", "--printshellcmds", "--configfile", file)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


BLOCKED = """
import runpy, sys
for name in ("torch", "transformers", "httpx", "huggingface_hub"):
    sys.modules[name] = None  # an import of it fails
runpy.run_module("snakemake", run_name="__main__")
"""


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """What `snakemake --profile slurm -n all` says, and the seconds of work; torch and the network are out of reach."""
    folder = copy_workflow(tmp_path_factory.mktemp("paper") / "checkout")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-c", BLOCKED, "--profile", "slurm", "-n", "all", "--nocolor"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr, seconds


@pytest.mark.parametrize("name", CONFIGS)
def test_every_job_is_one_vlm_command_that_parses(name: str, checkout: Path, paper: tuple[str, float]) -> None:
    said = paper[0] if name == "paper" else dry_run(checkout, name)
    jobs = printed_jobs(said)
    shells = [shell[1].split(" > ")[0] for shell in SHELL.finditer(said)]
    assert sum(bool(job.words) for job in jobs) == len(jobs) - 1  # `all` runs nothing
    for shell in shells:
        assert not set(";|&") & set(shell)
        assert re.match(
            r"vlm |srun --kill-on-bad-exit=1 --nodes=\d+ --ntasks-per-node=\d+ vlm (train|eval) |None$", shell
        )
    for words in {tuple(job.words) for job in jobs if job.words}:
        assert words[0] in VERBS
        parse(list(words))


def test_a_command_that_would_not_parse_is_noticed() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["eval", "POPE", "--modle", "x"])


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_of_the_configuration_are_those_of_the_recipes(name: str) -> None:
    values = config(name)
    for recipe_name, stage in values["stages"].items():
        sets = tuple(f"{key}={str(value).format(run=values['run'])}" for key, value in stage.get("set", {}).items())
        file = stage.get("file", recipe_name)  # a YAML file, or the name of a shipped recipe
        file = str(ROOT / file) if file.endswith(".yaml") else file
        recipe = load_recipe(file, run=values["run"], overrides=sets)
        assert recipe.name == recipe_name
        assert recipe.model.start == stage["start"].format(run=values["run"])
        assert stage.get("gpus") == (recipe.hardware.gpus if recipe.hardware else None)
        markers = [entry for entry in stage["data"] if "/" in entry]
        if markers:  # files; names are the catalogue's to place
            folders = [str(Path(file).parent) for file in markers]
            assert all(any(entry.file.startswith(folder) for folder in folders) for entry in recipe.data)


def test_an_unknown_key_in_the_configuration_is_refused(checkout: Path) -> None:
    bad = checkout / "bad.yaml"
    bad.write_text(yaml.safe_dump({**config("quickstart"), "stagse": {}}))
    done = snakemake(checkout, "-n", "--configfile", str(bad))
    assert done.returncode != 0
    assert "stagse" in done.stdout + done.stderr


def test_the_bare_name_slurm_resolves_the_published_systems_without_torch_in_seconds(paper: tuple[str, float]) -> None:
    said, seconds = paper
    rules = Counter(HEAD.findall(said))
    assert rules["train_stage"] == len(config("paper")["stages"])
    assert rules["evaluate_shard"] > 500 and rules["report"] == rules["all"] == 1
    assert seconds < 10  # of work; the clock also counts who else is running


def test_a_job_of_many_gpus_asks_for_whole_nodes_and_tells_its_ranks_of_the_time_limit(
    paper: tuple[str, float],
) -> None:
    lines = paper[0].splitlines()
    at = next(i for i, line in enumerate(lines) if "vlm train --recipe v2pe-32k " in line)
    asked = next(line for line in reversed(lines[:at]) if line.startswith("    resources:"))
    for resource_ in ("nodes=4", "tasks_per_node=8", "gres=gpu:h100:8", "mpi=srun", "slurm_partition=gpu"):
        assert resource_ in asked
    assert "--signal=USR1@600" in asked and "--processes 32" in lines[at]


def weights_asked(said: str) -> dict[str, set[str]]:
    """Folder of weights -> the benchmarks that it is evaluated on with its variants, of what a dry run printed."""
    found: dict[str, set[str]] = {}
    for job in printed_jobs(said):
        if job.words[:1] == ["eval"]:
            stride = job.words[job.words.index("--stride") + 1]
            found.setdefault(job.words[job.words.index("--model") + 1], set()).add(f"{job.words[1]} {stride}")
    return found


def released_checkpoints() -> set[str]:
    """The models of the three papers that can be downloaded, by folder; not the parts that others are made from."""
    entries = [
        e
        for e in load_catalogue().values()
        if e.kind == "weights" and {"v2pe", "internvl-chat-v1-2", "convllava"} & {*e.groups}
    ]
    places = {place for entry in entries for place in weights_names(entry)}
    parts = ("InternViT", "Nous-Hermes", "vicuna", "CLIP", "ConvNeXt", "-pretrain-", "-tokenizer")
    return {place for place in places if not any(part in place for part in parts)}


def test_each_released_checkpoint_is_evaluated_beside_what_is_trained_at_the_published_strides(
    paper: tuple[str, float],
) -> None:
    asked, values = weights_asked(paper[0]), config("paper")
    released = released_checkpoints()
    assert {"pretrained/V2PE/V2PE-32K", "pretrained/V2PE/V2PE-256K", "pretrained/InternVL-Chat-V1-2"} < released
    assert {folder for folder in asked if folder.startswith("pretrained/")} == released
    run = f"{values['run']}/train"
    beside = {"V2PE/V2PE-32K": "v2pe-32k", "V2PE/V2PE-256K": "v2pe-256k", "InternVL2-2B": "internvl2-2b-baseline"}
    beside |= {"InternVL-Chat-V1-2": "internvl-chat-v1-2-sft", "ConvLLaVA-sft-768": "convllava-stage3"}
    beside |= {f"ConvLLaVA-sft-{side}": f"convllava-stage3-{side}" for side in (1024, 1536)}
    alone = "InternVL-Chat-V1-2-Plus"  # its training cannot be repeated: the data were not published
    assert {*beside, alone} == {folder.removeprefix("pretrained/") for folder in released}
    assert asked[f"pretrained/{alone}"] == asked["pretrained/InternVL-Chat-V1-2"]
    for folder, recipe in beside.items():
        assert asked[f"pretrained/{folder}"] == asked[f"{run}/{recipe}/model"]
    long = {f"Long-VQA-64k {stride}" for stride in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    assert {"POPE 64", "MileBench 64", *long} < asked["pretrained/V2PE/V2PE-32K"]
    assert {f"MM-NIAH-long-1m {2**n}" for n in range(9)} < asked["pretrained/V2PE/V2PE-256K"]


def test_a_benchmark_gets_the_gpus_of_the_published_scripts(paper: tuple[str, float]) -> None:
    lines = paper[0].splitlines()
    seen = {}
    for at, line in enumerate(lines):
        if found := re.search(r"vlm eval (\S+) --model pretrained/(\S+) .*--shard", line):
            asked = next(text for text in reversed(lines[:at]) if text.startswith("    resources:"))
            seen[found[1], found[2]] = asked, line
    for length, gpus in (("32", 1), ("40", 2), ("48", 2), ("56", 4), ("64", 4)):
        asked, line = seen[f"Long-VQA-{length}k", "V2PE/V2PE-32K"]
        assert f"gres=gpu:h100:{gpus}," in asked and f"mem_mb={gpus * 110000}," in asked
        assert ("--device map" in line) == (gpus > 1)
    asked, line = seen["POPE", "InternVL-Chat-V1-2"]
    assert "gres=gpu:h100:4," in asked and line.count("--device map") == 1 and "mpi=" not in asked
    asked, line = seen["MM-NIAH-long-1m", "V2PE/V2PE-256K"]
    assert all(word in asked for word in ("nodes=1", "tasks_per_node=8", "gres=gpu:h100:8", "mpi=srun"))
    assert "srun --kill-on-bad-exit=1 --nodes=1 --ntasks-per-node=8 vlm eval" in line
    assert "--processes 8" in line and "--device map" not in line
    gathers = [line for line in lines if "vlm eval MM-NIAH-long-1m" in line and "--shard" not in line]
    assert gathers and not any("--processes" in line or "srun" in line for line in gathers)


def test_what_was_released_and_what_is_trained_are_targets_of_their_own(checkout: Path) -> None:
    released = printed_jobs(snakemake(checkout, "-np", "released", profile="slurm").stdout)
    rules = Counter(job.rule for job in released)
    assert rules["report_system"] == 1 and not rules["train_stage"] and not rules["start_checkpoint"]
    (report,) = (job.words for job in released if job.words[:1] == ["report"])
    assert {word.rsplit("/", 1)[-1] for word in report[1:-2]} == {
        name for name, entry in config("paper")["evaluate"].items() if "model" in entry
    }
    downloads = {job.words[1] for job in released if job.words[:1] == ["download"]}
    assert {"V2PE", "InternVL2-2B", "ConvLLaVA-sft-768"} < downloads


def test_a_checkpoint_that_was_never_released_is_named_before_anything_runs(checkout: Path) -> None:
    values = config("paper")
    values["evaluate"]["V2PE-32K"]["model"] = "pretrained/V2PE/V2PE-64K"
    (checkout / "wrong.yaml").write_text(yaml.safe_dump(values))
    done = snakemake(checkout, "-n", "released", "--configfile", "wrong.yaml")
    said = done.stdout + done.stderr
    assert done.returncode and "V2PE/V2PE-64K" in said and "pretrained/V2PE/V2PE-32K" in said
    for folder in ("pretrained/V2PE", "pretrained/V2PE-32K"):
        with pytest.raises(UnknownName, match="V2PE/V2PE-32K"):
            checkpoint_marker(folder)
    assert checkpoint_marker("pretrained/ada/cats") == "pretrained/ada/cats/.vlm-manifest.json"
    assert downloads_of("pretrained/ada/cats") == "ada/cats"


@pytest.mark.parametrize(("processes", "per_node", "nodes", "tasks"), [(8, 4, 2, 4), (8, 8, 1, 8), (6, 4, 2, 3)])
def test_a_ring_goes_over_nodes_where_one_has_too_few_gpus(processes, per_node, nodes, tasks) -> None:
    site = {"gpus_per_node": str(per_node), "mem_mb_per_gpu": 10, "mem_mb": 1, "cpus_per_gpu": 2, "launcher": "srun"}
    site |= {"gpu_partition": "gpu", "cpu_partition": "cpu"}
    asked = {key: of(None) for key, of in evaluation(site, lambda _: processes, lambda _: processes).items()}
    assert asked == {
        "gres": f"gpu:{tasks}", "mem_mb": 10 * tasks, "cpus_per_task": 2, "slurm_partition": "gpu",
        "nodes": nodes, "tasks_per_node": tasks, "mpi": "srun",
    }  # fmt: skip
    asked = {key: of(None) for key, of in evaluation(site, lambda _: 2, lambda _: 1).items()}
    assert asked["gres"] == "gpu:2" and asked["cpus_per_task"] == 4 and asked["mpi"] is asked["nodes"] is None


def test_each_target_resolves_to_its_part_of_the_dag(checkout: Path) -> None:
    rules = set(HEAD.findall(dry_run(checkout, "debug", "weights", "data")))
    assert rules == {"weights", "data", "miniature", "tokenizer", "start_checkpoint"}
    targets = ["train", "evaluate", "v2pe", "internvl_chat_v1_2", "convllava", "released", "trained", "report"]
    rules = set(HEAD.findall(dry_run(checkout, "quickstart", *targets)))
    assert {*targets, "report_system", "train_stage", "evaluate_model"} <= rules


def test_the_jobs_that_snakemake_plans_in_this_process_are_those_that_it_prints(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = printed_jobs(dry_run(checkout, "debug"))
    monkeypatch.chdir(checkout)
    options = ["--profile", "profiles/local", "--configfile", "workflows/config/debug.yaml"]
    capfd.readouterr()
    planned = planned_jobs(["all", *options])
    assert sorted(planned) == sorted(printed) and len(planned) > 5
    assert capfd.readouterr().out == "", "standard output is for the result"
    with pytest.raises(VlmError, match=r"does not resolve:\n(.|\n)*no-such-target"):
        planned_jobs(["no-such-target", *options])


def test_lint_finds_nothing(checkout: Path) -> None:
    done = snakemake(checkout, "--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_benchmark_table_runs_that_benchmark_and_the_report_alone(checkout: Path) -> None:
    table = checkout / "benchmarks/mm-niah.yaml"
    table.parent.mkdir()
    shutil.copy(ROOT / "packages/eval/src/vlm/eval/benchmarks/mm-niah.yaml", table)
    finished(checkout)
    assert not printed_jobs(dry_run(checkout, "debug"))
    time.sleep(0.01)
    table.write_text(table.read_text() + "# one word more\n")
    rules = Counter(job.rule for job in printed_jobs(dry_run(checkout, "debug")))
    assert rules == {"evaluate_shard": 2, "evaluate_model": 1, "report": 1, "all": 1}


def finished(folder: Path) -> None:
    """Every output of the debug DAG as an empty file, oldest first."""
    said = dry_run(folder, "debug")
    outputs = [path for line in re.findall(r"^    output: (.*)$", said, re.MULTILINE) for path in line.split(", ")]
    for path in outputs:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
        time.sleep(0.002)


def test_the_dry_run_adds_up_bytes_licenses_and_steps_by_hand(paper: tuple[str, float]) -> None:
    jobs = [job for job in printed_jobs(paper[0]) if job.words[:1] != ["train"]]
    found = estimate_dag(jobs)
    rows = {row["name"]: row for row in found["downloads"]}
    assert rows["InternVL2-2B"]["licence"] == "MIT" and rows["InternVL2-2B"]["state"] == "absent"
    assert found["bytes"] == sum(row["bytes"] or 0 for row in rows.values()) > 1e12
    assert set(found["bytes_unknown"]) == {name for name, row in rows.items() if row["bytes"] is None}
    assert any("a judge scores it" in step for step in found["steps"])
    assert any(step.startswith("MMBench-test-en: send") for step in found["steps"])
    assert found["jobs"]["evaluate_shard"] > 500
    hand = [step.split(":")[0].split(",")[0] for step in found["steps"] if "--revision" in step or ", into " in step]
    assert set(hand) <= set(rows)  # a person is sent for nothing that no job waits for


def test_unknown_gpu_hours_are_not_shown_as_zero() -> None:
    found = {"gpu_hours": 0, "gpu_hours_unknown": ["a", "b"], "training": [{}, {}]}
    assert gpu_hours_of("train_stage", found) == "not estimated"
    assert gpu_hours_of("train_stage", {**found, "gpu_hours": 1200, "gpu_hours_unknown": ["a"]}).startswith(
        "1,200, and"
    )
    assert gpu_hours_of("train_stage", {**found, "gpu_hours": 1200, "gpu_hours_unknown": []}) == "1,200"
    assert gpu_hours_of("download", found) == ""


def test_an_empty_manifest_is_no_download(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = "dataset/easy-vqa/.vlm-manifest.json"
    fake = tmp_path / "bin/vlm"  # says nothing, fetches nothing, ends with 0
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nmkdir -p dataset/easy-vqa && : > {manifest} && echo tried >> tries\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    done = snakemake(checkout, manifest)
    assert done.returncode == 1 and "unexpected empty output" in done.stdout + done.stderr
    assert not (checkout / manifest).exists()
    assert (checkout / "tries").read_text().split() == ["tried"] * 3


@pytest.mark.slow
def test_reproduce_prints_the_plan_of_each_stage(checkout: Path) -> None:
    command = [sys.executable, "-m", "vlm.cli.main", "reproduce", "convllava", "--dry-run", "--json"]
    quickstart = ["--profile", "local", "--config", "workflows/config/quickstart.yaml"]
    done = subprocess.run([*command, *quickstart], cwd=checkout, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["jobs"]["train_stage"] == 3 and found["jobs"]["report_system"] == 1
    assert [stage["recipe"] for stage in found["training"]] == [f"quickstart-convllava-stage{i}" for i in (1, 2, 3)]
    assert all(stage["gpus"] == 1 for stage in found["training"])
    assert {"easy-vqa", "scikit-image"} <= {row["name"] for row in found["downloads"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["debug", "quickstart", "paper"])
def test_every_download_and_stage_runs_with_dry_run(name: str, checkout: Path, paper: tuple[str, float]) -> None:
    jobs = printed_jobs(paper[0] if name == "paper" else dry_run(checkout, name))
    words = [list(job.words) for job in jobs if job.words[:1] in (["download"], ["train"])]
    script = "import json, sys\nfrom typer.main import get_command\nfrom vlm.cli.main import app\n"
    script += "for words in json.load(sys.stdin): get_command(app).main([*words, '--dry-run'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=checkout, input=json.dumps(words), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_reproduce_names_the_profiles_when_one_is_unknown(checkout: Path) -> None:
    command = [sys.executable, "-m", "vlm.cli.main", "reproduce", "all", "--profile", "slrum", "--dry-run"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "local, slurm" in done.stderr


@pytest.mark.parametrize(("site", "gres"), [({"gpu": "h100"}, "gpu:h100:8"), ({"gpu": ""}, "gpu:8"), ({}, "gpu:8")])
def test_a_cluster_without_gpu_types_is_asked_for_a_number(site: dict[str, str], gres: str) -> None:
    found = one_process({"launcher": "srun", **site}, lambda wildcards: 8)
    assert found["gres"](None) == gres
    assert one_process({"launcher": "srun", **site}, lambda wildcards: 0)["gres"](None) is None
