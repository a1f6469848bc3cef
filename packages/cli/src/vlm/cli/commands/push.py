"""`vlm push`: share a model on the hub, with a model card."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.find import find_model
from vlm.cli.show.say import say, say_json
from vlm.core.errors import ConfigError
from vlm.core.home import home, locked, lookup
from vlm.core.progress import byte_bar, human_bytes

app = typer.Typer()

ADAPTERS = "adapter_config.json"


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="Folder, released name, stage or run.")],
    repo: Annotated[str, typer.Argument(help="Repository: NAME, or NAMESPACE/NAME. It is made if it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody; by default a new one is private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it is missing. Default: the main one.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="internvl, llava, hf or vlm: convert first. Default: as it is.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="With --to: what the layout may lose, as in `vlm weights convert`; repeat it."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what the branch holds besides this model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and bytes, and send nothing.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the model card, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Upload a model to the hub, in one commit, with a model card that is made from what this machine knows of it.

    The card says how the model was trained and how that differs from the published recipe, on what, what became of the
    samples, how it scored, with which positions it is used, which license its base has and how it is opened.

    Every tensor is read first: a model with NaN, infinity or missing tensors is refused, and so is a folder with files
    that are not the model's. After an interruption, rerun the same command: what has arrived is not sent again. The
    token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT chooses the hub.

    `vlm download REPO` fetches it again, equal to the bit.

    Example: vlm push quickstart-convllava-stage3 ada/cat-reader
    """
    from vlm.cli.share.card import write_card
    from vlm.cli.share.model_files import CARD, LEGAL, check_weights, model_files
    from vlm.core.fetch.push import check_name
    from vlm.core.fetch.push import push as upload

    check_name(repo)
    if allow and to is None:
        raise ConfigError("--allow without --to", expected="both", fix="name the layout with --to, or leave it out")
    folder = lookup(model) if (lookup(model) / ADAPTERS).is_file() else find_model(model)
    if card:
        say(write_card(folder, repo, to=to), end="")
        return
    with _converted(folder, to, allow or (), bar=not as_json) as whole:
        files = model_files(whole)
        if to is not None:
            files |= {p.name: p for p in sorted(folder.iterdir()) if p.is_file() and LEGAL.fullmatch(p.name)}
        with byte_bar(f"checking {model}", enabled=not as_json) as report:
            check_weights(whole, report)
        text = write_card(folder, repo, to=to, lost=whole / CARD if to else None).encode()
        sizes = {name: path.stat().st_size for name, path in files.items()} | {CARD: len(text)}
        facts: dict[str, object] = {"repo": repo, "revision": revision, "files": sizes, "bytes": sum(sizes.values())}
        if dry_run:
            _show_files(sizes, repo, public, facts, as_json)
            return
        done = upload(
            {**files, CARD: text},
            repo,
            message=f"{folder.parent.name if folder.name == 'model' else folder.name}, by vlm push",
            revision=revision,
            private=not public,
            replace=replace,
            say=lambda line: say(line, err=True),
        )
    if as_json:
        say_json(facts | {"commit": done.commit, "new": done.new})
    else:
        say(f"{repo}: {'commit' if done.new else 'holds these files already: commit'} {done.commit}")
        say(f"to fetch it: vlm download {repo}")


@contextmanager
def _converted(folder: Path, to: str | None, allow: Collection[str], *, bar: bool) -> Iterator[Path]:
    """Yield the folder of the model in the layout `to`: a copy that is removed afterwards, or the folder itself."""
    from vlm.models.checkpoint.convert import convert

    if to is None:
        yield folder
        return
    work = home() / ".vlm-push"
    with locked(work, f"vlm push --to {to}"):
        copy = work / "model"
        try:
            shutil.rmtree(copy, ignore_errors=True)  # of a killed command
            with byte_bar(f"{folder.name} -> {to}", enabled=bar) as report:
                yield convert(folder, to, copy, allow=allow, report=report)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _show_files(sizes: dict[str, int], repo: str, public: bool, facts: dict[str, object], as_json: bool) -> None:
    """Print what would be sent."""
    if as_json:
        say_json(facts)
        return
    for name, size in sorted(sizes.items()):
        say(f"{human_bytes(size):>10}  {name}")
    kind = "public" if public else "private"
    say(f"{len(sizes)} files, {human_bytes(sum(sizes.values()))} to {repo}, {kind} if it is new")
