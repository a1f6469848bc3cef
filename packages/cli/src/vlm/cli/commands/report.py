"""`vlm report`: training runs and evaluations beside the published numbers, as a page, tables and figures."""

from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.show.say import say
from vlm.core.extras import require

app = typer.Typer()


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders with training runs or evaluations.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A file (.html .md .csv .json .png .pdf .eval), or a folder for every format."
        ),
    ] = Path("report/index.html"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="html, md, csv, json, png, pdf, or eval: logs of inspect_ai; beside --out; repeatable.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples shown per benchmark.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the choice of samples.")] = 0,
) -> None:
    """Write one self-contained page: published tables with our column, haystacks, lengths, losses, samples.

    report.json is written beside a page. The same runs give the same bytes, times aside.

    \b
    vlm report runs/demo -o runs/demo/report/index.html
    vlm report runs/demo -o runs/demo/report            # page, Markdown, CSV, JSON, PNG and PDF figures
    vlm report runs/a runs/b -o both.md
    vlm report runs/a/eval/m/POPE/default -o pope.eval  # for `inspect view`
    """
    require("eval", "a report")
    from vlm.core.home import resolve
    from vlm.eval.report.write import write_report

    target = resolve(out)
    made, files = write_report(
        [resolve(folder) for folder in folders], target, formats=formats or (), samples_per_benchmark=samples, seed=seed
    )
    for warning in made.warnings:
        say(f"warning: {warning}", err=True)
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    say(f"{len(made.accuracy)} evaluations, {len(made.training)} training stages: {files[0]}{more}")
