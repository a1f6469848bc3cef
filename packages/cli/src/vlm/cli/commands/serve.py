"""`vlm serve`: an OpenAI-compatible server and a chat page for one or several models."""

import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.find import find_model
from vlm.cli.options import MODEL_HELP, PlacementOptions, grouped
from vlm.cli.server.listening import LOCAL, address_of, find_key, listen
from vlm.cli.show.positions import positions_line
from vlm.cli.show.say import say
from vlm.core.errors import ConfigError
from vlm.core.extras import require, uncollected
from vlm.core.text import printable

if TYPE_CHECKING:
    import socket

    from vlm.cli.server.served import ServedModel, Settings
    from vlm.models.engine import Limits

app = typer.Typer()


@app.command()
@grouped
def serve(
    placement: PlacementOptions,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help=f"{MODEL_HELP} NAME=MODEL serves it as NAME; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send; other users of this machine can see it there.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with that key.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer under this host name too (behind a balancer); may be repeated."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a prompt and its reply. Default: the trained range.")
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Replies written at once.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; one more gets a 429.")] = 64,
    max_seconds: Annotated[float, typer.Option(min=1, help="Longest time for a reply.")] = 600.0,
    cache_gb: Annotated[float, typer.Option(min=0, help="Keys and values kept for the next question.")] = 2.0,
    allow_images_from: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Fetch http(s) images from this host; may be repeated.")
    ] = None,
    max_tiles: Annotated[
        int | None, typer.Option(help="Tiles per picture; of whole images tokens. Default: the checkpoint's.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames taken from a video.")] = 8,
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of dataset/ whose pictures the samples may show. Repeatable."),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate file (PEM) for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
) -> None:
    """Serve models until Ctrl-C: http://127.0.0.1:8000 for people, http://127.0.0.1:8000/v1 for OpenAI clients.

    Ctrl-C and SIGTERM let the replies in progress end first; the exit code is then 0.

    vlm serve -m V2PE-32K -m mine=runs/mine/train/mine/model
    """
    require("serve", "the server")
    key = find_key(api_key, api_key_env)
    check_tls(tls_certificate, tls_key)
    from vlm.core.home import resolve

    with uncollected():
        from vlm.cli.server.served import Settings
        from vlm.models.engine import Limits

    outside = tuple(resolve(path) for path in allow_outside or ())
    settings = Settings(
        hosts=frozenset(allow_images_from or ()),
        names=LOCAL | set(allow_host or ()) if allow_host or (host in LOCAL and key is None) else None,
        seconds=max_seconds,
        api_key=key,
    )
    limits = Limits(running=max_running, queue=max_queue, context=max_context, prefix_bytes=int(cache_gb * 2**30))
    models: dict[str, ServedModel] = {}
    named = [
        (name, find_model(given)) for name, given in map(split_name, model or (None,))
    ]  # all, before one is loaded
    listener = listen(host, port)  # a port in use is said at once
    for name, folder in named:
        label = name or label_of(folder)
        if label in models:
            raise ConfigError(f"two models named {label}", fix=f"name them: -m first={folder}")
        say(f"loading {printable(label)} from {printable(folder)}")
        models[label] = load_served(label, folder, placement, settings, limits, max_tiles=max_tiles, frames=frames)
    if host not in LOCAL and key is None:
        say(f"warning: {host} is open to others without a key (--api-key-env)", fg="yellow", err=True)
    run(models, settings, listener, tls_certificate, tls_key, outside)


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise ConfigError unless the files are a certificate and its private key."""
    if bool(certificate) != bool(key):
        raise ConfigError("only one of --tls-certificate and --tls-key", expected="both or neither")
    if certificate is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--tls-certificate {certificate} with --tls-key {key}: {reason}",
            expected="PEM files, the key without a password and made for that certificate",
        ) from error


def split_name(given: str | None) -> tuple[str | None, str | None]:
    """Split NAME=CHECKPOINT; without a name, or with an existing folder of that very name, there is none."""
    if given is None or "=" not in given or Path(given).exists():
        return None, given
    name, _, path = given.partition("=")
    return name, path


def label_of(folder: Path) -> str:
    """Return the name that a model is served under: its folder, or the stage's for an exported `model/`."""
    return folder.parent.name if folder.name == "model" else folder.name


def load_served(
    name: str,
    folder: Path,
    placement: PlacementOptions,
    settings: "Settings",
    limits: "Limits",
    *,
    max_tiles: int | None,
    frames: int,
) -> "ServedModel":
    """Load a model, with progress, and start its engine."""
    from dataclasses import replace

    from vlm.cli.commands.chat import load_session
    from vlm.cli.server.served import ServedModel
    from vlm.models.engine import ChatEngine

    session = load_session(folder, max_tiles=max_tiles, frames=frames, **asdict(placement))
    context = limits.context or session.processor.spec.language.max_positions
    engine = ChatEngine(session.model, session.processor, replace(limits, context=context))
    return ServedModel(name, engine, session.processor, settings)


def run(
    models: "dict[str, ServedModel]",
    settings: "Settings",
    listener: "socket.socket",
    certificate: Path | None = None,
    key: Path | None = None,
    outside: tuple[Path, ...] = (),
) -> None:
    """Serve until a signal comes; replies in progress are finished first. `outside`: folders of pictures, see view."""
    import uvicorn

    from vlm.cli.server.app import make_app
    from vlm.cli.server.views.routes import Viewer
    from vlm.cli.server.views.runs import Runs
    from vlm.core.home import dataset, runs
    from vlm.core.media_root import MediaRoot

    address = address_of(listener, secure=certificate is not None)
    for model in models.values():
        limit = model.engine.limits.context
        say(f"{model.name}: {model.processor.family}, {limit:,} tokens, {positions_line(model.processor.spec)}")
    listener.listen(1024)  # whoever reads the next line may connect
    say(f"{address} for people, {address}/v1 for OpenAI clients; Ctrl-C ends it")
    viewer = Viewer(Runs(runs()), MediaRoot(dataset(), outside))
    config = uvicorn.Config(
        make_app(models, settings, log=say, viewer=viewer),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(settings.seconds),
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a process manager ends it as Ctrl-C does: code 0
    with suppress(KeyboardInterrupt):  # raised again by uvicorn after it has shut down
        uvicorn.Server(config).run(sockets=[listener])
    say("ended; every reply in progress was finished or cancelled")
