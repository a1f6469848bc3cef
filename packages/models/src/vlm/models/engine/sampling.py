"""The next token of one request, from its logits; and its text, as far as it can be shown."""

import math
import os
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vlm.models.answers import reply
from vlm.models.engine.request import Sampling, TokenChoice
from vlm.models.processor import Processor


def likeliest(logits: Tensor) -> list[int | None]:
    """Return the most probable token of each row [n, V], None where a row is not finite: one read for all rows."""
    scores = logits.float()
    tokens = scores.argmax(-1).masked_fill(~scores.sum(-1).isfinite(), -1)
    return [None if token < 0 else token for token in tokens.tolist()]


class Chooser:
    """Chooses the tokens of one request, as transformers' `generate` does with the same settings and seed."""

    def __init__(self, sampling: Sampling, processor: Processor, device: torch.device):
        self.sampling, self.processor = sampling, processor
        self.warpers = LogitsProcessorList()
        if sampling.temperature > 0:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))
            seed = int.from_bytes(os.urandom(4), "big") if sampling.seed is None else sampling.seed % 2**63
            self.generator = torch.Generator(device).manual_seed(seed)

    def choose(self, logits: Tensor, number: int, best: int | None) -> TokenChoice | None:
        """Return token `number` (from 0) from logits [V] with their `likeliest`; None where they are not finite."""
        if best is None:
            return None
        held_back = number < self.sampling.min_new_tokens
        if not held_back and self.sampling.temperature == 0 and self.sampling.logprobs is None:
            return TokenChoice(best, "")
        scores = logits.float()
        if held_back:
            stop = torch.tensor(self.processor.stop_ids, dtype=torch.long, device=scores.device)
            scores = scores.index_fill(0, stop, -math.inf)
        if self.sampling.temperature > 0:
            nothing: Any = torch.empty(1, 0, dtype=torch.long, device=scores.device)
            shown: Any = scores[None]
            warped = self.warpers(nothing, shown)
            chances = warped.softmax(-1)
            if math.isfinite(chances.sum().item()):
                token = int(torch.multinomial(chances, 1, generator=self.generator).item())
            else:  # a temperature so near to 0 that dividing by it overflows
                token = int(scores.argmax().item())
        else:
            token = int(scores.argmax().item())
        if self.sampling.logprobs is None:
            return TokenChoice(token, "")
        logs = scores.log_softmax(-1)
        top = logs.topk(self.sampling.logprobs) if self.sampling.logprobs else None
        pairs = () if top is None else zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return TokenChoice(token, self.text(token), logs[token].item(), tuple((self.text(i), p) for i, p in pairs))

    def text(self, token: int) -> str:
        """Return the text of one token, special ones included."""
        return self.processor.tokenizer.decode([token], skip_special=False)


class ReplyText:
    """The text of a reply as it grows: whole characters only, and nothing that may become a stop text."""

    def __init__(self, processor: Processor, stop: tuple[str, ...]):
        self.processor, self.stop, self.stop_ids = processor, stop, processor.stop_ids
        self.ids: list[int] = []
        self.shown = ""
        self.stopped = False

    def add(self, token: int, *, last: bool = False) -> str:
        """Take a token; return the new text that can be shown. `stopped` is set where a stop text has come."""
        self.ids.append(token)
        whole = reply(self.processor, self.ids, self.stop_ids).text
        ends = [at for text in self.stop if (at := whole.find(text)) >= 0]
        if ends:
            self.stopped, whole = True, whole[: min(ends)]
        elif not last:
            if whole.endswith("\N{REPLACEMENT CHARACTER}"):  # the first bytes of a character
                return ""
            whole = whole[: len(whole) - self._begun(whole)]
        if not whole.startswith(self.shown):
            return ""
        new, self.shown = whole[len(self.shown) :], whole
        return new

    def _begun(self, whole: str) -> int:
        """Return how many characters at the end may be the start of a stop text."""
        sizes = (n for text in self.stop for n in range(len(text) - 1, 0, -1) if whole.endswith(text[:n]))
        return max(sizes, default=0)
