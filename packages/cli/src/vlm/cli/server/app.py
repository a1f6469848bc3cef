"""The web application: routes, limits, errors in OpenAI's form.

>>> uvicorn.run(make_app({"m": served}, Settings()))                          # doctest: +SKIP
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from vlm.cli.server.gate import Gate, Log, answer_errors
from vlm.cli.server.incoming import Media
from vlm.cli.server.metrics import metrics_of
from vlm.cli.server.protocol import ChatRequest, RequestError, head, logprobs_of, usage
from vlm.cli.server.served import Prompt, ServedModel, ServedReply, Settings
from vlm.cli.server.uploads import Uploads
from vlm.cli.server.views.routes import Viewer, add_views
from vlm.cli.server.views.runs import Runs
from vlm.core.home import dataset, runs, scratch
from vlm.core.media_root import MediaRoot
from vlm.core.sample.encoded import Encoded
from vlm.models.engine import Event

PAGE = Path(__file__).with_name("page")

LEFT = "the client left"


def make_app(
    models: dict[str, ServedModel], settings: Settings, *, log: Log = lambda line: None, viewer: Viewer | None = None
) -> FastAPI:
    """Return the application.

    Args:
        models: By name; the first is the page's choice.
        settings: Limits.
        log: Takes one line for each request.
        viewer: The runs and samples that it shows too; by default those of the home.
    """
    uploads = Uploads(settings.max_uploads)
    for model in models.values():
        model.uploads = uploads

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with scratch("vlm-serve") as uploads.folder:
            yield
            for model in models.values():
                await asyncio.to_thread(model.engine.close, settings.seconds)

    app = FastAPI(title="vlm serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    answer_errors(app, log)
    add_views(app, viewer or Viewer(Runs(runs()), MediaRoot(dataset())), chat=True)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics_of(models), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card() for model in models.values()]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, object]:
        return find(name).card()

    @app.post("/vlm/uploads")
    async def upload(request: Request) -> dict[str, str]:
        content = await request.body()
        if len(content) > settings.max_file:
            raise RequestError(f"{len(content):,} bytes, at most {settings.max_file:,}", status=413)
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        id_ = uploads.keep(Media(uploads.folder).store(kind, content, "upload"))
        return {"id": id_, "url": f"upload:{id_}"}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request, body: ChatRequest) -> JSONResponse | StreamingResponse:
        started = time.monotonic()
        body.check()
        model = find(body.model)
        prompt = await model.prepare(body)

        def done(how: str) -> None:
            new = sum(reply.request.new_tokens for reply in replies)
            cached = replies[0].request.cached_tokens
            tokens, tiles = len(prompt.encoded), prompt.encoded.n_tiles
            log(
                f"{model.name} {how}: {tokens:,} tokens ({cached:,} cached, {tiles} tiles) + {new:,} "
                f"in {time.monotonic() - started:.1f} s"
            )

        replies: list[ServedReply] = []
        try:
            for number in range(body.n or 1):
                replies.append(model.start(prompt.encoded, body, number))
        except RequestError:  # the queue is full
            for reply in replies:
                reply.cancel()
            raise
        if not body.stream:
            return await whole(request, model, prompt, body, replies, done)
        pieces = streamed(model, prompt, body, replies, done)
        return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(request: Request, rest: str) -> None:
        raise RequestError(
            f"no {request.method} /v1/{rest[:80]} here; there are GET /v1/models and POST /v1/chat/completions",
            status=404,
        )

    def find(name: str) -> ServedModel:
        if name not in models:
            raise RequestError(
                f"no model {name[:80]!r}; this server has {', '.join(models)}", status=404, code="model_not_found"
            )
        return models[name]

    if PAGE.exists():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_middleware(Gate, settings=settings, log=log)
    return app


async def whole(
    request: Request,
    model: ServedModel,
    prompt: Prompt,
    body: ChatRequest,
    replies: Sequence[ServedReply],
    done: Callable[[str], None],
) -> JSONResponse:
    """Return the complete replies. A client that goes away cancels them."""

    async def one(reply: ServedReply) -> list[Event]:
        return [event async for event in reply.events()]

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)

    work = asyncio.gather(*map(one, replies))
    leaving = asyncio.ensure_future(gone())
    try:
        both: set[asyncio.Future[Any]] = {work, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            done(LEFT)
            return JSONResponse({}, status_code=499)  # nobody reads it
        made = work.result()
    finally:
        leaving.cancel()
        for reply in replies:
            reply.cancel()
    choices = []
    for index, events in enumerate(made):
        tokens = [t for e in events for t in e.tokens]
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(e.text for e in events), "refusal": None},
                "logprobs": logprobs_of(tokens) if body.logprobs else None,
                "finish_reason": "stop" if events[-1].ended == "stop" else "length",
            }
        )
    done(made[0][-1].ended or "")
    answer = head(new_id(), model.name, "chat.completion") | {
        "choices": choices,
        "usage": counts(prompt.encoded, replies),
        "vlm": about(prompt),
    }
    return JSONResponse(answer)


async def streamed(
    model: ServedModel, prompt: Prompt, body: ChatRequest, replies: Sequence[ServedReply], done: Callable[[str], None]
) -> AsyncIterator[str]:
    """Yield the server-sent events of the replies, one reply's piece as soon as it is there."""
    base = head(new_id(), model.name, "chat.completion.chunk")
    how = LEFT

    def line(index: int, delta: dict[str, Any], event: Event | None = None) -> str:
        ended = event.ended if event else None
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs_of(event.tokens) if event and body.logprobs else None,
            "finish_reason": ended and ("stop" if ended == "stop" else "length"),
        }
        return f"data: {json.dumps(base | {'choices': [choice]})}\n\n"

    queue: asyncio.Queue[tuple[int, Event | RequestError]] = asyncio.Queue()

    async def pump(index: int, reply: ServedReply) -> None:
        try:
            async for event in reply.events():
                await queue.put((index, event))
        except RequestError as error:
            await queue.put((index, error))

    tasks = [asyncio.ensure_future(pump(i, reply)) for i, reply in enumerate(replies)]
    try:
        for index in range(len(replies)):
            yield line(index, {"role": "assistant", "content": ""})
        left = len(replies)
        while left:
            index, event = await queue.get()
            if isinstance(event, RequestError):
                how = f"failed ({event})"
                yield f"data: {json.dumps(event.body)}\n\n"
                return
            if event.text or (event.tokens and body.logprobs):
                yield line(index, {"content": event.text}, Event(event.text, event.tokens))
            if event.ended:
                left -= 1
                how = event.ended
                yield line(index, {}, Event(ended=event.ended))
        if body.stream_options and body.stream_options.include_usage:
            last = base | {"choices": [], "usage": counts(prompt.encoded, replies), "vlm": about(prompt)}
            yield f"data: {json.dumps(last)}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        for reply in replies:
            reply.cancel()
        done(how)


def new_id() -> str:
    """Return the id of an answer."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def counts(prompt: Encoded, replies: Sequence[ServedReply]) -> dict[str, Any]:
    """Return the usage of a request."""
    made = [reply.request for reply in replies]
    images = sum(count for _, count, _ in prompt.image_spans)
    return usage(len(prompt), sum(r.new_tokens for r in made), made[0].cached_tokens, images)


def about(prompt: Prompt) -> dict[str, Any]:
    """Return what only this server knows: tiles, positions used, the strides of the images."""
    encoded = prompt.encoded
    return {
        "images": prompt.images,
        "frames": prompt.frames,
        "tiles": [tiles for _, _, tiles in encoded.image_spans],
        "positions": float(encoded.position_ids[-1]) + 1,
        "strides": encoded.strides,
    }
