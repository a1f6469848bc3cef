"""`vlm eval`: evaluate a model on benchmarks; rerun the same command to resume."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlm.cli.backends import check_backend, make_judge, native, ring, run_one, server
from vlm.cli.commands.eval_score import score
from vlm.cli.commands.eval_script import from_script
from vlm.cli.find import check_result_name, find_benchmark_files, find_model
from vlm.cli.options import (
    MODEL_HELP,
    NATIVE,
    SERVER,
    BenchmarkFiles,
    JudgeOptions,
    PlacementOptions,
    Replace,
    RowsOptions,
    ServerOptions,
    grouped,
)
from vlm.cli.own_file import find_table
from vlm.cli.show.evaluation import show_all, show_evaluation
from vlm.cli.show.positions import positions_line
from vlm.cli.show.say import say, say_json
from vlm.cli.strides import STRIDE_HELP, per_tile, read_strides
from vlm.cli.workers import over_gpus, work
from vlm.core.errors import ConfigError, FetchError, VlmError
from vlm.core.extras import require

if TYPE_CHECKING:
    from vlm.eval.run.summary import Summary


class EvaluateOrScore(TyperGroup):
    """Run `vlm eval score …` and `from-script …` as separate commands; any other arguments go to `evaluate`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the empty name of `evaluate` in front of its arguments."""
        return super().parse_args(ctx, args if args[:1] in (["score"], ["from-script"]) else ["", *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command and the rest of the line."""
        name, *rest = args
        return name, self.commands[name or "evaluate"], rest


app = typer.Typer(cls=EvaluateOrScore, add_completion=False)
app.command()(score)
app.command()(from_script)


