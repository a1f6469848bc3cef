"""`vlm eval`: evaluate a model on benchmarks; the same command resumes, and with everything done computes nothing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vlm.eval.benchmark import Benchmark

app = typer.Typer()


@app.command()
def evaluate(
    benchmarks: Annotated[
        list[str], typer.Argument(metavar="BENCH...", help="Names in any case; `vlm list benchmarks`.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Checkpoint folder, or a name below pretrained/. Default: the newest below runs/."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results go to OUT/NAME/BENCH/VARIANT/.")] = Path("runs/eval"),
    name: Annotated[str | None, typer.Option(help="Name of the model in results. Default: from its path.")] = None,
    stride: Annotated[
        str | None, typer.Option(help="V2PE stride of all images, or `none`; several with commas are a sweep.")
    ] = None,
    positions: Annotated[str, typer.Option(help="exact, or float32 as published.")] = "exact",
    tiles: Annotated[
        int | None, typer.Option(help="Tile budget per image. Default: the benchmark's for the family.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N items; reported as such.")] = None,
    shuffle_images: Annotated[bool, typer.Option(help="Blind control: images of other questions.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of --shuffle-images.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Items asked at once; does not change answers.")] = 8,
    max_length: Annotated[int | None, typer.Option(help="Refuse prompts of more tokens.")] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="This worker's share, 0/4 … 3/4. The last one to end writes the results.")
    ] = "0/1",
    retry_failed: Annotated[bool, typer.Option(help="Ask again where the outcome was oom or error.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark's files. Default: below dataset/.")] = None,
    mini: Annotated[bool, typer.Option(help="Generated miniature data in dataset/mini/, made when absent.")] = False,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, up to /v1, for benchmarks that a judge scores.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model name at that endpoint.")] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the judge's key, if it needs one.")
    ] = "VLM_JUDGE_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries as JSON.")] = False,
) -> None:
    """Evaluate a model on benchmarks. The same command resumes after a kill; results do not depend on interruptions.

    \b
    vlm eval pope --model runs/demo/train/sft/export --mini
    vlm eval mm-niah --model V2PE-32K --stride 1,16,64,256 --shard 0/8
    """
    from vlm.core.config import parse
    from vlm.core.home import home, resolve
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.runner import Options

    tables = [load_benchmark(bench, home()) for bench in benchmarks]
    if data and len(tables) > 1:
        raise ConfigError("--data with several benchmarks", expected="one benchmark, or no --data")
    folders = [_data_folder(table, data, mini) for table in tables]
    path = find_model(model)
    settings: dict[str, Any] = {
        "name": name or model_name(path),
        "positions": positions,
        "tiles": tiles,
        "shuffle_images": shuffle_images,
        "seed": seed,
        "limit": limit,
        "batch_size": batch_size,
        "shard": _shard(shard),
        "retry_failed": retry_failed,
    }
    sweep = _strides(stride)
    parse({**settings, "stride": None}, Options, where="vlm eval")  # faults before torch is imported

    judge = _judge(judge_url, judge_model, judge_key_env, resolve(out) / ".judge")

    from vlm.eval.backends import Checkpoint

    checkpoint = Checkpoint(path, device=device, dtype=dtype)
    own = checkpoint.processor.spec.strides
    summaries = []
    for table, folder in zip(tables, folders, strict=True):
        for value in sweep:
            options = parse({**settings, "stride": own if value == "model" else value}, Options, where="vlm eval")
            target = resolve(out) / options.name / table.name / options.folder
            summary = _run(checkpoint, table, folder, options, target, max_length, judge)
            if summary:
                summaries.append(summary)
                if not as_json:
                    _show(summary, target)
    if as_json:
        typer.echo(json.dumps(summaries, indent=1, sort_keys=True, ensure_ascii=False))


def _run(
    checkpoint: Any,
    table: "Benchmark",
    folder: Path,
    options: Any,
    target: Path,
    max_length: int | None,
    judge: Any = None,
) -> dict[str, Any] | None:
    """One benchmark with one stride, under a progress bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from vlm.eval.backends import NativeBackend
    from vlm.eval.forced import TeacherForcedBackend
    from vlm.eval.runner import run

    rule = table.image_override(checkpoint.processor.family)
    if options.tiles:
        rule["max_tiles"] = options.tiles
    settings = {"stride": options.stride, "positions": options.positions, "max_length": max_length}
    kind = TeacherForcedBackend if table.teacher_forced else NativeBackend
    backend = kind(checkpoint, image_rule=rule, **settings)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{table.title} · {options.folder}", total=None, score="")

        def progress(done: int, total: int, score: float | None) -> None:
            bar.update(task, completed=done, total=total, score="" if score is None else f"score {100 * score:.1f}")

        return run(table, backend, target, options, data=folder, progress=progress, judge=judge)


SHOWN = 8
"""Metrics printed after a benchmark, the headline first; the rest is in the files."""


