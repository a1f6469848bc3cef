"""The engine of `vlm serve`: eight questions at once against one after the other, first token from the cache, a crowd.

Ours against itself one by one, by process CPU time, one thread: what batching brings. A tiny model is bound by Python
and says little, so the model has the width of SmolLM2-135M (random weights; speed does not depend on them).
"""

import threading
import time
from pathlib import Path

import torch
from harness import paired, report

from vlm.models.engine import ChatEngine, Event, GenerationRequest, Limits, Sampling
from vlm.models.processor import Processor
from vlm.models.session import user_turn
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "data" / "tokenizers" / "internlm2"
CLIENTS, NEW, WORDS = 8, 32, 60


def main() -> None:
    """Measure and write bench/serve.json."""
    torch.set_num_threads(1)
    spec = load_preset("tiny-internvl2").with_language(
        width=576, depth=30, heads=9, kv_heads=3, mlp_width=1536, vocab=49152, max_positions=8192
    )
    torch.manual_seed(0)
    model, processor = make_model(spec).eval(), Processor(spec, TOKENIZER)
    engine = ChatEngine(model, processor, Limits(running=CLIENTS, queue=10_000, prefix_bytes=0))

    def prompt(number: int, words: int = WORDS):  # type: ignore[no-untyped-def]
        turn = user_turn(f"{number} " + "what is it " * words, [], [], processor.template)
        return processor.encode([turn], strides=None)

    def send(asked, new: int = NEW, to: ChatEngine = engine):  # type: ignore[no-untyped-def]
        ended = threading.Event()

        def take(event: Event) -> None:
            if event.ended:
                ended.set()

        request = GenerationRequest(asked, Sampling(max_new_tokens=new), take)
        to.submit(request)
        return request, ended

    def together() -> None:
        for _, ended in [send(prompt(i)) for i in range(CLIENTS)]:
            ended.wait()

    def one_by_one() -> None:
        for i in range(CLIENTS):
            send(prompt(i))[1].wait()

    rows = [{"case": f"{CLIENTS} clients, {len(prompt(0))} + {NEW} tokens each", **paired(together, one_by_one, 3)}]

    cached = ChatEngine(model, processor, Limits())
    long = prompt(0, 1200)
    first, ended = send(long, 1, cached)
    ended.wait()
    second, ended = send(long, 1, cached)
    ended.wait()
    times = [(r.first_token or 0) - r.submitted for r in (first, second)]
    rows.append(
        {
            "case": f"first token of {len(long)} tokens",
            "read_s": times[0],
            "cached_s": times[1],
            "ratio": times[0] / times[1],
        }
    )

    short = prompt(1, 5)
    alone, ended = send(short, 8)
    ended.wait()
    _, long_ended = send(prompt(2, 1200), 1)
    time.sleep(0.2)
    beside, ended = send(short, 8)
    ended.wait()
    took = [(r.finished or 0) - r.submitted for r in (alone, beside)]
    rows.append(
        {
            "case": "a short request beside a long one",
            "alone_s": took[0],
            "beside_s": took[1],
            "ratio": took[1] / took[0],
        }
    )
    long_ended.wait()
    report("serve", rows)


if __name__ == "__main__":
    main()
