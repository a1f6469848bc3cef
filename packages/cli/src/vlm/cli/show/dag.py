"""Tables of what a dry run of the DAG adds up to."""

from typing import TYPE_CHECKING

from rich.table import Column, Table

from vlm.cli.show.screen import Screen, bold
from vlm.core.progress import human_bytes

if TYPE_CHECKING:
    from vlm.cli.workflow.estimate import DagEstimate, StageCost


def show_dag(found: "DagEstimate") -> None:
    """Show jobs, training, downloads and the steps by hand on standard output."""
    console = Screen()
    table = Table("rule", "jobs", "GPU-hours", title="jobs", title_justify="left")
    for rule, count in found["jobs"].items():
        table.add_row(rule, f"{count:,}", gpu_hours_of(rule, found))
    table.add_row(bold("in all"), bold(f"{sum(found['jobs'].values()):,}"), "")
    console.print(table)
    if found["training"]:
        columns = (Column("stage", no_wrap=True), "GPUs", "machine", "GPU-hours")
        table = Table(*columns, title="training, by `vlm plan`", title_justify="left")
        for stage in found["training"]:
            table.add_row(stage["recipe"], str(stage["gpus"] or ""), stage["machine"], hours_of(stage))
        console.print(table)
        for why in sorted({stage["why"] for stage in found["training"] if stage["why"]}):
            stages = [stage["recipe"] for stage in found["training"] if stage["why"] == why]
            console.print(f"{why}: {', '.join(stages)}")
    if found["downloads"]:
        name, size = Column("download", no_wrap=True), Column("size", no_wrap=True)
        table = Table(name, size, Column("license", overflow="fold"), "here", title="downloads", title_justify="left")
        for row in found["downloads"]:
            terms = f"{row['licence']}. {row['terms']}".strip(". ") if row["terms"] else row["licence"]
            table.add_row(row["name"], human_bytes(row["bytes"]), terms, row["state"])
        console.print(table)
        unknown = f", and {len(found['bytes_unknown'])} of unknown size" if found["bytes_unknown"] else ""
        console.print(f"to download: {human_bytes(found['bytes'])}{unknown}")
    for step in found["steps"]:
        console.print(f"by hand: {step}", soft_wrap=True)


def hours_of(stage: "StageCost") -> str:
    """Return the GPU-hours of a stage, or of 1,000 steps while their number is unknown."""
    known, each = stage["gpu_hours"], stage["gpu_hours_per_1000_steps"]
    return f"{known:,.0f}" if known is not None else f"{each:,.0f} for 1,000 steps" if each else "?"


def gpu_hours_of(rule: str, found: "DagEstimate") -> str:
    """Return the GPU-hours of a rule: nothing where no GPU works, and no zero where they are unknown."""
    if rule.startswith("evaluate_"):
        return "not estimated"
    if rule != "train_stage":
        return ""
    unknown, stages = len(found["gpu_hours_unknown"]), len(found["training"])
    known = f"{found['gpu_hours']:,.0f}" if unknown < stages else "not estimated"
    return f"{known}, and {unknown} stages unknown" if 0 < unknown < stages else known