@app.command()
@grouped
def evaluate(
    benchmarks: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCH...",
            help="Names in any case, suites or `all`; `vlm list benchmarks`. Or files of your own questions: my.jsonl.",
        ),
    ],
    files: BenchmarkFiles,
    rows: RowsOptions,
    placement: PlacementOptions,
    endpoint: ServerOptions,
    grader: JudgeOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP} With a server: the model's name there.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results go to OUT/NAME/BENCH/VARIANT/.")] = Path("runs/eval"),
    name: Annotated[str | None, typer.Option(help="Name of the model in results. Default: from its path.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N items; reported as such.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Token budget of every answer, for models that reason first. Default: the benchmark's."),
    ] = None,
    shuffle_images: Annotated[bool, typer.Option(help="Blind control: images of other questions.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of --shuffle-images.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Items asked at once; does not change answers.")] = 8,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="This worker's share, 0/4 … 3/4. The last one to finish writes the results."),
    ] = "0/1",
    retry_failed: Annotated[bool, typer.Option(help="Ask again where the outcome was oom or error.")] = False,
    replace: Replace = False,
    allow_missing: Annotated[
        int,
        typer.Option(min=0, help="Items whose picture or video may be missing, and bad rows: they become `error`."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries as JSON.")] = False,
    backend: Annotated[str, typer.Option(help="native: in this process; openai: a server.")] = "native",
    stride: Annotated[
        str | None,
        typer.Option(help=f"{STRIDE_HELP}; several with commas are a sweep.", rich_help_panel=NATIVE),
    ] = None,
    positions: Annotated[
        str, typer.Option(help="exact, float32 or plain-prefill (docs: evaluation).", rich_help_panel=NATIVE)
    ] = "exact",
    tiles: Annotated[
        int | None,
        typer.Option(help="Tile budget per image. Default: the benchmark's for the family.", rich_help_panel=NATIVE),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Refuse prompts of more tokens.", rich_help_panel=NATIVE)
    ] = None,
    attention: Annotated[
        str, typer.Option(help="auto, sdpa, varlen or flash_attention_2.", rich_help_panel=NATIVE)
    ] = "auto",
    processes: Annotated[
        int,
        typer.Option(min=1, help="Hold each sample of a teacher-forced benchmark in a ring.", rich_help_panel=NATIVE),
    ] = 1,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Share the items, and the GPUs here, among N processes; a model over several GPUs of each.",
            rich_help_panel=NATIVE,
        ),
    ] = 1,
    family: Annotated[
        str, typer.Option(help="Ask as this family is asked, e.g. internvl2.", rich_help_panel=SERVER)
    ] = "",
) -> None:
    """Evaluate a model on benchmarks. Rerun the same command after a kill; results do not depend on interruptions.

    `vlm eval score --help`: score predictions that were saved, by us or by others. `vlm eval from-script --help`:
    translate published lines.

    \b
    vlm eval pope --model runs/demo/train/sft/export --mini
    vlm eval v2pe-general --model V2PE-32K
    vlm eval my.csv --model V2PE-32K --scorer contains --columns question=Q,answer=A
    vlm eval mm-niah --model V2PE-32K --stride 1,16,64,256 --shard 0/8
    vlm eval pope --backend openai --base-url http://localhost:8000/v1 --model my-model
    """
    require("eval", "evaluating")
    from vlm.core.config import parse
    from vlm.core.home import home, resolve
    from vlm.eval.own import describe, edition_of
    from vlm.eval.run.runner import Options
    from vlm.eval.suites import benchmarks_of, names_suite

    check_result_name(name)
    everything, names = names_suite(benchmarks), benchmarks_of(benchmarks, home())
    if files.data and len(names) > 1:
        raise ConfigError("--data with several benchmarks", expected="one benchmark, or no --data")
    table_of = cache(lambda bench: find_table(bench, rows))
    if not everything:  # a named benchmark without files fails before anything is computed
        for bench in names:
            find_benchmark_files(table_of(bench), files)
    native_only = {"stride": stride, "positions": positions, "tiles": tiles, "max_length": max_length}
    native_only |= {**asdict(placement), "attention": attention, "processes": processes, "workers": workers}
    check_backend(backend, endpoint.base_url, native_only)
    path = find_model(model) if backend == "native" else None
    settings: dict[str, Any] = {
        "positions": positions,
        "tiles": tiles,
        "image_rule": placement.image_rule,
        "max_new_tokens": max_new_tokens,
        "shuffle_images": shuffle_images,
        "seed": seed,
        "limit": limit,
        "batch_size": batch_size if path else endpoint.concurrency,
        "shard": _shard(shard),
        "retry_failed": retry_failed,
        "replace": replace,
        "allow_missing": allow_missing,
    }
    strides = read_strides(stride)
    parse({**settings, "stride": None}, Options, where="vlm eval")  # faults before torch is imported
    worker = None
    if workers > 1:
        worker = work(workers, shard, processes)
        placement = over_gpus(placement)
        settings |= {"shard": (worker, workers)} if worker is not None else {"retry_failed": False}
    judge = make_judge(grader, resolve(out) / ".judge")
    if path:
        group = ring(processes, [table_of(bench) for bench in names])
        asked = native(path, placement, attention=attention, max_length=max_length, group=group)
    else:
        asked = server(endpoint, model, family=family)

    sweep = [per_tile(value, asked.spec.tokens_per_tile if asked.spec else None) for value in strides]
    first = not asked.follows and (worker is not None or workers == 1)
    for bench in names if first and not worker and not everything else ():
        if table_of(bench).file:
            say(describe(table_of(bench)), err=True)
    if asked.spec is not None and first:
        for value in sweep:
            say(positions_line(asked.spec, value), err=True)

    def evaluate_one(bench: str) -> Done:
        table = table_of(bench)
        found: Done = []
        folder = find_benchmark_files(table, files)
        for value in sweep:
            chosen = asked.stride if value == "model" else value
            own = {"name": name or asked.name, "stride": chosen, "edition": edition_of(table)}
            options = parse({**settings, **own}, Options, where="vlm eval")
            target = resolve(out) / options.name / table.name / options.folder
            if summary := run_one(asked, table, folder, options, target, judge):
                found.append((summary, options.folder))
                if worker is None and not (everything or as_json):
                    show_evaluation(summary, target)
        return found

    summaries, failed = _each(names, evaluate_one, continue_on_error=everything)
    if asked.follows or worker is not None:
        return  # the first process of the ring reports; so does the one that started the workers
    if as_json:
        say_json([s for s, _ in summaries], sort_keys=True)
    elif everything:
        show_all(summaries, failed)
    if failed:
        codes = {error.exit_code for error in failed.values()}
        raise typer.Exit(codes.pop() if len(codes) == 1 else 1)


Done = list[tuple["Summary", str]]
"""Summaries, each with the folder name of its variant."""


def _each(names: list[str], one: Callable[[str], Done], *, continue_on_error: bool) -> tuple[Done, dict[str, VlmError]]:
    """Return the results of `one` for each name, and the errors of those that failed.

    Without `continue_on_error` the first error is raised. A server that stopped answering ends the loop in any case.
    """
    summaries: Done = []
    failed: dict[str, VlmError] = {}
    for bench in names:
        try:
            summaries += one(bench)
        except VlmError as error:
            if not continue_on_error:
                raise
            failed[bench] = error
            if isinstance(error, FetchError):
                break
    return summaries, failed


def _shard(value: str) -> tuple[int, int]:
    number, _, count = value.partition("/")
    if not number.isdigit() or not count.isdigit() or not int(number) < int(count):
        raise ConfigError(f"--shard {value}", expected="I/N with I from 0 to N - 1, for example 0/4")
    return int(number), int(count)