def _show(summary: dict[str, Any], target: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['title']} · {summary['model']} · {target.name}", title_justify="left")
    for column in ("metric", "score", "95 % interval", "strict", "scored / total"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    strict = {m["name"]: m["value"] for m in summary["strict_metrics"]}
    for m in summary["metrics"][:SHOWN]:
        low_high = "" if m["low"] is None else f"{m['low']:.1f} – {m['high']:.1f}"
        table.add_row(
            m["name"], _number(m["value"]), low_high, _number(strict.get(m["name"])), f"{m['scored']} / {m['total']}"
        )
    console = Console()
    console.print(table)
    headline = summary["metrics"][0]
    if headline["value"] is None or summary.get("judge", {}).get("note"):
        console.print(f"{headline['name']}: {headline['note']}", soft_wrap=True)
    if (more := len(summary["metrics"]) - SHOWN) > 0:
        console.print(f"and {more} more metrics in {target / 'summary.json'}", soft_wrap=True)
    console.print("outcomes: " + ", ".join(f"{kind} {n}" for kind, n in summary["outcomes"].items()))
    if summary["data"]["mini"]:
        console.print("miniature data: not comparable with published numbers")
    console.print(f"results: {target / 'results.jsonl'}", soft_wrap=True)


def _judge(url: str | None, model: str | None, key_env: str, cache: Path) -> Any:
    """The judge that the options name; None without one."""
    import os

    from vlm.eval.judge import Judge

    if (url is None) != (model is None):
        raise ConfigError("half a judge", expected="both --judge-url and --judge-model, or neither")
    return Judge(url, model, cache=cache, key=os.environ.get(key_env)) if url and model else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _shard(value: str) -> tuple[int, int]:
    number, _, count = value.partition("/")
    if not number.isdigit() or not count.isdigit() or not int(number) < int(count):
        raise ConfigError(f"--shard {value}", expected="I/N with I from 0 to N - 1, for example 0/4")
    return int(number), int(count)


def _strides(value: str | None) -> list[float | str | None]:
    """`None` -> the checkpoint's own; "1,16,none" -> [1.0, 16.0, None]."""
    if value is None:
        return ["model"]
    try:
        return [None if part.strip().lower() == "none" else float(part) for part in value.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--stride {value}", expected="numbers or `none`, with commas, for example 1,16,64"
        ) from error


def _data_folder(table: "Benchmark", data: Path | None, mini: bool) -> Path:
    """Where the benchmark's files lie; makes the miniature when asked.

    Raises:
        DataError: no files; with the lines that fetch, organise or generate them.
    """
    from vlm.core.home import dataset, resolve

    if mini:
        from vlm.eval.mini import make_mini

        folder = dataset() / "mini" / table.name
        make_mini(table.name, folder)
        return folder
    folder = resolve(data) if data else dataset() / table.folder
    if not folder.is_dir():
        ways = [
            f"vlm download {table.name}",
            f"vlm data organize {table.name}   (archives that were fetched by hand)",
            f"vlm eval {table.name} --mini   (generated miniature, not comparable with published numbers)",
        ]
        raise DataError(
            f"no data for {table.name} in {folder}",
            expected="the published files there, or another folder by --data DIR",
            fix="\n   or: ".join(ways),
        )
    return folder


SKIPPED = {"checkpoints", "eval", "report"}
"""Folders below runs/ that hold no exported model."""


def find_model(model: str | None) -> Path:
    """The named checkpoint, or the newest exported one below runs/.

    Raises:
        ConfigError: nothing named and nothing trained; lists the --model lines that would work.
    """
    from vlm.core.home import home, pretrained, resolve, runs

    if model:
        return next((p for p in (resolve(model), pretrained() / model) if (p / "config.json").exists()), Path(model))
    exported = [p.parent for p in runs().rglob("config.json") if next(p.parent.glob("*.safetensors"), None)]
    exported = [p for p in exported if not SKIPPED & set(p.relative_to(runs()).parts)]
    if exported:
        newest = max(exported, key=lambda p: (p / "config.json").stat().st_mtime)
        typer.echo(f"--model {newest.relative_to(home())} (the newest below runs/)", err=True)
        return newest
    local = sorted(p.parent.relative_to(home()) for p in pretrained().rglob("config.json"))
    raise ConfigError(
        "no --model, and no exported model below runs/",
        expected="one of: " + ", ".join(f"--model {p}" for p in local) if local else "weights below pretrained/",
        fix="`vlm list weights` shows what can be downloaded; then `vlm download NAME` and `--model NAME`",
    )


def model_name(path: Path) -> str:
    """A short name from a checkpoint path: generic folder names are left out.

    >>> model_name(Path("/h/runs/demo/train/2-sft/export"))
    'demo-2-sft'
    """
    generic = {"runs", "train", "export", "exported", "model", "pretrained", "checkpoint", "final", "latest", "hf"}
    parts = [part for part in path.parts if part.lower() not in generic]
    return "-".join(parts[-2:]) if "runs" in path.parts else parts[-1]
