"""Encoding a tile, the first token and further tokens, against transformers: the same weights, greedy tokens equal.

InternVL2-2B with a quarter of the layers of both towers, random weights, bfloat16, one thread: the vocabulary is whole,
so the head weighs four times as much beside the layers as in the published model. Both sides are `generate` of the
checkpoint as its library loads it. Companions: tokens, bytes of the weights that a new token reads, GB/s at which that
is done, and at which this machine sums a tensor of that size.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from harness import paired, profiled, report
from peers import checkpoint, make_tokenizer, quarter

from vlm.models.checkpoint.load import load_model

TEXT, NEW, DECODED_BEHIND = 42, 12, 16


def read_speed(elements: int) -> float:
    """GB/s at which one thread sums a tensor of float32, the best of five."""
    numbers = torch.ones(elements)

    def seconds() -> float:
        began = time.process_time()
        numbers.sum()
        return time.process_time() - began

    return 4 * elements / min(seconds() for _ in range(5)) / 1e9


def prompt(tiles: int, text: int, per_tile: int, context: int, size: int) -> dict[str, Any]:
    """Ids [1, L], the tiles' pixels [tiles, 3, S, S] where there are any, and a mask of ones."""
    generator = torch.Generator().manual_seed(tiles + text)
    words = torch.randint(10, 300, (text,), generator=generator)
    ids = torch.cat([words[: text // 2], torch.full((tiles * per_tile,), context), words[text // 2 :]])[None]
    pixels = {"pixel_values": torch.randn(tiles, 3, size, size, generator=generator).bfloat16()} if tiles else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}


@torch.inference_mode()
def main(profile: bool = False) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ours_at, peer_at = checkpoint(quarter(), place, make_tokenizer(place), dtype=torch.bfloat16)
        ours = load_model(ours_at, dtype="bfloat16", infer=True)
        peer = transformers.AutoModelForImageTextToText.from_pretrained(peer_at, dtype=torch.bfloat16).eval()
        spec, per_tile = ours.spec, ours.tokens_per_tile
        context, size = spec.image_tokens.context_id, ours.image_size

        tile = prompt(1, 2, per_tile, context, size)["pixel_values"]
        mine, theirs = ours.encode_images(tile), peer.get_image_features(tile, return_dict=True).pooler_output
        difference = ((mine.float() - theirs.flatten(0, -2).view_as(mine).float()).norm() / mine.float().norm()).item()
        assert difference < 1e-2, difference
        rows = [
            {
                "work": "encode a tile",
                "difference": difference,
                **paired(lambda: ours.encode_images(tile), lambda: peer.get_image_features(tile), warm_up=False),
            }
        ]

        def compare(work: str, inputs: dict[str, Any], new: int, **about: Any) -> None:
            length = inputs["input_ids"].shape[1]

            def by_us() -> torch.Tensor:
                found: torch.Tensor = ours.generate(**inputs, max_new_tokens=new)
                return found

            def by_peer() -> torch.Tensor:
                limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
                found: torch.Tensor = peer.generate(**inputs, **limits)[:, -new:]
                return found

            got, want = by_us(), by_peer()
            assert got.tolist() == want.tolist(), (work, got, want)
            if profile:
                for side, call in (("ours", by_us), ("peer", by_peer)):
                    print(work, length, side, profiled(call), sep="\n")
                return
            times = paired(by_us, by_peer, warm_up=False)
            rows.append({"work": work, "tokens": length, "new_tokens": new, **times, **about})

        for tiles, text in ((1, TEXT), (8, 2264 - 8 * per_tile)):
            compare("first token", prompt(tiles, text, per_tile, context, size), 1, tiles=tiles)
        read = [p for name, p in peer.named_parameters() if "language_model" in name or "lm_head" in name]
        weights = sum(p.numel() for p in read) - peer.get_input_embeddings().weight.numel()
        compare("decode, one row", prompt(0, DECODED_BEHIND, per_tile, context, size), NEW, bytes_read=2 * weights)
        if profile:
            return
        last = rows[-1]
        for side in ("ours", "peer"):  # the prompt is read in about the time of one more token
            last[f"{side}_gb_per_s"] = 2 * weights * NEW / last[f"{side}_cpu_min_s"] / 1e9
        last["read_gb_per_s"] = read_speed(weights // 2)
        report("peer_forward", rows, {"transformers": transformers.__version__})


if __name__ == "__main__":
    main(profile="--profile" in sys.argv)
