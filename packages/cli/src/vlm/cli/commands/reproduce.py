"""`vlm reproduce`: a published system from its weights to the report through the DAG, or what that would take."""

import json
import shlex
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm.core.errors import ConfigError, VlmError

app = typer.Typer()


class System(StrEnum):
    """What can be reproduced: one system, or all."""

    v2pe = "v2pe"
    internvl_chat_v1_2 = "internvl_chat_v1_2"
    convllava = "convllava"
    all = "all"


@app.command()
def reproduce(
    system: Annotated[System, typer.Argument(help="Which system.")],
    profile: Annotated[str, typer.Option(help="Snakemake profile: where and how the jobs run.")] = "slurm",
    config: Annotated[
        Path | None, typer.Option(help="What to run. Default: the profile's, the published systems for `slurm`.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Add up jobs, bytes, GPU-hours, licences, steps by hand.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON.")] = False,
) -> None:
    """Reproduce a published system: weights, data, stages, benchmarks, report. The same command goes on after a stop.

    \b
    vlm reproduce v2pe --dry-run
    vlm reproduce convllava --profile slurm
    """
    command = snakemake(system.value, profile, config)
    if not dry_run:
        typer.echo(shlex.join(["snakemake", *command[3:]]), err=True)
        raise typer.Exit(subprocess.run(command).returncode)
    from vlm.cli.workflow.estimate import estimate, read_jobs

    done = subprocess.run([*command, "--dry-run", "--printshellcmds", "--nocolor"], capture_output=True, text=True)
    if done.returncode:
        raise VlmError(f"the DAG does not resolve:\n{done.stderr[-3000:].strip()}")
    found = estimate(read_jobs(done.stdout + done.stderr))
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found)


def snakemake(target: str, profile: str, config: Path | None) -> list[str]:
    """The command line. Raises ConfigError outside the repository or with an unknown profile."""
    if not Path("Snakefile").exists():
        raise ConfigError(f"no Snakefile in {Path.cwd()}", fix="run this from the root of the repository")
    known = sorted(path.parent.name for path in Path("profiles").glob("*/config.yaml"))
    if not (profile in known or Path(profile).is_dir()):
        raise ConfigError(f"no profile {profile!r}", expected=f"one of {', '.join(known)}, or a folder")
    folder = f"profiles/{profile}" if profile in known else profile
    command = [sys.executable, "-m", "snakemake", target, "--profile", folder]
    return [*command, "--configfile", str(config)] if config else command


def show(found: dict[str, Any]) -> None:
    """Tables on the terminal."""
    from rich.console import Console
    from rich.table import Column, Table

    from vlm.core.progress import human_bytes

    console = Console()
    table = Table("rule", "jobs", "GPU-hours", title="jobs", title_justify="left")
    for rule, count in found["jobs"].items():
        table.add_row(rule, f"{count:,}", gpu_hours_of(rule, found))
    table.add_row("[bold]in all", f"[bold]{sum(found['jobs'].values()):,}", "")
    console.print(table)
    if found["training"]:
        columns = (Column("stage", no_wrap=True), "GPUs", "machine", "GPU-hours")
        table = Table(*columns, title="training, by `vlm plan`", title_justify="left")
        for stage in found["training"]:
            known, each = stage["gpu_hours"], stage["gpu_hours_per_1000_steps"]
            hours = f"{known:,.0f}" if known is not None else f"{each:,.0f} for 1,000 steps" if each else "?"
            table.add_row(stage["recipe"], str(stage["gpus"] or ""), stage["machine"], hours)
        console.print(table)
        for why in sorted({stage["why"] for stage in found["training"] if stage["why"]}):
            stages = [stage["recipe"] for stage in found["training"] if stage["why"] == why]
            console.print(f"{why}: {', '.join(stages)}", highlight=False, markup=False)
    if found["downloads"]:
        name, size = Column("download", no_wrap=True), Column("size", no_wrap=True)
        table = Table(name, size, Column("licence", overflow="fold"), "here", title="downloads", title_justify="left")
        for row in found["downloads"]:
            terms = f"{row['licence']}. {row['terms']}".strip(". ") if row["terms"] else row["licence"]
            table.add_row(row["name"], human_bytes(row["bytes"]), terms, row["state"])
        console.print(table)
        unknown = f", and {len(found['bytes_unknown'])} of unknown size" if found["bytes_unknown"] else ""
        console.print(f"to download: {human_bytes(found['bytes'])}{unknown}")
    for step in found["steps"]:
        console.print(f"by hand: {step}", soft_wrap=True, highlight=False, markup=False)


def gpu_hours_of(rule: str, found: dict[str, Any]) -> str:
    """What stands beside a rule: nothing where no GPU works, and no zero where nobody knows."""
    if rule.startswith("evaluate_"):
        return "not estimated"
    if rule != "train_stage":
        return ""
    unknown, stages = len(found["gpu_hours_unknown"]), len(found["training"])
    known = f"{found['gpu_hours']:,.0f}" if unknown < stages else "not estimated"
    return f"{known}, and {unknown} stages unknown" if 0 < unknown < stages else known
