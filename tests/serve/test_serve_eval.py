"""`vlm eval --backend openai` against `vlm serve`: the same prompts and answers as the checkpoint in this process."""

import httpx
import pytest
import torch

from vlm.core.errors import ConfigError
from vlm.eval.backends.endpoint import Endpoint
from vlm.eval.backends.native import NativeBackend
from vlm.eval.backends.openai import OpenAIBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.models.engine import Sampling
from vlm.models.engine.sampling import Chooser, likeliest
from vlm.models.features import TileFeatures

MINIATURES = ["easyVQA", "POPE", "MileBench", "MME", "ChartQA", "TextVQA", "MMBench-dev-en", "MMMU"]
"""One picture and several, long prompts, options, numbers, yes or no."""


class Loaded:
    """Stands for `Checkpoint`, whose weights are in this process already."""

    def __init__(self, model, processor):
        self.model, self.processor, self.fingerprint, self.settings = model, processor, "loaded", {}

    def features_of(self, processor):
        return TileFeatures(self.model, processor, limit=0)


@pytest.mark.parametrize("name", MINIATURES)
def test_the_answers_of_our_server_are_those_of_the_checkpoint(name, parts, server, tmp_path):
    table = load_benchmark(name)
    items = load_items(table, make_mini(name, tmp_path / "mini"))
    items = items[:: max(1, len(items) // 12)][:12]
    # the server counts by the checkpoint's default, as `vlm eval` does without --stride
    native = NativeBackend(Loaded(*parts), stride=parts[1].spec.strides)
    served = OpenAIBackend(Endpoint(f"{server.url}/v1"), family=native.family)
    for item in items:
        limits = {"max_new_tokens": 6, "min_new_tokens": 1}
        prompt = native.encode(item.id, item.messages)
        [ours] = native.answer([prompt], **limits)
        before = server.served.engine.counts["prompt_tokens"]
        [theirs] = served.answer([served.encode(item.id, item.messages)], **limits)
        assert theirs.text == ours.text and theirs.finished == ours.finished, item.id
        assert server.served.engine.counts["prompt_tokens"] == before + len(prompt), item.id
    assert served.note == "" and items


def test_no_stop_token_comes_before_the_shortest_length(parts):
    processor = parts[1]
    logits = torch.zeros(processor.spec.language.vocab)
    logits[processor.stop_ids], logits[5] = 9.0, 4.0
    chooser = Chooser(Sampling(max_new_tokens=4, min_new_tokens=2), processor, torch.device("cpu"))
    chosen = [chooser.choose(logits, number, likeliest(logits[None])[0]).id for number in range(3)]
    assert chosen[:2] == [5, 5] and chosen[2] in processor.stop_ids
    with pytest.raises(ConfigError, match=r"min_tokens 5"):
        Sampling(max_new_tokens=4, min_new_tokens=5)


@pytest.mark.parametrize("least", [-1, 9, "two"])
def test_an_impossible_shortest_length_is_refused(least, server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "min_tokens": least}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert reply.status_code == 400 and "min_tokens" in reply.json()["error"]["message"]
