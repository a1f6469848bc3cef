"""New tokens from the embeddings of prompts, by transformers' `generate`.

Ours: settings are checked before anything is computed; long prompts are prefilled in chunks; a shared prefix is read
from its cache; beams share one prefill; a seed leaves the global generator unchanged. Only the last position of a
prompt reaches `lm_head`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from vlm.core.errors import CheckpointError, ConfigError, DataError
from vlm.models.attention import KVStorage
from vlm.models.generation.cache import make_cache
from vlm.models.generation.decoder import Decoder
from vlm.models.generation.prefix import Prefix, check_unscaled, counted, states_of
from vlm.models.memory import check_cache

PREFILL_CHUNK, IMAGE_CHUNK = 8192, 16
"""Tokens prefilled and tiles encoded at once: they bound activations, and the mask of padded prompts."""

MOST_ROOM = 1024
"""New tokens that a cache has room for from the start, at most."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Settings that mean something only when tokens are drawn."""

OBJECTS = ("streamer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "tokenizer")
"""Keywords of transformers' `generate` that are objects rather than settings."""


def check_settings(max_new_tokens: int, rows: int, seed: int | None, settings: dict[str, Any]) -> int:
    """Check the settings; return how many rows `generate` makes of each prompt row.

    Raises:
        ConfigError: settings that are impossible, contradict each other, or would have no effect.
    """

    def number(name: str, default: float) -> Any:
        value = settings.get(name)
        return default if value is None else value

    beams, returned, sample = number("num_beams", 1), number("num_return_sequences", 1), bool(settings.get("do_sample"))
    idle = [k for k in SAMPLING if settings.get(k) is not None] + (["seed"] if seed is not None else [])
    faults = [
        (max_new_tokens < 1, f"max_new_tokens {max_new_tokens}", "at least 1"),
        (
            number("min_new_tokens", 0) > max_new_tokens,
            f"min_new_tokens {settings.get('min_new_tokens')}",
            f"at most max_new_tokens ({max_new_tokens})",
        ),
        (beams < 1 or returned < 1, f"num_beams {beams}, num_return_sequences {returned}", "at least 1 of each"),
        (1 < beams < returned, f"num_return_sequences {returned}", f"at most num_beams ({beams})"),
        (beams == 1 < returned and not sample, f"num_return_sequences {returned}", "num_beams or do_sample with it"),
        (
            settings.get("streamer") is not None and (beams > 1 or rows * returned > 1),
            f"a streamer with {rows} prompts, {beams} beams, {returned} answers each",
            "one prompt, one beam, one answer: the tokens of several cannot be separated",
        ),
        (bool(idle) and not sample, f"{', '.join(idle)} without do_sample", "do_sample=True: greedy draws nothing"),
        (sample and number("temperature", 1) <= 0, f"temperature {settings.get('temperature')}", "above 0"),
        (sample and not 0 < number("top_p", 1) <= 1, f"top_p {settings.get('top_p')}", "in (0, 1]"),
        (sample and number("top_k", 0) < 0, f"top_k {settings.get('top_k')}", "0 (off) or above"),
        (settings.get("use_cache") is False, "use_cache False", "the cache: positions continue from it"),
    ]
    for fault, found, expected in faults:
        if fault:
            raise ConfigError(found, expected=expected)
    try:
        rest = GenerationConfig().update(**{k: v for k, v in settings.items() if k not in OBJECTS})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if rest:
        raise ConfigError(f"unknown generation settings: {', '.join(rest)}", fix="see transformers' GenerationConfig")
    return int(max(beams, returned))


def check_prompts(input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> None:
    """Raise DataError unless all are [B, L], L > 0, and every row ends with a token."""
    shapes = [list(t.shape) for t in (input_ids, mask, position_ids)]
    if input_ids.dim() != 2 or not input_ids.numel() or shapes != [shapes[0]] * 3:
        raise DataError(
            f"ids {shapes[0]}, mask {shapes[1]}, positions {shapes[2]}", expected="three equal shapes [B, L], not empty"
        )
    if not mask[:, -1].all():
        raise DataError("a row ends with padding", expected="padding on the left", fix="see left_padded")


def check_room(model: Decoder, tokens: int, rows: int) -> None:
    """Raise CacheTooLarge if the keys and values of so many rows of so many tokens do not fit the memory."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}
    like = model.language_model.model.norm.weight
    check_cache(model.spec.language, model.kv_storage, like, tokens=tokens, rows=rows, devices=max(1, len(places)))


def fill(
    model: Decoder,
    cache: Cache,
    embeddings: Tensor,
    mask: Tensor,
    position_ids: Tensor,
    chunk: int,
) -> None:
    """Append keys and values of tokens [B, L, C] to the cache, `chunk` at a time; no logits are made.

    `mask` [B, cached + L]; `position_ids` [B, L] or longer: their last says how long the whole prompt is.
    """
    if chunk < 1:
        raise ConfigError(f"prefill chunks of {chunk} tokens", expected="at least 1")
    cached, length = cache.get_seq_length(), embeddings.shape[1]
    if not position_ids.is_floating_point():  # rotary scaling goes by the length of the prompt, not of the chunk
        position_ids = torch.stack([position_ids, (position_ids[:, -1:] + 1).expand_as(position_ids)], dim=-1)
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        model.decode(
            embeddings[:, start:end],
            attention_mask=mask[:, : cached + end],
            position_ids=position_ids[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from that seed; leave the global generators of CPU and `device` unchanged."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def finite(logits: Tensor) -> Tensor:
    """Return whether all are finite, a scalar on their device: one sum, which any NaN or infinity makes one itself."""
    return torch.isfinite(logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)))


def check_finite(logits: Tensor) -> Tensor:
    """Return logits of any shape. Raises CheckpointError where one is NaN or infinite: no token follows from those."""
    if not finite(logits):
        raise CheckpointError(
            f"{int((~torch.isfinite(logits)).sum()):,} of {logits.numel():,} logits are not finite (NaN or infinity)",
            expected="numbers",
            fix="float16 overflows: try --dtype bfloat16 or float32; else the weights are damaged: get them again",
        )
    return logits


class FiniteLogits(StoppingCriteria):
    """Ends `generate` at logits that are not finite, without a wait of its own: it joins the question whether to stop.

    Where tokens are drawn, shown or looked at before that question, the logits are checked at once instead.
    """

    AT_ONCE = ("do_sample", "streamer", "logits_processor")

    def __init__(self, settings: dict[str, Any]):
        self.at_once = any(settings.get(key) for key in self.AT_ONCE) or (settings.get("num_beams") or 1) > 1
        self.logits: Tensor | None = None
        own = [] if self.at_once else [self]
        self.criteria = StoppingCriteriaList([*(settings.get("stopping_criteria") or ()), *own])

    @contextmanager
    def watching(self, language_model: Any) -> Iterator[None]:
        """Look at what the output head makes at each step. Raises CheckpointError, at the end or at once."""

        def see(_module: Any, _inputs: Any, logits: Tensor) -> None:
            self.logits = check_finite(logits) if self.at_once else logits

        handle = language_model.get_output_embeddings().register_forward_hook(see)
        try:
            yield
        finally:
            handle.remove()
        if self.logits is not None and not self.at_once:
            check_finite(self.logits)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Return for each row whether to stop [B]."""
        assert self.logits is not None
        return (~finite(self.logits)).to(input_ids.device).expand(len(input_ids))


def new_tokens(
    model: Decoder,
    embeddings: Tensor,
    mask: Tensor,
    position_ids: Tensor,
    *,
    prefix: Prefix | None,
    chunk: int,
    copies: int,
    seed: int | None,
    settings: dict[str, Any],
) -> Any:
    """Return new token ids [B * answers, n] (or transformers' output object) for prompts [B, L, C] after the prefix.

    `copies`: rows that `generate` makes of each. A short plain prompt is prefilled by `generate` itself, if keys and
    values are kept as they are; otherwise all but its last token is put into the cache here, before rows are copied.
    """
    rows, length = position_ids.shape
    if prefix is not None:
        prefix.check(model, mask, position_ids)
        check_unscaled(model, position_ids)
        mask = torch.cat([mask.new_ones(rows, prefix.length), mask], dim=1)
    if prefix is not None or length > chunk or copies > 1 or model.kv_storage != KVStorage():
        if settings.get("cache_implementation"):
            raise ConfigError(
                f"cache_implementation {settings['cache_implementation']!r} with a prefix, beams, a chunked prefill, "
                "or another storage of keys and values",
                expected="the default cache",
            )
        room = mask.shape[1] + min(settings["max_new_tokens"], MOST_ROOM)
        cache = prefix.cache(rows) if prefix else make_cache(model.spec.language.depth, model.kv_storage, room)
        fill(model, cache, embeddings[:, :-1], mask, position_ids, chunk)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        settings = settings | {"past_key_values": cache}
        # `generate` cuts off as many embeddings as are cached; of those it only looks at the number
        embeddings = embeddings[:, -1:].clone().expand(-1, mask.shape[1], -1)
    if prefix is not None:  # positions as long as the mask; those of the prefix are in its keys
        position_ids = torch.cat([prefix.position_ids.to(position_ids).expand(rows, -1), position_ids], dim=1)
    watch = FiniteLogits(settings)
    settings = settings | {"stopping_criteria": watch.criteria}
    with nullcontext() if seed is None else seeded(seed, embeddings.device), watch.watching(model.language_model):
        return model.language_model.generate(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=position_ids, **settings
        )


def prefill(
    model: Decoder,
    input_ids: Tensor,
    *,
    pixel_values: Tensor | None = None,
    image_flags: Tensor | None = None,
    image_grids: Tensor | None = None,
    features: Tensor | None = None,
    position_ids: Tensor | None = None,
    chunk: int = PREFILL_CHUNK,
    image_chunk: int = IMAGE_CHUNK,
) -> Prefix:
    """Return the cache of a document [1, P] for several `generate(question_ids, prefix=...)`; makes no logits.

    It may end anywhere, also within an image: `features` [1, tokens, C] then holds the tokens of its part.

    Raises:
        DataError: more than one row, or a length at which dynamic NTK scaling would change the keys.
        HardwareError: keys and values that do not fit the memory.
    """
    if len(input_ids) != 1:
        raise DataError(f"a prefix of {len(input_ids)} rows", expected="one document, [1, P]")
    mask = torch.ones_like(input_ids)
    if position_ids is None:
        position_ids = counted(mask)
    check_prompts(input_ids, mask, position_ids)
    check_unscaled(model, position_ids)
    check_room(model, input_ids.shape[1], 1)
    embeddings = model.embed(input_ids, pixel_values, image_flags, features, image_chunk, image_grids)
    cache = make_cache(model.spec.language.depth, model.kv_storage, input_ids.shape[1])
    fill(model, cache, embeddings, mask, position_ids, chunk)
    return Prefix(model, input_ids.clone(), position_ids.clone(), states_of(cache))


def generate(
    model: Decoder,
    input_ids: Tensor,
    *,
    prefix: Prefix | None = None,
    pixel_values: Tensor | None = None,
    image_flags: Tensor | None = None,
    image_grids: Tensor | None = None,
    features: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    max_new_tokens: int = 32,
    image_chunk: int = IMAGE_CHUNK,
    prefill_chunk: int = PREFILL_CHUNK,
    seed: int | None = None,
    **settings: Any,
) -> Any:
    """Return new token ids only, int64 [B * num_return_sequences, <= max_new_tokens]; greedy by default.

    Rows of unequal length are padded on the left. Positions continue from the last one, one by one, whatever the
    stride was. With a `prefix` ids, mask, positions and images are those of what follows it. `seed` makes `do_sample`
    repeatable. Other keywords go to transformers' `generate` (`eos_token_id`, `num_beams`, `streamer`, ...).

    Raises:
        ConfigError: impossible settings. DataError: prompts that are malformed or do not fit the prefix.
        CheckpointError: logits that are not finite.
        HardwareError: keys and values that do not fit the memory.
    """
    copies = check_settings(max_new_tokens, len(input_ids), seed, settings)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if position_ids is None:
        position_ids = prefix.positions_after(input_ids, mask) if prefix else counted(mask)
    check_prompts(input_ids, mask, position_ids)
    before = prefix.length if prefix else 0
    tokens = before + input_ids.shape[1] + min(max_new_tokens, MOST_ROOM)
    check_room(model, tokens, len(input_ids) * copies)
    return new_tokens(
        model,
        model.embed(input_ids, pixel_values, image_flags, features, image_chunk, image_grids),
        mask,
        position_ids,
        prefix=prefix,
        chunk=prefill_chunk,
        copies=copies,
        seed=seed,
        settings={"do_sample": False, "pad_token_id": 0, **settings, "max_new_tokens": max_new_tokens},
    )
