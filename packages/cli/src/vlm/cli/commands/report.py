"""`vlm report`: one self-contained page from training runs and evaluations."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders with training runs or evaluations.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; report.json is written beside it.")] = Path(
        "report/index.html"
    ),
    samples: Annotated[int, typer.Option(min=0, help="Samples shown per benchmark.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the choice of samples.")] = 0,
    markdown: Annotated[bool, typer.Option(help="Also write report.md.")] = False,
    csv: Annotated[bool, typer.Option(help="Also write accuracy.csv.")] = False,
) -> None:
    """Write one self-contained page: losses, accuracy, published numbers, blind control, haystacks, samples.

    \b
    vlm report runs/demo -o runs/demo/report/index.html
    """
    from vlm.core.home import resolve
    from vlm.eval.report.page import write_report

    paths = [resolve(folder) for folder in folders]
    target = resolve(out)
    tables = write_report(paths, target, samples_per_benchmark=samples, seed=seed, markdown=markdown, table=csv)
    typer.echo(f"{len(tables['accuracy'])} evaluations, {len(tables['training'])} training stages: {target}")
