"""`vlm eval score`: score predictions that were saved, by this command, by the published scripts or by a harness."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.options import BenchmarkFiles, JudgeOptions, Replace, RowsOptions, grouped
from vlm.cli.show.say import say_json
from vlm.core.extras import require

if TYPE_CHECKING:
    from vlm.eval.run.summary import ImportFacts


@grouped
def score(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCH", help="Name in any case, or a file of your own questions.")
    ],
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS...", help="Files (.jsonl .json .tsv .csv .xlsx .txt) or folders of them."),
    ],
    files: BenchmarkFiles,
    rows: RowsOptions,
    grader: JudgeOptions,
    out: Annotated[Path, typer.Option(help="Results go to OUT/NAME/BENCH/imported/.")] = Path("runs/eval"),
    name: Annotated[str | None, typer.Option(help="Name in results. Default: imported- and the file's name.")] = None,
    family: Annotated[
        str, typer.Option(help="Score by this family's rule, e.g. convllava for boxes of ConvLLaVA.")
    ] = "",
    replace: Replace = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score saved predictions; no model is loaded. The keys of the records tell the format.

    Known: results.jsonl of `vlm eval`, replies of `vlm infer`, results of the InternVL, V2PE, LLaVA, MileBench,
    MM-NIAH, Long-VQA, SEED, MME, RefCOCO and MVBench scripts, tables of VLMEvalKit and MMBench, samples of
    lmms-eval, an object from id to reply, and records with `id` and `prediction`.

    \b
    vlm eval score pope answers.jsonl
    vlm eval score chartqa chartqa_test_human.json chartqa_test_augmented.json
    vlm eval score milebench CKPT/eval_milebench
    """
    require("eval", "scoring")
    from vlm.cli.backends import check_family, make_judge
    from vlm.cli.find import check_result_name, find_benchmark_files
    from vlm.cli.own_file import find_table
    from vlm.cli.show.evaluation import show_evaluation
    from vlm.core.home import resolve
    from vlm.core.paths import as_name
    from vlm.eval.own import edition_of
    from vlm.eval.saved.score import score_predictions

    check_result_name(name)
    check_family(family)
    table = find_table(benchmark, rows)
    folder = find_benchmark_files(table, files)
    paths = [resolve(path) for path in predictions]
    judge = make_judge(grader, resolve(out) / ".judge")
    label = name or as_name(f"imported-{paths[0].stem}")
    edition = edition_of(table)
    target = resolve(out) / label / table.name / (f"imported-file-{edition}" if edition else "imported")
    summary = score_predictions(
        table.for_family(family), paths, target, data=folder, name=label, judge=judge, replace=replace, edition=edition
    )
    if as_json:
        say_json(summary, sort_keys=True)
        return
    show_evaluation(summary, target)
    _show_import(summary["imported"])


def _show_import(imported: "ImportFacts") -> None:
    """Print the format that was recognized, and each kind of problem with its number and an example."""
    from rich.table import Table

    from vlm.cli.show.screen import Screen
    from vlm.eval.saved.score import PROBLEMS

    console = Screen()
    console.print(f"imported: {imported['predictions']} predictions, recognized as: {imported['format']}")
    console.print(f"joined to the items by: {imported['joined']}")
    if not imported["problems"]:
        return
    table = Table(title="problems", title_justify="left")
    for column in ("kind", "number", "what becomes of it", "for example"):
        table.add_column(column)
    for kind, found in imported["problems"].items():
        table.add_row(kind, str(found["n"]), PROBLEMS[kind], found["examples"][0])
    console.print(table)
