"""Published training lines and scripts as `vlm launch` commands.

>>> from vlm.cli.published.lines import read_lines
>>> translate(read_lines("GPUS=8 sh scripts/stage_1.sh")[0]).commands
['vlm launch --recipe convllava-stage1 --nodes 1 --gpus-per-node 8']
"""

import json
import shlex
from pathlib import Path

from vlm.cli.published.lines import ScriptLine, Translation
from vlm.core.errors import ConfigError, UnknownName
from vlm.train.recipe.recipe import load_recipe
from vlm.train.verify.shell import read_script
from vlm.train.verify.verify import VerifyReport, lint, nearest, verify

SCRIPTS = {
    "baseline.sh": "internvl2-2b-baseline",
    "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh": "v2pe-32k",
    "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh": "v2pe-256k",
    "internvl_chat_v1_2_hermes2_yi34b_448_res_finetune.sh": "internvl-chat-v1-2-sft",
    "internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full.sh": "internvl-chat-v1-2-finetune",
    "internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_lora.sh": "internvl-chat-v1-2-finetune-lora",
    "stage_1.sh": "convllava-stage1",
    "stage_2.sh": "convllava-stage2",
    "stage_3.sh": "convllava-stage3",
    "internvl2_5_1b_dynamic_res_2nd_finetune_full.sh": "internvl2_5-1b-finetune",
    "internvl2_5_1b_dynamic_res_2nd_finetune_lora.sh": "internvl2_5-1b-finetune-lora",
    "internvl2_5_2b_dynamic_res_2nd_finetune_full.sh": "internvl2_5-2b-finetune",
    "internvl2_5_2b_dynamic_res_2nd_finetune_lora.sh": "internvl2_5-2b-finetune-lora",
    "internvl2_5_8b_dynamic_res_2nd_finetune_full.sh": "internvl2_5-8b-finetune",
    "internvl2_5_8b_dynamic_res_2nd_finetune_lora.sh": "internvl2_5-8b-finetune-lora",
}
"""Published scripts -> recipes; a script that is here to be read may be any other."""


def translate(line: ScriptLine) -> Translation:
    """Return our command for one line: the recipe, and `--set` for what the script says otherwise.

    Raises:
        UnknownName: A script that is neither here nor known. ConfigError: A script near no recipe, or that is none.
    """
    found = Translation(line.text)
    path = Path(line.script)
    if path.is_file():
        recipe, options = _from_file(path, found)
    elif line.name in SCRIPTS:
        recipe, options = SCRIPTS[line.name], []
        found.notes.append(
            "the script is not here: the recipe is the published one; its file would be compared key by key"
        )
    else:
        raise UnknownName("published training script", line.name, SCRIPTS, fix="run it where the script lies")
    found.commands.append(" ".join(["vlm", "launch", "--recipe", recipe, *options, *_machines(line, recipe)]))
    known = {"GPUS", "GPUS_PER_NODE", "PARTITION", "QUOTA_TYPE", "MASTER_PORT"}
    found.without += [f"{name}={value}" for name, value in line.variables.items() if name not in known - {"QUOTA_TYPE"}]
    found.without += [f"--{name} {value}".strip() for name, value in line.flags.items()] + line.arguments
    return found


def _from_file(path: Path, found: Translation) -> tuple[str, list[str]]:
    """Compare a script with the recipe it is known by, else the nearest one; return the recipe and its options."""
    script = read_script(path)
    recipe = SCRIPTS.get(path.name) or nearest(path)
    if recipe is None:
        report = VerifyReport(None, str(path))
        lint(report, script)
        raise ConfigError(
            f"{path}: near no shipped recipe",
            expected="a launch script of one of the systems",
            fix="`vlm list recipes`",
        )
    report, options = verify(recipe, path), []
    for finding in report.contradictions:
        if finding.key == "model.start":
            found.notes.append(f"the script starts from {finding.theirs}; --set model.start=PATH names another")
        else:
            options += ["--set", shlex.quote(f"{finding.key}={json.dumps(finding.theirs)}")]
    if any(d.set for d in load_recipe(recipe).differences) and report.noted:
        options.append("--published")
    for noted in report.noted:
        found.notes.append(f"{noted.key}: the script {noted.theirs}, ours {noted.ours}: {noted.noted}")
    found.without += report.unknown
    found.without += [f"{text} (a variable that reaches nothing in the script)" for text in report.unforwarded]
    return recipe, options


def _machines(line: ScriptLine, recipe: str) -> list[str]:
    hardware = load_recipe(recipe).hardware
    gpus = line.number("GPUS", hardware.gpus if hardware else 1)
    per_node = min(gpus, line.number("GPUS_PER_NODE", 8))
    if gpus % per_node:
        raise ConfigError(f"GPUS={gpus} GPUS_PER_NODE={per_node}", expected="whole machines")
    partition = line.variables.get("PARTITION")
    asked = ["--launcher", "srun", "--partition", shlex.quote(partition)] if partition else []
    return ["--nodes", str(gpus // per_node), "--gpus-per-node", str(per_node), *asked]
