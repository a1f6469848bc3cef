"""Keys and values in each dtype: bytes of a long prompt, what rounding does to the logits, and what decoding costs.

The peer keeps them in the dtype of the computation (float32), and its chunks make masks of chunk x cached entries.
A ratio on a CPU shows the algorithm: reading back costs arithmetic there, where a GPU saves bandwidth.
Companion: peak bytes that torch's allocator held beyond weights and inputs, for each token between two lengths, beside
those of the cache alone; greatest difference of a logit, as a part of their range.
"""

from contextlib import contextmanager

import torch
from harness import paired, peak_bytes, report

from vlm.models import load_preset
from vlm.models.attention import KVStorage, interface, local
from vlm.models.checkpoint.load import initialized

CHUNK, NEW = 1024, 16
SHORT, LONG = 4096, 8192


@contextmanager
def longest_mask(entries: int):
    before = local.LONGEST_MASK
    local.LONGEST_MASK = interface.LONGEST_MASK = entries
    try:
        yield
    finally:
        local.LONGEST_MASK = interface.LONGEST_MASK = before


@torch.inference_mode()
def main() -> None:
    shape = {"vocab": 4096, "width": 256, "depth": 4, "heads": 8, "kv_heads": 4, "mlp_width": 512}
    model = initialized(load_preset("tiny-internvl2").with_language(**shape), seed=0).eval()
    language = model.spec.language
    head = language.width // language.heads
    generator = torch.Generator().manual_seed(0)
    prompts = {n: torch.randint(10, 300, (1, n), generator=generator) for n in (SHORT, LONG)}
    question = torch.randint(10, 300, (1, 8), generator=generator)

    def logits(n: int) -> torch.Tensor:
        settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        return model.generate(prompts[n], prefill_chunk=CHUNK, **settings).logits[0]

    def peaks(entries: int) -> dict[int, int]:
        with longest_mask(entries):
            return {n: peak_bytes(lambda n=n: logits(n)) for n in prompts}

    masked, expected, rows = peaks(2**60), logits(LONG), []
    whole = model.prefill(prompts[LONG], chunk=CHUNK)
    for kept in (KVStorage(), KVStorage("bfloat16"), KVStorage("int8"), KVStorage("fp8"), KVStorage(offload=True)):
        model.kv_storage = kept
        found = peaks(2**20)
        error = ((logits(LONG) - expected).abs().max() / (expected.max() - expected.min())).item()
        prefix = model.prefill(prompts[LONG], chunk=CHUNK)

        def answer(prefix=prefix):
            return model.generate(question, prefix=prefix, max_new_tokens=NEW, min_new_tokens=NEW)

        values = 2 * language.depth * language.kv_heads * head
        rows.append(
            {
                "kv_dtype": kept.dtype,
                "offload": kept.offload,
                "cache_bytes_per_token": values * kept.bytes_per_value(torch.float32, head),
                "peak_bytes_per_token": (found[LONG] - found[SHORT]) / (LONG - SHORT),
                "peer_peak_bytes_per_token": (masked[LONG] - masked[SHORT]) / (LONG - SHORT),
                "peak_bytes": found[LONG],
                "peer_peak_bytes": masked[LONG],
                "logit_error": error,
                **paired(answer, lambda: answer(whole), 3),
            }
        )
    auto, half, small = rows[:3]
    assert auto["logit_error"] < 1e-5 and small["logit_error"] < 0.05
    assert small["cache_bytes_per_token"] < half["cache_bytes_per_token"] < auto["cache_bytes_per_token"]
    assert small["peak_bytes_per_token"] < auto["peak_bytes_per_token"] < auto["peer_peak_bytes_per_token"]
    report("kv_cache", rows)


if __name__ == "__main__":
    main()
