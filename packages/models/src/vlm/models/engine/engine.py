"""The engine: requests that are there together run together, step by step, in one thread.

A step takes one new token of every running reply and, in the same forward pass, a piece of the prompts that are still
being read; `turns` says of which. Images are encoded piece by piece too. A step that only reads is given up where a
shorter prompt comes, and taken again later.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.core.errors import VlmError
from vlm.core.sample.encoded import Encoded
from vlm.models.answers import Reply
from vlm.models.attention import GivenUp, RowCache, Segments
from vlm.models.batch import upload
from vlm.models.engine.caches import PrefixCache, PromptKeys, as_positions, rope_depends_on_length
from vlm.models.engine.request import Busy, ContextOverflow, Ended, Event, GenerationRequest, Sampling
from vlm.models.engine.sampling import Chooser, ReplyText, likeliest
from vlm.models.engine.turns import Running, count_overtaking, is_due, readers
from vlm.models.features import TileFeatures
from vlm.models.generation.decoding import check_room
from vlm.models.memory import CacheTooLarge
from vlm.models.processor import Processor
from vlm.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Limits:
    """What the engine takes on.

    Args:
        running: replies written at once.
        queue: requests that may wait; one more is refused with `Busy`.
        context: greatest number of tokens of a prompt and its reply; None for no limit.
        step_tokens: prompt tokens read in one step. None: 128 on a CPU, whose arithmetic that fills, 512 elsewhere.
        step_tiles: tiles encoded in one step.
        prefix_bytes: keys and values of finished requests that are kept.
        feature_bytes: features of tiles that are kept.
    """

    running: int = 16
    queue: int = 64
    context: int | None = None
    step_tokens: int | None = None
    step_tiles: int = 4
    prefix_bytes: int = 1 << 30
    feature_bytes: int = 1 << 28


class ChatEngine:
    """Answers requests on one model; a thread of its own runs the steps.

    Args:
        model: in eval mode.
        processor: its processor.
        limits: see `Limits`.

    `counts` holds totals: requests by how they ended, prompt, cached and new tokens, tiles encoded, steps.
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, limits: Limits | None = None):
        self.model, self.processor, self.limits = model, processor, limits or Limits()
        self.device = next(model.parameters()).device
        self.piece = self.limits.step_tokens or (128 if self.device.type == "cpu" else 512)
        self.prefixes = PrefixCache(self.limits.prefix_bytes)
        self.tiles = TileFeatures(model, processor, self.limits.feature_bytes)
        self.waiting: deque[GenerationRequest] = deque()
        self.running: list[Running] = []
        self.counts: Counter[str] = Counter()
        self._news = threading.Condition()
        self._closing = self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "ChatEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, prompt: Encoded, sampling: Sampling) -> None:
        """Raise ContextOverflow if a prompt and its reply exceed the context limit, or the memory."""
        limit, total = self.limits.context, len(prompt) + sampling.max_new_tokens
        if limit is not None and total > limit:
            raise ContextOverflow(
                f"{len(prompt):,} tokens of prompt and {sampling.max_new_tokens:,} of reply are {total:,}",
                expected=f"at most {limit:,} together",
                fix="send fewer or smaller images, or ask for a shorter reply",
            )
        try:
            check_room(self.model, total, 1)
        except CacheTooLarge as error:
            raise ContextOverflow(error.found, expected=error.expected, fix="send fewer or smaller images") from None

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its events come from the engine's thread.

        Raises:
            ContextOverflow: it exceeds the context limit. Busy: the queue is full, or the engine is closing.
        """
        self.check(request.prompt, request.sampling)
        with self._news:
            if self._closing:
                raise Busy("the engine is shutting down", fix="ask another server")
            free = max(0, self.limits.running - len(self.running))  # the next step takes so many: they do not wait
            if len(self.waiting) >= self.limits.queue + free:
                raise Busy(f"{len(self.waiting)} requests are waiting", fix="ask again in a few seconds")
            self.waiting.append(request)
            self._news.notify()

    def cancel(self, request: GenerationRequest) -> None:
        """End a request at the next step."""
        request.cancelled = True
        with self._news:
            self._news.notify()

    def ask(self, prompt: Encoded, sampling: Sampling) -> Reply:
        """Return the reply to one prompt, when it is complete. Raises VlmError for a reply that failed."""
        finished, texts, last = threading.Event(), [], []

        def take(event: Event) -> None:
            texts.append(event.text)
            if event.ended:
                last.append(event)
                finished.set()

        request = GenerationRequest(prompt, sampling, take)
        self.submit(request)
        finished.wait()
        if last[0].ended == "error":
            raise VlmError(last[0].error)
        return Reply("".join(texts), request.new_tokens, last[0].ended == "stop")

    def close(self, wait: float | None = None) -> None:
        """Refuse new requests, finish those that are there (for at most `wait` seconds), and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(wait)
        if self._thread.is_alive():
            with self._news:
                for request in (*self.waiting, *(r.request for r in self.running)):
                    request.cancelled = True
                self._news.notify()
            self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._news:
                while not (self.waiting or self.running or self._closing):
                    self._news.wait()
                if self._closing and not (self.waiting or self.running):
                    return
            try:
                self._step()
            except Exception as error:  # noqa: BLE001  the thread must live on; the requests of this step end
                for running in list(self.running):
                    self._end(running, "error", error=f"{type(error).__name__}: {error}")

    def _step(self) -> None:
        self._drop_ended()
        self._admit()
        self.counts["steps"] += 1
        running, reading = list(self.running), readers(self.running, self.piece)
        served: dict[int, int] = {}
        for plain in (False, True):
            pack = self._pack(*([r for r in group if r.plain == plain] for group in (running, reading)))
            tokens = {id(r): count if r.left else 0 for r, count in pack}
            if pack and self._forward(pack, plain):
                served |= tokens
        count_overtaking(running, served)

    def _shorter_came(self, pack: Sequence[tuple[Running, int]]) -> bool:
        """Return whether a request waits, and can start, that is shorter than what is left of all that are read."""
        if len(self.running) >= self.limits.running or not self.waiting:
            return False
        return len(self.waiting[-1].prompt) < min(r.left for r, _ in pack)

    def _drop_ended(self) -> None:
        now = time.monotonic()
        with self._news:
            waiting, self.waiting = list(self.waiting), deque()
            ended = []
            for request in waiting:
                why = _over(request, now)
                ended.append((request, why)) if why else self.waiting.append(request)
        for request, why in ended:
            self._finish(request, why)
        for running in list(self.running):
            if why := _over(running.request, now):
                self._end(running, why)

    def _admit(self) -> None:
        while len(self.running) < self.limits.running:
            with self._news:
                if not self.waiting:
                    return
                request = self.waiting.popleft()
            try:
                self.running.append(self._started(request))
            except Exception as error:  # noqa: BLE001  only this request ends
                self._finish(request, "error", error=str(error))

    def _started(self, request: GenerationRequest) -> Running:
        prompt = request.prompt
        plain = prompt.strides is None
        keys = PromptKeys.of(prompt, self.model.spec.image_tokens.context_id)
        total = len(prompt) + request.sampling.max_new_tokens
        known = None if rope_depends_on_length(self.model, total, plain) else self.prefixes.find(keys, plain)
        per_tile = self.processor.tokens_per_tile
        context = (prompt.input_ids == self.model.spec.image_tokens.context_id).cumsum()
        running = Running(
            request,
            keys,
            known or RowCache(self.model.spec.language.depth, self.model.kv_storage),
            plain,
            Chooser(request.sampling, self.processor, self.device),
            ReplyText(self.processor, request.sampling.stop),
            [0, *(-(-context // per_tile)).tolist()],
            position=math.ceil(float(prompt.position_ids[-1])),
        )
        running.done = request.cached_tokens = running.row.length
        self.counts["prompt_tokens"] += len(prompt)
        self.counts["cached_tokens"] += running.done
        return running

    def _pack(self, running: Sequence[Running], reading: Sequence[Running]) -> list[tuple[Running, int]]:
        """Return how many tokens of each request this step takes, the readers in their order."""
        pack = [(r, 1) for r in running if not r.left]
        budget, tiles = self.piece, self.limits.step_tiles
        for r in reading:
            end, tiles = self._with_features(r, r.done + min(r.left, budget), tiles)
            if end > r.done:
                pack.append((r, end - r.done))
                budget -= end - r.done
            if budget < 1:
                break
        return pack

    def _with_features(self, r: Running, end: int, tiles: int) -> tuple[int, int]:
        """Encode the tiles of the tokens up to `end`, at most `tiles`; return the end and the tiles left."""
        pixels = r.request.prompt.pixels
        first, last = r.tile_of[r.done], r.tile_of[end]
        if r.done and self._within_tile(r, r.done):
            first -= 1
        missing: dict[bytes, int] = {}
        for number in range(first, last):
            if number in r.features:
                continue
            key = r.keys.tiles[number]
            known = self.tiles.get(key)
            if known is not None:
                r.features[number] = known
            else:
                missing.setdefault(key, number)
        chosen, grids = r.keys.to_encode(r.request.prompt, missing, tiles)
        if chosen:
            assert pixels is not None
            made = self.tiles.encode({r.keys.tiles[number]: pixels[number] for number in chosen}, grids=grids)
            self.counts["tiles"] += len(made)
            for number in range(first, max(last, max(chosen) + 1)):
                if r.keys.tiles[number] in made:
                    r.features[number] = made[r.keys.tiles[number]]
        for number in range(first, last):
            if number not in r.features:
                return r.tile_of.index(number + 1) - 1, 0
        return end, max(0, tiles - len(chosen))

    def _within_tile(self, r: Running, at: int) -> bool:
        """Return whether token `at` continues a tile that an earlier token has begun."""
        context = self.model.spec.image_tokens.context_id
        ids = r.request.prompt.input_ids
        return bool(ids[at] == context) and r.tile_of[at] == r.tile_of[at + 1]

    def _read(self, r: Running, count: int) -> Tensor:
        """Return embeddings [1, count, C] of the next tokens of a prompt."""
        end = r.done + count
        part = r.request.prompt.input_ids[r.done : end]
        ids = upload(torch.from_numpy(part), self.device)[None]
        context = self.model.spec.image_tokens.context_id
        places = int((part == context).sum())
        if not places:
            return self.model.embed(ids)
        before = int((r.request.prompt.input_ids[: r.done] == context).sum())
        per_tile = self.processor.tokens_per_tile
        numbers = range(before // per_tile, -(-(before + places) // per_tile))
        features = torch.cat([r.features[number] for number in numbers])
        skip = before - before // per_tile * per_tile
        return self.model.embed(ids, features=features[None, skip : skip + places])

    def _forward(self, pack: list[tuple[Running, int]], plain: bool) -> bool:
        """Run the model on these tokens, and choose the next ones; False where it was given up."""
        writing = [r for r, _ in pack if not r.left]
        # tokens that the model has written are text, whatever their id
        known = self.model.language_model.get_input_embeddings()
        written = iter(
            known(upload(torch.tensor([[r.last for r in writing]]), self.device)).split(1, 1) if writing else ()
        )
        embeddings, positions = [], []
        for r, count in pack:
            if r.left:
                embeddings.append(self._read(r, count))
                values = r.request.prompt.position_ids[r.done : r.done + count]
                positions.append(as_positions(values, len(r.request.prompt), plain, self.device))
            else:
                r.position += 1
                embeddings.append(next(written))
                positions.append(as_positions([r.position], int(r.position) + 1, plain, self.device))
        waits = all(r.left and not is_due(r, self.piece) for r, _ in pack)  # nobody writes, and nobody is due
        stop = (lambda: self._shorter_came(pack)) if waits else None
        segments = Segments([r.row for r, _ in pack], [count for _, count in pack], stop)
        try:
            out = self.model.decode(
                torch.cat(embeddings, dim=1),
                attention_mask=None,
                position_ids=torch.cat(positions, dim=1),
                segments=segments,
            )
        except GivenUp:
            return False
        hidden, at, ready = out.last_hidden_state[0], 0, []
        for r, count in pack:
            at += count
            if r.left:
                r.done += count
                begun = r.tile_of[r.done] - 1 if r.left else math.inf
                r.features = {number: made for number, made in r.features.items() if number >= begun}
            if not r.left:
                ready.append((r, at - 1))
        if not ready:
            return True
        places = upload(torch.tensor([place for _, place in ready]), self.device)
        logits = self.model.language_model.lm_head(hidden[places])
        for (r, _), scores, token in zip(ready, logits, likeliest(logits), strict=True):
            try:
                self._take(r, scores, token)
            except Exception as error:  # noqa: BLE001  only this request ends
                self._end(r, "error", error=f"{type(error).__name__}: {error}")
        return True

    def _take(self, r: Running, scores: Tensor, token: int | None) -> None:
        """Choose the next token of a reply, of which `token` is the likeliest, and tell its request."""
        request = r.request
        choice = r.chooser.choose(scores, request.new_tokens, token)
        if choice is None:
            self._end(r, "error", error="the model's logits are not finite: its weights or activations overflow")
            return
        r.last = choice.id
        request.new_tokens += 1
        self.counts["new_tokens"] += 1
        request.first_token = request.first_token or time.monotonic()
        stop = choice.id in r.text.stop_ids
        full = request.new_tokens >= request.sampling.max_new_tokens
        new = r.text.add(choice.id, last=stop or full)
        r.ids.append(choice.id)
        if stop or r.text.stopped:
            self._end(r, "stop", Event(new, () if stop else (choice,)))
        elif full:
            self._end(r, "length", Event(new, (choice,)))
        else:
            request.on_event(Event(new, (choice,)))

    def _end(self, r: Running, why: Ended, last: Event = Event(), *, error: str = "") -> None:
        self.running.remove(r)
        total = len(r.request.prompt) + len(r.ids)
        if not r.left and not error and not rope_depends_on_length(self.model, total, r.plain):
            self.prefixes.keep(r.keys.longer(r.ids[: r.row.length - r.done]), r.row, r.plain)
        self._finish(r.request, why, last, error=error)

    def _finish(self, request: GenerationRequest, why: Ended, last: Event = Event(), *, error: str = "") -> None:
        request.finished = time.monotonic()
        self.counts[why] += 1
        request.on_event(Event(last.text, last.tokens, why, error))


def _over(request: GenerationRequest, now: float) -> Ended | None:
    """Return why a request ends without its next token."""
    if request.cancelled:
        return "cancelled"
    if request.deadline is not None and now >= request.deadline:
        return "timeout"
    return None
