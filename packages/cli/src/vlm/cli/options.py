"""Options that several verbs share: each group is a dataclass, and `grouped` makes its fields options of a command.

@app.command()
@grouped
def chat(words: Words, placement: PlacementOptions) -> None:   # takes --device, --dtype, ...
    session = ChatSession(path, **asdict(placement))
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from vlm.core.rows.write import ImportOptions

Replace = Annotated[bool, typer.Option(help="Give up results of other weights, settings or items in the same folder.")]
"""The option `--replace` of `vlm eval` and `vlm eval score`."""

MODEL_HELP = "Folder, released name, stage or run. Default: what `vlm use` chose, or the only model here."
"""Help of `--model`; `vlm.cli.find.find_model` does what it says."""

RULE_HELP = "Of a ConvLLaVA: whole images without padding (whole, whole:TOKENS or whole:WIDTHxHEIGHT at most), or pad."
"""Help of `--image-rule`."""

NATIVE = "Native backend"
SERVER = "Server (--backend openai)"
JUDGE = "Judge"
OWN = "Own file"


@dataclass(frozen=True)
class PlacementOptions:
    """Where weights, keys and values go, their precision, the image rule: arguments of `ChatSession`, `Checkpoint`."""

    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, …, or map: layers over all GPUs.", rich_help_panel=NATIVE)
    ] = "auto"
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: as stored.", rich_help_panel=NATIVE)
    ] = "float32"
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="8bit|4bit|int8|int4",
            help="Linear layers of the language model only. 8bit, 4bit: bitsandbytes (extra `quant`); int8, int4: on a "
            "CPU, with --dtype bfloat16.",
            rich_help_panel=NATIVE,
        ),
    ] = None
    offload: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|disk", help="Where layers of the language model wait for their turn.", rich_help_panel=NATIVE
        ),
    ] = None
    kv_dtype: Annotated[
        str,
        typer.Option(
            help="Of the keys and values kept: float32, bfloat16, float16, int8, fp8, or auto: --dtype.",
            rich_help_panel=NATIVE,
        ),
    ] = "auto"
    kv_offload: Annotated[
        bool,
        typer.Option("--kv-offload", help="Keep them in the CPU's memory, for long prompts.", rich_help_panel=NATIVE),
    ] = False
    image_rule: Annotated[
        str | None, typer.Option(metavar="RULE", help=f"{RULE_HELP} Default: the model's.", rich_help_panel=NATIVE)
    ] = None


@dataclass(frozen=True)
class ServerOptions:
    """An OpenAI-compatible server that answers instead of a checkpoint."""

    base_url: Annotated[str | None, typer.Option(help="Address of the server, up to /v1.", rich_help_panel=SERVER)] = (
        None
    )
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with its key. Default: VLM_API_KEY, if set.", rich_help_panel=SERVER),
    ] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=SERVER)] = 8
    rate: Annotated[float | None, typer.Option(help="Requests a minute at most.", rich_help_panel=SERVER)] = None
    newline: Annotated[
        str,
        typer.Option(
            help="After which images the server's template writes a newline, which is then not sent: front (before any "
            "text: our exports), each (published -hf templates), none. `vlm serve` needs no setting.",
            rich_help_panel=SERVER,
        ),
    ] = "front"
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", rich_help_panel=SERVER)] = 300.0


@dataclass(frozen=True)
class JudgeOptions:
    """A language model that grades or reads replies, behind an OpenAI-compatible endpoint."""

    judge_url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible endpoint, up to /v1, for benchmarks that a judge scores.", rich_help_panel=JUDGE
        ),
    ] = None
    judge_model: Annotated[
        str | None, typer.Option(help="The judge's model name at that endpoint.", rich_help_panel=JUDGE)
    ] = None
    judge_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with its key. Default: VLM_JUDGE_KEY, if set.", rich_help_panel=JUDGE),
    ] = None


@dataclass(frozen=True)
class BenchmarkFiles:
    """Where the files of a benchmark are."""

    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark's files. Default: below dataset/.")] = None
    mini: Annotated[
        bool, typer.Option(help="A generated miniature: of dataset/mini/, made when absent, or the one in --data.")
    ] = False


@dataclass(frozen=True)
class RowsOptions:
    """How the rows of a person's own file are read and scored."""

    scorer: Annotated[
        str | None,
        typer.Option(
            help="exact, choice, anls, relaxed, contains, number or judge. Default: choice with options, else exact.",
            rich_help_panel=OWN,
        ),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=COLUMN,...",
            help="What holds image, video, question, answer, options, id, group. Default: by the usual names.",
            rich_help_panel=OWN,
        ),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="The question of rows without one.", rich_help_panel=OWN)] = None
    suffix: Annotated[
        str | None, typer.Option(help="Text in a line of its own after each question.", rich_help_panel=OWN)
    ] = None
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder outside of the file's that rows may name. Repeatable.", rich_help_panel=OWN
        ),
    ] = None
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures that rows name by address.", rich_help_panel=OWN)
    ] = False

    @property
    def given(self) -> list[str]:
        """Return the options that are given, by their names."""
        return [f"--{key.replace('_', '-')}" for key, value in vars(self).items() if value not in (None, False)]


@dataclass(frozen=True)
class EntryChoice:
    """Entries of the catalogue: a group, what a recipe or a benchmark needs, and the user's own catalogue."""

    group: Annotated[
        str | None,
        typer.Option("--all", help="Every entry of a group: quickstart, v2pe, weights, benchmarks, everything, …"),
    ] = None
    recipe: Annotated[str | None, typer.Option(help="Start weights and data of a recipe.")] = None
    benchmark: Annotated[str | None, typer.Option(help="The data of a benchmark, or of `all`.")] = None
    catalogue: Annotated[Path | None, typer.Option(help="A catalogue of your own beside the shipped one (YAML).")] = (
        None
    )


