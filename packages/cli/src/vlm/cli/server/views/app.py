"""The application of `vlm view`: the pages of runs and samples alone. Nothing here imports a model."""

from dataclasses import dataclass

from fastapi import FastAPI

from vlm.cli.server.gate import Gate, Log, answer_errors
from vlm.cli.server.views.routes import Viewer, add_views


@dataclass(frozen=True)
class ViewLimits:
    """What the gate asks for; nothing is sent to these pages."""

    api_key: str | None = None
    names: frozenset[str] | None = None
    max_body: int = 1 << 16
    max_bodies: int = 1 << 24


def make_view_app(viewer: Viewer, limits: ViewLimits, *, log: Log = lambda line: None) -> FastAPI:
    """Return the application; `log` takes one line for each refusal."""
    app = FastAPI(title="vlm view", docs_url=None, redoc_url=None, openapi_url=None)
    answer_errors(app, log)
    add_views(app, viewer, chat=False)
    app.add_middleware(Gate, settings=limits, log=log)
    return app
