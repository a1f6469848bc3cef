"""`vlm view`: the pages of runs and samples, from files alone; no model is loaded."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.server.listening import LOCAL, address_of, find_key, listen
from vlm.cli.show.say import say
from vlm.core.errors import DataError
from vlm.core.extras import require

app = typer.Typer()


@app.command()
def view(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[RUNS]", help="Folder with runs. Default: runs/ of the home.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8001,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that the pages ask for.")
    ] = None,
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of dataset/ whose pictures may be shown. Repeatable."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
) -> None:
    """Show all trainings as they run, all evaluations, and every sample of them, until Ctrl-C.

    Only files are read and nothing is written, so a run of another machine can be looked at on a shared disk.

    \b
    vlm view
    vlm view /shared/runs --allow-outside /shared/dataset --open
    """
    require("serve", "the pages")
    key = find_key(None, api_key_env)
    import uvicorn

    from vlm.cli.server.views.app import ViewLimits, make_view_app
    from vlm.cli.server.views.routes import Viewer
    from vlm.cli.server.views.runs import Runs
    from vlm.core.home import dataset, resolve, runs
    from vlm.core.media_root import MediaRoot

    root = resolve(folder) if folder else runs()
    if not root.is_dir():
        raise DataError(f"no such folder: {root}", expected="a folder with runs", fix="name one, or set VLM_HOME")
    if host not in LOCAL and key is None:
        say(f"warning: {host} is open to others without a key (--api-key-env)", fg="yellow", err=True)
    outside = tuple(resolve(path) for path in allow_outside or ())
    viewer = Viewer(Runs(root), MediaRoot(dataset(), outside))
    limits = ViewLimits(key, LOCAL if host in LOCAL and key is None else None)
    listener = listen(host, port)
    address = address_of(listener)
    listener.listen(1024)  # whoever reads the next line may connect
    say(f"{address} shows {root}; Ctrl-C ends it")
    if open_:
        typer.launch(address)
    config = uvicorn.Config(make_view_app(viewer, limits), log_level="warning", access_log=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a process manager ends it as Ctrl-C does: code 0
    with suppress(KeyboardInterrupt):  # raised again by uvicorn after it has shut down
        uvicorn.Server(config).run(sockets=[listener])
    say("ended")
