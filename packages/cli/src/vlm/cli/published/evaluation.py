"""Published evaluation lines as `vlm eval` commands.

>>> from vlm.cli.published.lines import read_lines
>>> translate(read_lines("GPUS=8 GPUS_PER_TASK=2 GROUP=40 sh scripts/evaluate_longvqa.sh CKPT")[0]).commands
['vlm eval long-vqa-40k --model CKPT --workers 4']
"""

import shlex

from vlm.cli.published.lines import ScriptLine, Translation
from vlm.core.errors import ConfigError, UnknownName

TASKS = {
    "vqa-chartqa-test": "ChartQA", "vqa-docvqa-val": "DocVQA", "vqa-docvqa-test": "DocVQA-test",
    "vqa-infovqa-val": "InfoVQA", "vqa-infovqa-test": "InfoVQA-test", "vqa-ai2d-test": "AI2D",
    "vqa-textvqa-val": "TextVQA", "vqa-vizwiz-val": "VizWiz", "vqa-vizwiz-test": "VizWiz-test",
    "vqa-gqa-testdev": "GQA", "scienceqa": "ScienceQA", "pope": "POPE", "mme": "MME", "mmmu-val": "MMMU",
    "mmmu-test": "MMMU-test", "mmbench-dev-en": "MMBench-dev-en", "mmbench-dev-cn": "MMBench-dev-cn",
    "mmbench-test-en": "MMBench-test-en", "mmbench-test-cn": "MMBench-test-cn", "ccbench-dev": "CCBench",
    "seed": "SEED-I", "mmvp": "MMVP", "mmvet": "MM-Vet", "mathvista-testmini": "MathVista", "mvbench": "MVBench",
    "refcoco": "refcoco-all", "refcoco-val": "RefCOCO-val", "refcoco-testA": "RefCOCO-testA",
    "refcoco-testB": "RefCOCO-testB", "refcoco+-val": "RefCOCO+-val", "refcoco+-testA": "RefCOCO+-testA",
    "refcoco+-testB": "RefCOCO+-testB", "refcocog-val": "RefCOCOg-val", "refcocog-test": "RefCOCOg-test",
}  # fmt: skip
"""Task words of evaluate.sh -> benchmarks or suites of ours."""

GROUPS = ("32", "40", "48", "56", "64")
LONG = "mm-niah-long-128k mm-niah-long-256k mm-niah-long-512k mm-niah-long-1m"

FIXED = {
    "evaluate_auto.sh": "v2pe-general",
    "evaluate_milebench.sh": "mileBench",
    "evaluate_mmniah.sh": "mm-niah",
    "refcoco.sh": "refcoco-all",
    "eval-lmms.sh": "convllava",
    "evaluation.sh": "mm-vet",
}
"""Scripts that always evaluate the same -> benchmarks or suites of ours."""

NOTES = {
    "evaluate_milebench.sh": "the published script does not pass its position flags on: V2PE is off there",
    "evaluate_mmniah_long.sh": "the evaluator called there knows no --ring_attn; here a ring holds each sample",
    "eval-lmms.sh": "through lmms-eval there; questions and scorers are ours here (docs/harnesses.md runs lmms-eval)",
    "evaluation.sh": "through VLMEvalKit there; MM-Vet needs a judge: --judge-url and --judge-model",
}

IDLE = {"dynamic", "batch-size", "num-workers", "temperature", "out-dir", "output_dir", "seed", "ring_attn"}
"""Flags that say what is so here anyway, or where results go."""


def translate(line: ScriptLine) -> Translation:
    """Return our commands for one line.

    Raises:
        UnknownName: A script or task that is not known; with the nearest ones. ConfigError: Numbers that do not fit.
    """
    found = Translation(line.text)
    ring = line.name == "evaluate_mmniah_long.sh"
    words = ["vlm", "eval", *_benchmarks(line).split(), "--model", _model(line)]
    words += _positions(line, found) + _settings(line, found)
    found.commands.append(_shared(line, words, ring))
    if note := NOTES.get(line.name):
        found.notes.append(note)
    if "STRIDE" in line.variables:
        found.notes.append(
            "STRIDE only names the published folder of results; here each stride has a folder of its own"
        )
    known = {"STRIDE", "GROUP", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "PARTITION", "QUOTA_TYPE"}
    found.without += [f"{name}={value}" for name, value in line.variables.items() if name not in known]
    if "QUOTA_TYPE" in line.variables:
        found.without.append("QUOTA_TYPE (an option of one site's srun)")
    return found


