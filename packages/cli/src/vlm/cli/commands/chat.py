"""`vlm chat`: talk to a model about images and videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.core.errors import ConfigError, VlmError

if TYPE_CHECKING:
    from vlm.models import ChatSession

app = typer.Typer()

HELP = """/image FILE   add a picture to the next question
/video FILE   add a video
/history      show the conversation
/reset        forget it
/save FILE    write it as JSON
/quit         leave (also Ctrl-D)"""

MOVIES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif"}


@app.command()
def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...] [QUESTION]",
            help="Pictures or videos, then the question. Without a question: interactive.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint. Default: the newest below runs/.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    stride: Annotated[str | None, typer.Option(help="V2PE stride, or `none`. Default: the checkpoint's.")] = None,
    system: Annotated[str | None, typer.Option(help="Another system text.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Ask one question about files, or open a conversation.

    vlm chat cat.png "What is in the picture?"
    """
    from vlm.cli.commands.eval import find_model

    *names, question = words or [""]
    if words and Path(question).exists():
        names, question = [*names, question], ""
    files = [Path(n) for n in names]
    if lost := [str(f) for f in files if not f.exists()]:
        raise ConfigError(
            f"no such file: {', '.join(lost)}", expected="pictures or videos, then one question in quotes"
        )
    path = find_model(model)
    from rich.console import Console

    with Console(stderr=True).status(f"loading {path}"):
        from vlm.models import ChatSession

        strides = "model" if stride is None else None if stride == "none" else float(stride)
        session = ChatSession(path, device=device, dtype=dtype, strides=strides, system=system)
    settings: dict = {"max_new_tokens": max_new_tokens}
    if temperature > 0:
        settings |= {"do_sample": True, "temperature": temperature}
    if question:
        say(session, question, files, settings)
    else:
        converse(session, files, settings)


def say(session: "ChatSession", question: str, files: list[Path], settings: dict) -> None:
    """Print an answer as it is made."""
    videos = [f for f in files if f.suffix.lower() in MOVIES]
    pictures = [f for f in files if f not in videos]
    for piece in session.stream(question, images=pictures, videos=videos, **settings):
        typer.echo(piece, nl=False)
    typer.echo()


def converse(session: "ChatSession", files: list[Path], settings: dict) -> None:
    """Read questions and commands until the end of input. A mistake is told and the conversation goes on."""
    typer.echo(HELP, err=True)
    waiting = list(files)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command in ("/image", "/video"):
                if not Path(rest).exists():
                    raise ConfigError(f"no such file: {rest}")
                waiting.append(Path(rest))
            elif command == "/reset":
                session.reset()
            elif command == "/history":
                for message in session.history:
                    shown = "".join(p["text"] if p["type"] == "text" else f"[{p['path']}]" for p in message["content"])
                    typer.echo(f"{message['role']}: {shown}")
            elif command == "/save":
                from vlm.core.home import write_json

                write_json(Path(rest), session.history)
            elif command.startswith("/"):
                raise ConfigError(f"unknown command {command}", expected=HELP)
            elif line:
                say(session, line, waiting, settings)
                waiting = []
        except VlmError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
