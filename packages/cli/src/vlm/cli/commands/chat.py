"""`vlm chat`: talk to a model about images and videos."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.find import find_model
from vlm.cli.inputs import CLIP, PICTURES, VIDEOS, is_glob, is_url, media_files, read_clip
from vlm.cli.options import MODEL_HELP, PlacementOptions, grouped
from vlm.cli.show.positions import positions_line
from vlm.cli.show.say import say
from vlm.cli.strides import STRIDE_HELP, read_stride
from vlm.core.errors import ConfigError, VlmError
from vlm.core.extras import uncollected
from vlm.core.paths import exists
from vlm.core.text import printable

if TYPE_CHECKING:
    from vlm.cli.remote import RemoteSession
    from vlm.core.sample.records import Medium, VideoPart
    from vlm.models import ChatSession

app = typer.Typer()

HELP = """/image FILE...  add pictures to the next question (of a GIF the first frame); folders and globs too
/video FILE [10-25]
                add a video, an animated GIF, or a folder of frames; only these seconds (or mm:ss) of it
/history        show the conversation
/reset          forget it, and what was added
/save FILE      write it as JSON
/help           these lines
/quit           leave (also Ctrl-D); Ctrl-C stops an answer"""


@app.command()
@grouped
def chat(
    placement: PlacementOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...] [QUESTION]",
            help="Pictures or videos (files, folders, globs, URLs), then the question in quotes. Without: interactive.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy; above: tokens are drawn.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this mass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw. Default: 0.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam search; the answer then comes at once.")] = 1,
    stride: Annotated[str | None, typer.Option(help=f"{STRIDE_HELP}. Default: as the checkpoint was trained.")] = None,
    system: Annotated[str | None, typer.Option(help="Another system text.")] = None,
    combine: Annotated[
        bool, typer.Option("--combine/--separate", help="Several pictures in one placeholder, or one for each.")
    ] = False,
    max_tiles: Annotated[
        int | None, typer.Option(help="Tiles per picture; of whole images tokens. Default: the checkpoint's.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames taken from a video.")] = 8,
    url: Annotated[
        str | None,
        typer.Option(help="Ask an OpenAI-compatible server, up to /v1; --model is then a name in its list."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="With --url: environment variable with its key. Default: VLM_API_KEY, if set.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="START-END", help="Part of the video: seconds or mm:ss, 10-25 or 1:10-1:25.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch files that are named by address.")] = False,
) -> None:
    """Ask one question about files, or open a conversation.

    \b
    vlm chat -m InternVL2-2B cat.png "What is in the picture?"
    vlm chat -m InternVL2-2B scans/ "Which page has a table?"
    vlm chat -m InternVL2-2B film.mp4 --clip 1:10-1:25 "What happens?"
    """
    files, question = split_words(words or [], allow_urls=allow_urls)
    images, videos = media_of(files, clip)
    drawing: dict[str, Any] = {"top_p": top_p, "seed": seed}
    if temperature == 0 and (idle := [f"--{k.replace('_', '-')}" for k, v in drawing.items() if v is not None]):
        raise ConfigError(f"{' and '.join(idle)} without --temperature", expected="a temperature above 0")
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams}
    if temperature > 0:
        drawn = {k: v for k, v in drawing.items() if v is not None}
        settings |= {"do_sample": True, "temperature": temperature, "seed": 0, **drawn}
    session: ChatSession | RemoteSession
    positions: str | None = None
    if url is None:
        local = session = load_session(
            find_model(model),
            strides=read_stride(stride),
            system=system,
            combine=combine,
            max_tiles=max_tiles,
            frames=frames,
            **asdict(placement),
        )
        positions = positions_line(local.processor.spec, local.strides)
        if api_key_env is not None:
            raise ConfigError("--api-key-env without --url", fix="leave it out, or name the server")
    else:
        own = {"strides": read_stride(stride)} if stride is not None else {}
        own |= {"max_tiles": max_tiles} if max_tiles is not None else {}
        unused = {
            "--beams": beams > 1,
            "--combine": combine,
            "a place for weights or an image rule": placement != PlacementOptions(),
        }
        session = ask_server(url, api_key_env, model, unused, system=system, frames=frames, own=own)
        settings = {"max_tokens": max_new_tokens, "temperature": temperature}
        settings |= {"seed": 0, **{k: v for k, v in drawing.items() if v is not None}} if temperature > 0 else {}
    note_pictures(images)
    if question is not None:
        note_untrained(session, images, videos)
        print_answer(session, question, images, videos, settings, said_first=positions)
    else:
        if positions:
            say(positions, err=True)
        ChatShell(session, settings, images, videos).run()


def split_words(words: list[str], *, allow_urls: bool = False) -> tuple[list[Path], str | None]:
    """Split the words of the command line into files and the question (None when there is none).

    A last word that is no file is the question, unless it looks like the name of one, a glob or a URL.

    Raises:
        ConfigError: an empty question, a file that does not exist, or a URL that is not allowed.
        FetchError: a URL that brings nothing.
    """
    names, question = list(words), None
    if words and not _is_file(words[-1]):
        *names, question = words
    if question is not None and not question.strip():
        raise ConfigError("the question is empty", expected="some text in quotes, or no question to talk")
    return media_files(names, allow_urls=allow_urls), question


def _is_file(word: str) -> bool:
    named = Path(word).suffix in VIDEOS | PICTURES
    return bool(word) and (exists(word) or named or is_url(word) or is_glob(word))


def media_of(files: list[Path], clip: str | None) -> "tuple[list[Path], list[VideoPart]]":
    """Return the pictures and the videos among files; the video with the part of it that `--clip` names.

    Raises:
        ConfigError: `--clip` is no range, or there is not one video.
    """
    from vlm.core.sample.records import video

    span = None if clip is None else read_clip(clip)
    images = [f for f in files if f.suffix.lower() not in VIDEOS]
    videos = [f for f in files if f.suffix.lower() in VIDEOS]
    if span is not None and len(videos) != 1:
        raise ConfigError(f"--clip with {len(videos)} videos", expected="one video")
    return images, [video(path, span) for path in videos]


def ask_server(
    url: str, api_key_env: str | None, model: str | None, idle: dict[str, bool], **settings: Any
) -> "RemoteSession":
    """Return a conversation with a server. `idle`: options that say nothing to a server -> whether they were given.

    Raises:
        ConfigError: such an option; an address or a model that is none. FetchError: no answer.
    """
    from vlm.cli.backends import key_of
    from vlm.cli.remote import RemoteSession

    if given := [name for name, is_given in idle.items() if is_given]:
        raise ConfigError(f"--url with {' and '.join(given)}", fix="leave it out: the server decides it")
    return RemoteSession(url, key_of(api_key_env, "VLM_API_KEY"), model, **settings)


def load_session(path: Path, **settings: Any) -> "ChatSession":
    """Load a session, with progress on standard error while torch is imported and the weights are read."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from vlm.cli.show.screen import Screen

    console = Screen(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"loading {printable(path)}", total=None)
        with uncollected():
            from vlm.models import ChatSession

        return ChatSession(path, progress=lambda done, total: bar.update(task, completed=done, total=total), **settings)