def _benchmarks(line: ScriptLine) -> str:
    """Return the benchmarks or suites that a line evaluates."""
    if line.name in FIXED:
        return FIXED[line.name]
    if line.name == "evaluate_mmniah_long.sh":
        return LONG
    if line.name == "evaluate_longvqa.sh":
        group = line.variables.get("GROUP", "32")
        if group not in GROUPS:
            raise ConfigError(f"GROUP={group}", expected=f"one of {', '.join(GROUPS)}")
        return f"long-vqa-{group}k"
    if line.name == "evaluate.sh":
        task = line.arguments[1] if len(line.arguments) > 1 else ""
        if task not in TASKS:
            raise UnknownName("task", task, TASKS, fix="`vlm list benchmarks` shows ours")
        return TASKS[task]
    scripts = (*FIXED, "evaluate.sh", "evaluate_longvqa.sh", "evaluate_mmniah_long.sh")
    raise UnknownName("published evaluation script", line.name, scripts)


def _model(line: ScriptLine) -> str:
    """Return the checkpoint as it was typed, `MODEL` where the line leaves it open."""
    named = line.arguments[0] if line.arguments else ""
    return "MODEL" if not named or named.startswith(("<", "$", "path")) else shlex.quote(named)


def _positions(line: ScriptLine, found: Translation) -> list[str]:
    version, stride = line.flags.get("rope_pos_id_version"), line.flags.get("rope_pos_id_stride")
    if version == "default":
        return ["--stride", "none"]
    if version == "v2pe_fix" and stride:
        return ["--stride", stride]
    if version is not None:
        found.notes.append(f"--rope_pos_id_version {version} draws strides or names none; --stride NUMBER sets one")
    elif stride:
        found.notes.append("a stride without --rope_pos_id_version has no effect in the published script")
    return []


def _settings(line: ScriptLine, found: Translation) -> list[str]:
    words: list[str] = []
    for name, value in line.flags.items():
        if name == "max-num":
            words += ["--tiles", value]
        elif name == "load-in-8bit":
            words += ["--quantize", "8bit"]
        elif name == "auto":
            words += ["--device", "map"]
        elif name == "num-beams" and value != "1":
            found.without.append(f"--num-beams {value} (decoding is greedy; the published numbers are, too)")
        elif name not in IDLE | {"num-beams"} and not name.startswith("rope_pos_id"):
            found.without.append(f"--{name} {value}".strip())
    return words


def _shared(line: ScriptLine, words: list[str], ring: bool) -> str:
    """Return the command as so many processes, by srun where a partition or several machines are asked for."""
    gpus, per_node, per_task = (line.number(n, d) for n, d in (("GPUS", 8), ("GPUS_PER_NODE", 8), ("GPUS_PER_TASK", 1)))
    if gpus % per_task or (gpus > per_node and (gpus % per_node or per_node % per_task)):
        raise ConfigError(
            f"GPUS={gpus} GPUS_PER_NODE={per_node} GPUS_PER_TASK={per_task}", expected="numbers that divide each other"
        )
    tasks = gpus // per_task
    if "auto" in line.flags:
        tasks = 1
    option = [("--processes" if ring else "--workers"), str(tasks)] if tasks > 1 else []
    start: list[str] = []
    if "PARTITION" in line.variables or gpus > per_node:
        partition = line.variables.get("PARTITION")
        start = ["srun", *([f"--partition={shlex.quote(partition)}"] if partition else []), f"--ntasks={tasks}"]
        start += [f"--ntasks-per-node={min(tasks, per_node // per_task)}", f"--gpus-per-task={per_task}"]
    return " ".join([*start, *words, *option])
