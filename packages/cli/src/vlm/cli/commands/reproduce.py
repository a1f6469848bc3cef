"""`vlm reproduce`: a published system from its weights to the report through the DAG, or what that would take."""

import os
import shlex
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.show.say import say, say_json
from vlm.core.errors import ConfigError, HardwareError, VlmError
from vlm.core.extras import require
from vlm.core.text import printable

app = typer.Typer()


class SystemName(StrEnum):
    """What can be reproduced: one system, or all."""

    v2pe = "v2pe"
    internvl_chat_v1_2 = "internvl_chat_v1_2"
    convllava = "convllava"
    all = "all"


@app.command()
def reproduce(
    system: Annotated[SystemName, typer.Argument(help="Which system.")],
    profile: Annotated[str, typer.Option(help="Snakemake profile: where and how the jobs run.")] = "slurm",
    config: Annotated[
        Path | None, typer.Option(help="What to run. Default: the profile's, the published systems for `slurm`.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Add up jobs, bytes, GPU-hours, licenses, steps by hand.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON.")] = False,
) -> None:
    r"""Reproduce a published system: weights, data, stages, benchmarks, report. Rerun to continue after a stop.

    The workflow runs in the working directory; where no Snakefile is, it is put there as by `vlm workflow init`.

    \b
    vlm reproduce v2pe --dry-run
    vlm reproduce convllava --profile slurm
    """
    require("workflow", "the workflow")
    options = snakemake_options(system.value, profile, config)
    if not dry_run:
        refuse_without_slurm(Path(options[options.index("--profile") + 1]))
        options += ["--logger", "vlm"]
        say(shlex.join(["snakemake", *options]), err=True)
        # the jobs are `vlm` lines: of this installation, also where its environment is not activated
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        command = [sys.executable, "-m", "snakemake", *options]
        raise typer.Exit(subprocess.run(command, env={**os.environ, "PATH": path}).returncode)
    from vlm.cli.show.dag import show_dag
    from vlm.cli.workflow.estimate import estimate_dag
    from vlm.cli.workflow.jobs import planned_jobs

    found = estimate_dag(planned_jobs(options))
    if as_json:
        say_json(found)
    else:
        show_dag(found)


def refuse_without_slurm(profile: Path) -> None:
    """Raise HardwareError where the profile submits to Slurm and none answers on this machine."""
    file = profile / "config.yaml"
    if not (file.is_file() and "executor: slurm" in file.read_text(encoding="utf-8")):
        return
    from vlm.cli.workflow.guards import slurm

    try:
        slurm("squeue", "--me", "--noheader")
    except VlmError as error:
        raise HardwareError(
            f"no Slurm answers on this machine, and the profile {printable(profile.name)} submits to it",
            fix="run it on a login node of a cluster, or add --dry-run; --profile local runs miniatures here",
        ) from error


def snakemake_options(target: str, profile: str, config: Path | None) -> list[str]:
    """Return the options of Snakemake, with the files of the workflow in the working directory.

    Raises:
        ConfigError: An unknown profile or configuration; nothing was placed.
    """
    from vlm.cli.workflow.place import place_workflow, shipped_files

    here = Path("Snakefile").exists()
    shipped = [] if here else [Path(name) for name in shipped_files()]
    known = {
        path.parent.name for path in [*shipped, *Path("profiles").glob("*/config.yaml")] if path.parts[0] == "profiles"
    }
    if not (profile in known or Path(profile).is_dir()):
        raise ConfigError(f"no profile {profile!r}", expected=f"one of {', '.join(sorted(known))}, or a folder")
    if config and not (config.is_file() or config.absolute() in map(Path.absolute, shipped)):
        raise ConfigError(f"no such file: {config}", expected="a configuration, such as workflows/config/debug.yaml")
    if not here:
        made = place_workflow(Path()).made
        say(f"put the workflow into {Path.cwd()}: Snakefile, workflows/, profiles/ ({len(made)} files)", err=True)
    folder = f"profiles/{profile}" if profile in known else profile
    return [target, "--profile", folder, *(["--configfile", str(config)] if config else [])]
