"""The addresses of the pages of runs and samples, and the JSON behind them.

add_views(app, Viewer(Runs(Path("runs")), MediaRoot(Path("dataset"))))
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from vlm.cli.server.gate import RequestError
from vlm.cli.server.views.charts import stage_charts
from vlm.cli.server.views.pictures import picture_of
from vlm.cli.server.views.runs import Runs
from vlm.cli.server.views.samples import Place, Samples, Wanted, WantedRows
from vlm.core.errors import VlmError
from vlm.core.media_root import MediaRoot

PAGE = Path(__file__).with_name("page")

REPORT_POLICY = (
    "sandbox allow-scripts allow-popups allow-top-navigation-by-user-activation; default-src 'none'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
"""A report is a file that somebody may have sent: its scripts run without an origin and reach no address of ours."""

READ_SECONDS = 1.0
"""Time for reading results before the page is told how far it is."""


@dataclass(frozen=True)
class Viewer:
    """What is shown: runs, and the gate for their pictures."""

    runs: Runs
    media: MediaRoot


def add_views(app: FastAPI, viewer: Viewer, *, chat: bool) -> None:
    """Add pages and addresses to an application. `chat`: it has the page that talks to a model."""
    routes = APIRouter(prefix="/vlm")
    samples = Samples(viewer.runs)

    @routes.get("/about")
    def about() -> dict[str, Any]:
        return {"chat": chat, "place": str(viewer.runs.root)}

    @routes.get("/runs")
    def overview() -> dict[str, Any]:
        return viewer.runs.overview()

    @routes.get("/runs/stage")
    def stage(id: str) -> dict[str, Any]:
        log = viewer.runs.stage(id)
        if log is None:
            raise RequestError("no such training stage", status=404)
        return {"head": log.head(), "charts": stage_charts(log), "ledger": log.ledger(), "folder": str(log.folder)}

    @routes.get("/samples")
    def choose(asked: Annotated[WantedRows, Query()]) -> dict[str, Any]:
        wanted = Wanted(**asked.model_dump(exclude={"offset", "limit"}))
        with answered():
            reading = read_some(samples, [wanted.evaluation] if wanted.evaluation else samples.ids())
            if reading["left"]:
                return {"reading": reading}
            found = samples.choose(wanted)
            return {
                "total": len(found),
                "of": reading["rows"],
                "problems": reading["problems"],
                "rows": [row_of(samples, place, wanted) for place in found[asked.offset : asked.offset + asked.limit]],
            }

    @routes.get("/samples/facets")
    def facets() -> dict[str, Any]:
        heads = [viewer.runs.evaluation(id_) for id_ in samples.ids()]
        return {"evaluations": heads, "groups": groups_of(samples)}

    @routes.get("/samples/one")
    def one(evaluation: str, number: int | None = None, id: str | None = None, against: str = "") -> dict[str, Any]:
        from vlm.eval.saved.evaluations import asked_of

        with answered():
            index = samples.index(resolved(samples, evaluation))
            at = index.numbers.get(id, -1) if id is not None else number if number is not None else -1
            if not 0 <= at < len(index.rows):
                raise KeyError(evaluation)
            row = index.read(at)
            row["asked"] = asked_of(row)
            others = [other_of(samples, place) for place in samples.same_item(index, index.rows[at].id)]
            found: dict[str, Any] = {
                "evaluation": index.id,
                "number": at,
                "head": index.head,
                "row": row,
                "others": others,
            }
            if against:
                theirs = samples.index(against)
                if index.rows[at].id in theirs.numbers:
                    number_there = theirs.numbers[index.rows[at].id]
                    found["against"] = {"evaluation": against, "number": number_there, "head": theirs.head}
                    found["against"] |= {"row": theirs.read(number_there)}
                    found["moved"] = samples.moved(index.id, against).get(index.rows[at].id)
            return found

    @routes.get("/samples/compare")
    def compare(a: str, b: str) -> dict[str, Any]:
        with answered():
            return {key: value for key, value in samples.compare(a, b).items() if key != "all"}

    @routes.get("/media")
    def media(evaluation: str, number: int, image: int, size: int = Query(320, ge=16, le=2048)) -> Response:
        with answered():
            index = samples.index(evaluation)
            if not 0 <= number < len(index.rows):
                raise KeyError(evaluation)
            data = picture_of(index.read(number), image, size, viewer.media)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    @routes.get("/reports/{id:path}")
    def report(id: str) -> FileResponse:
        path = viewer.runs.report(id)
        if path is None:
            raise RequestError("no such report", status=404)
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    app.include_router(routes)

    @app.get("/view/base.css")
    def base() -> FileResponse:
        from vlm.eval.report.render.page import ASSETS

        return FileResponse(ASSETS / "base.css", media_type="text/css")

    if not chat:

        @app.get("/")
        def start() -> RedirectResponse:
            return RedirectResponse("/view/runs.html")

    app.mount("/view", StaticFiles(directory=PAGE), name="view")


@contextmanager
def answered() -> Iterator[None]:
    """Turn what the readers raise into answers: what is not there, and what cannot be read."""
    try:
        yield
    except KeyError as error:
        raise RequestError("no such evaluation or sample", status=404) from error
    except VlmError as error:
        raise RequestError(str(error), status=422, code="unreadable") from error


def read_some(samples: Samples, ids: list[str]) -> dict[str, Any]:
    """Read the results that are not read yet, for a second at most; say how far it is."""
    began, rows, done, problems = time.monotonic(), 0, 0, []
    for id_ in ids:
        if done and time.monotonic() - began > READ_SECONDS:
            break
        try:
            index = samples.index(id_)
        except VlmError as error:
            problems.append(f"{id_}: {error}".splitlines()[0])
        else:
            rows += len(index.rows)
            if index.damaged:
                problems.append(f"{id_}: {index.damaged} lines cannot be read")
        done += 1
    return {"done": done, "left": len(ids) - done, "rows": rows, "problems": problems}


def resolved(samples: Samples, given: str) -> str:
    """Return the id of an evaluation that a report names: it may have been written with another folder of runs."""
    ids = samples.ids()
    if given in ids:
        return given
    return next((id_ for id_ in ids if given.endswith(f"/{id_}") or id_.endswith(f"/{given}")), given)


def groups_of(samples: Samples) -> dict[str, list[str]]:
    """Return the groups of each benchmark, by its title, as far as results are read."""
    found: dict[str, Counter[str]] = {}
    for index in samples.known():
        found.setdefault(index.head["title"], Counter()).update(index.groups)
    return {title: sorted(filter(None, groups)) for title, groups in found.items()}


def row_of(samples: Samples, place: Place, wanted: Wanted) -> dict[str, Any]:
    """Return a row of the list; beside another run also its reply, its score and what moved."""
    index = samples.index(place.evaluation)
    line = index.rows[place.number]
    found = {**line._asdict(), "evaluation": place.evaluation, "number": place.number}
    found |= {"title": index.head["title"], "model": index.head["model"], "variant": index.head["variant"]}
    del found["offset"]
    if wanted.against:
        theirs = samples.index(wanted.against)
        other = theirs.rows[theirs.numbers[line.id]]
        found |= {"kind": samples.moved(place.evaluation, wanted.against)[line.id]["kind"]}
        found |= {"other_reply": other.reply, "other_score": other.score}
    return found


def other_of(samples: Samples, place: Place) -> dict[str, Any]:
    """Return what is shown of the same item elsewhere."""
    index = samples.index(place.evaluation)
    line = index.rows[place.number]
    about = {key: index.head[key] for key in ("model", "variant", "run")}
    return {**place._asdict(), **about, "reply": line.reply, "score": line.score, "outcome": line.outcome}
