"""`vlm eval score`: score predictions that were saved, by this command, by the published scripts or by a harness."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCH", help="Name in any case; `vlm list benchmarks`.")],
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS...", help="Files (.jsonl .json .tsv .csv .xlsx .txt) or folders of them."),
    ],
    out: Annotated[Path, typer.Option(help="Results go to OUT/NAME/BENCH/imported/.")] = Path("runs/eval"),
    name: Annotated[str | None, typer.Option(help="Name in results. Default: imported- and the file's name.")] = None,
    family: Annotated[
        str, typer.Option(help="Score by this family's rule, e.g. convllava for boxes of ConvLLaVA.")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark's files. Default: below dataset/.")] = None,
    mini: Annotated[bool, typer.Option(help="The generated miniature in dataset/mini/.")] = False,
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint of a judge, up to /v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model name there.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with its key. Default: VLM_JUDGE_KEY, if set.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score saved predictions alone: no model is loaded. The format is told by the keys of the records.

    Known: results.jsonl of `vlm eval`, results of the InternVL, V2PE, LLaVA, MileBench, MM-NIAH, Long-VQA, SEED, MME,
    RefCOCO and MVBench scripts, tables of VLMEvalKit and MMBench, samples of lmms-eval, an object from id to reply, and
    records with `id` and `prediction`.

    \b
    vlm eval score pope answers.jsonl
    vlm eval score chartqa chartqa_test_human.json chartqa_test_augmented.json
    vlm eval score milebench CKPT/eval_milebench
    """
    from vlm.cli.commands.eval_model import check_family, data_folder, make_judge
    from vlm.cli.show.evaluation import show
    from vlm.core.home import home, resolve
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.saved.score import score_predictions

    check_family(family)
    table = load_benchmark(benchmark, home())
    folder = data_folder(table, data, mini)
    paths = [resolve(path) for path in predictions]
    judge = make_judge(judge_url, judge_model, judge_key_env, resolve(out) / ".judge")
    label = name or f"imported-{paths[0].stem}"
    target = resolve(out) / label / table.name / "imported"
    summary = score_predictions(table.for_family(family), paths, target, data=folder, name=label, judge=judge)
    if as_json:
        typer.echo(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False))
        return
    show(summary, target)
    _show_import(summary["imported"])


def _show_import(imported: dict[str, Any]) -> None:
    """What the predictions were recognized as, and each kind of problem with its number and an example."""
    from rich.console import Console
    from rich.table import Table

    from vlm.eval.saved.score import PROBLEMS

    console = Console()
    console.print(f"imported: {imported['predictions']} predictions, recognised as: {imported['format']}", markup=False)
    console.print(f"joined to the items by: {imported['joined']}", markup=False)
    if not imported["problems"]:
        return
    table = Table(title="what was wrong with them", title_justify="left")
    for column in ("kind", "number", "what becomes of it", "for example"):
        table.add_column(column)
    for kind, found in imported["problems"].items():
        table.add_row(kind, str(found["n"]), PROBLEMS[kind], found["examples"][0].replace("[", "\\["))
    console.print(table)