@dataclass(frozen=True)
class RowOptions:
    """How rows of a file of one's own become records."""

    root: Annotated[
        Path | None, typer.Option(help="Folder that paths of pictures start from. Default: that of the file.")
    ] = None
    question: Annotated[
        str | None, typer.Option(help="What is asked where the columns have an answer only.", show_default=False)
    ] = None
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures that are given as addresses.")] = (
        False
    )
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of the root that records may name. Repeatable."),
    ] = None

    def rows(self, max_lost: float = 0.01, allow: Sequence[str] = ()) -> "ImportOptions":
        """Return them as `vlm.core.rows.write` takes them."""
        from vlm.core.home import resolve
        from vlm.core.rows.write import ImportOptions

        outside = tuple(resolve(folder) for folder in self.allow_outside or ())
        root = resolve(self.root) if self.root else None
        return ImportOptions(self.question, self.allow_urls, outside, root, tuple(allow), max_lost)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainOptions(RowOptions):
    """Which stage to train and how to treat what is there: the options that `vlm launch` passes on to `vlm train`."""

    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")] = (
        None
    )
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"With --data, instead of --recipe. {MODEL_HELP}")
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(help="Your data: FILE, FOLDER or OWNER/NAME of the hub, :SPLIT behind it. Repeatable."),
    ] = None
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Data that is held back: its loss is measured. Repeatable.")
    ] = None
    lora: Annotated[bool, typer.Option("--lora", help="With --data: train adapters, not the weights.")] = False
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; stages go to RUN/train/RECIPE. Default: runs/<first word>.")
    ] = None
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None
    published: Annotated[
        bool, typer.Option("--published", help="Do as the published scripts did wherever the recipe differs.")
    ] = False
    force: Annotated[bool, typer.Option(help="Start although the hardware is less than published.")] = False
    allow_change: Annotated[
        bool, typer.Option(help="Continue an unfinished run although its recipe, data or start changed.")
    ] = False
    quiet: Annotated[bool, typer.Option(help="No plan, no bar; a log still has its lines.")] = False

    def chosen(self) -> list[str]:
        """Return the options that choose a run, as they are typed."""
        once = {"--recipe": self.recipe, "--model": self.model, "--run": self.run}
        many = {"--data": self.data, "--eval-data": self.eval_data}
        rest = {"--set": self.set_, "--allow-outside": self.allow_outside}
        words = [word for name, value in once.items() if value is not None for word in (name, str(value))]
        words += [word for name, values in many.items() for value in values or () for word in (name, value)]
        own = {"--root": self.root, "--question": self.question}
        words += [word for name, value in own.items() if value is not None for word in (name, str(value))]
        words += [word for name, values in rest.items() for value in values or () for word in (name, str(value))]
        flags = {"--published": self.published, "--lora": self.lora, "--allow-urls": self.allow_urls}
        return words + [flag for flag, given in flags.items() if given]

    @property
    def overrides(self) -> tuple[str, ...]:
        """Return what the options change in the recipe, as `key=value`."""
        folders = json.dumps([str(folder) for folder in self.allow_outside or ()])
        return (*(self.set_ or ()), *([f"allow_outside={folders}"] if self.allow_outside else []))

    def words(self) -> list[str]:
        """Return all options, as they are typed."""
        flags = {"--force": self.force, "--allow-change": self.allow_change, "--quiet": self.quiet}
        return [*self.chosen(), *(flag for flag, given in flags.items() if given)]


@dataclass(frozen=True)
class LongSetOptions:
    """What every builder of long-context sets takes: the target, the model that counts, sizes and sources."""

    out: Annotated[str, typer.Option(help="Folder; a relative one lies below dataset/.")]
    model: Annotated[str, typer.Option(help="Checkpoint, or a preset with --tokenizer: its rules count the tokens.")]
    tokens: Annotated[list[str], typer.Option(help="Length: 4096, 16K, 1M or a range 16K-32K (K is 1024). Repeatable.")]
    train: Annotated[int, typer.Option(min=0, help="Training records of each task or length.")] = 100
    val: Annotated[int, typer.Option(min=0, help="Validation records of each task or length.")] = 20
    images: Annotated[list[Path] | None, typer.Option(help="Folder of source images. Repeatable.")] = None
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer; by default the model's own.")] = None
    max_tiles: Annotated[int | None, typer.Option(min=1, help="Tiles of an image at most; by default the model's.")] = (
        None
    )
    val_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Part of the sources that are for validation.")] = (
        0.25
    )
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return `command` with each parameter that is a group replaced by the options of the group, in their place."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {n: p.annotation for n, p in signature.parameters.items() if is_dataclass(p.annotation)}
    options: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if group := groups.get(name):
            hints = get_type_hints(group, include_extras=True)
            options += [_option(field.name, field.default, hints[field.name]) for field in fields(group)]
        else:
            options.append(_option(name, parameter.default, parameter.annotation))

    @wraps(command)
    def run(*args: Any, **values: Any) -> Any:
        values |= dict(zip((option.name for option in options), args, strict=False))
        for name, group in groups.items():
            given = {field.name for field in fields(group)} & values.keys()
            values[name] = group(**{key: values.pop(key) for key in given})
        return command(**values)

    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]  # typing has no such field
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    default = empty if default in (MISSING, empty) else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