def note_pictures(paths: list[Path]) -> None:
    """Say in a line each what a viewer shows otherwise than the model sees it: turned, transparent, float."""
    from vlm.core.sample.measure import header
    from vlm.core.text import shown

    for path in paths:
        for _, what in header(str(path)).notes:
            say(f"note: {shown(path)}{what}", fg="yellow", err=True)


def note_untrained(
    session: "ChatSession | RemoteSession", images: list[Path], videos: "list[VideoPart]", said: str | None = None
) -> str | None:
    """Say that a model was not trained on several pictures or a video, unless it was said; return what was said."""
    from vlm.models import ChatSession

    warning = session.untrained(images, videos) if isinstance(session, ChatSession) else None
    if warning and said is None:
        say(f"note: {warning}", fg="yellow", err=True)
    return said or warning


def print_answer(
    session: "ChatSession | RemoteSession",
    question: str,
    images: list[Path],
    videos: "list[VideoPart]",
    settings: dict[str, Any],
    *,
    said_first: str | None = None,
) -> None:
    """Print an answer as it is made; before it, on standard error, what is to be said first."""
    for piece in session.stream(question, images=images, videos=videos, **settings):
        if said_first:
            say(said_first, err=True)
            said_first = None
        say(piece, end="")
    say()


class ChatShell:
    """The interactive conversation. A mistake prints an error, and the conversation continues."""

    def __init__(
        self,
        session: "ChatSession | RemoteSession",
        settings: dict[str, Any],
        images: list[Path],
        videos: "list[VideoPart]",
    ):
        self.session, self.settings = session, settings
        self.images, self.videos = list(images), list(videos)
        self.warned: str | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self.add_images,
            "/video": self.add_video,
            "/history": self.show_history,
            "/reset": self.reset,
            "/save": self.save,
            "/help": lambda rest: say(HELP, err=True),
        }

    def run(self) -> None:
        """Read questions and commands until `/quit` or the end of input."""
        from vlm.core.home import runs

        lines = line_editing(runs() / ".chat_history")
        say(HELP, err=True)
        try:
            while (line := self.read()) != "/quit":
                self.answer(line)
        finally:
            if lines:
                lines()

    def read(self) -> str:
        """Read the next line; "/quit" at the end of input. Ctrl-C drops a line that is being typed."""
        while True:
            try:
                return input("> ").strip()
            except EOFError:
                say()
                return "/quit"
            except KeyboardInterrupt:
                say()

    def answer(self, line: str) -> None:
        """Run a command or ask a question."""
        command, _, rest = line.partition(" ")
        try:
            if command.startswith("/"):
                if command not in self.commands:
                    raise ConfigError(f"unknown command {command}", expected=HELP)
                self.commands[command](rest.strip())
            elif line:
                self.warned = note_untrained(self.session, self.images, self.videos, self.warned)
                print_answer(self.session, line, self.images, self.videos, self.settings)
                self.images, self.videos = [], []
        except VlmError as error:
            say(f"error: {error}", fg="red", err=True)
        except KeyboardInterrupt:
            say("\n(stopped; this turn is not in the conversation)", fg="yellow", err=True)

    def add_images(self, rest: str) -> None:
        """Add pictures to the next question."""
        from vlm.core.sample.media import load_image

        paths = media_files([str(path) for path in file_names(rest, "/image FILE...")])
        for path in paths:  # a broken file fails now, not at the question
            load_image(path)
        note_pictures(paths)
        self.images += paths

    def add_video(self, rest: str) -> None:
        """Add a video to the next question."""
        from vlm.core.sample.media import load_video
        from vlm.core.sample.records import video

        *names, last = file_names(rest, "/video FILE [10-25]")
        span = read_clip(str(last)) if names and CLIP.fullmatch(str(last)) else None
        paths = names if span else [*names, last]
        for path in paths:
            load_video(path, self.session.frames, span)
        self.videos += [video(path, span) for path in paths]

    def show_history(self, _: str) -> None:
        """Print the conversation."""
        for message in self.session.history:
            shown = (part["text"] if part["type"] == "text" else file_label(part) for part in message["content"])
            say(f"{message['role']}: {''.join(shown)}")

    def reset(self, _: str) -> None:
        """Forget the conversation and the added files."""
        self.session.reset()
        self.images, self.videos = [], []

    def save(self, rest: str) -> None:
        """Write the conversation as JSON."""
        from vlm.core.home import write_json

        (path,) = file_names(rest, "/save FILE")[:1]
        try:
            write_json(path, self.session.history)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}", fix="name another file") from error
        say(f"saved {path}", err=True)


def file_label(part: "Medium") -> str:
    """Return what the history shows of a picture or video: its files in brackets."""
    together = part.get("together") if part["type"] == "image" else None
    clip = part["clip"] if part["type"] == "video" else None
    return f"[{' + '.join(together or [part['path']])}{f' {clip[0]:g}-{clip[1]:g} s' if clip else ''}]"


def file_names(rest: str, usage: str) -> list[Path]:
    """Return the file names after a command; names with blanks are quoted unless the whole text is one name."""
    if rest and Path(rest).exists():
        return [Path(rest)]
    try:
        names = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"{rest}: {error}", expected=usage) from error
    if not names:
        raise ConfigError("no file named", expected=usage)
    return [Path(name).expanduser() for name in names]


def line_editing(file: Path) -> Any:
    """Turn on arrow keys and a history over sessions where Python has readline; return what writes it, or None."""
    try:
        import readline
    except ImportError:
        return None
    with suppress(OSError):  # the first session has no history
        readline.read_history_file(file)

    def write() -> None:
        with suppress(OSError):  # a read-only home only costs the history
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)

    return write
