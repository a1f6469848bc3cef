"""Answers to 48 prompts: batches of similar length, padded on the left, against one prompt at a time.

The peer is the loop of the published evaluators. Prompts mix text and images at V2PE positions; greedy, 16 new tokens,
a stop token. Both sides give the same tokens. A ratio on a CPU shows the algorithm, not the speed on a GPU.
Companion: tokens through the language model, padding included.
"""

import numpy as np
import torch
from harness import paired, report

from vlm.core.sample.encode import Encoded
from vlm.core.sample.positions import positions
from vlm.eval.run.shards import batches
from vlm.models import load_preset
from vlm.models.answers import left_padded
from vlm.models.checkpoint.load import initialized

SAMPLES, NEW, STOP, STRIDE = 48, 16, 7, 2


def make_model():
    """The tiny preset with gains raised, so that answers depend on the prompt."""
    model = initialized(load_preset("tiny-internvl2"), seed=0).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("language_model") and parameter.dim() == 2:
            parameter.data.mul_(6)
    return model


def make_prompt(number: int, model) -> tuple[Encoded, torch.Tensor]:
    """A prompt of 16 to 400 text tokens and up to 4 tiles, and the features of its tiles."""
    draw = np.random.default_rng(number)
    tiles, length, tile = int(draw.integers(0, 5)), int(draw.integers(16, 400)), model.tokens_per_tile
    image = [model.spec.image_tokens.context_id] * tiles * tile
    ids = np.array([*image, *draw.integers(10, 300, length)])
    layout = [("image", tiles)] * bool(tiles) + [("text", length)]
    place = positions(layout, tile, STRIDE, brackets=False)
    spans = [(0, len(image), tiles)] if tiles else []
    sample = Encoded(str(number), ids, ids, place, spans, None, [STRIDE] * bool(tiles))
    return sample, model.encode_images(torch.randn(tiles or 1, 3, model.image_size, model.image_size))[:tiles]


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    model = make_model()
    prompts = [make_prompt(number, model) for number in range(SAMPLES)]
    computed = [0]
    model.language_model.model.layers[0].register_forward_pre_hook(
        lambda _, args: computed.__setitem__(0, computed[0] + args[0].shape[:2].numel())
    )

    def answers(groups: list[list[int]]) -> list[list[int]]:
        """New tokens of each prompt, in order, up to its stop token."""
        replies: dict[int, list[int]] = {}
        for group in groups:
            ids, mask, place = left_padded([prompts[i][0] for i in group])
            features = torch.cat([prompts[i][1] for i in group])
            settings = {"max_new_tokens": NEW, "eos_token_id": STOP, "pad_token_id": STOP}
            rows = model.generate(ids, features=features, attention_mask=mask, position_ids=place, **settings)
            for i, row in zip(group, rows.tolist(), strict=True):
                replies[i] = row[: row.index(STOP)] if STOP in row else row
        return [replies[i] for i in range(SAMPLES)]

    def peer() -> list[list[int]]:
        return answers([[i] for i in range(SAMPLES)])

    def counted(call):
        computed[0] = 0
        return call(), computed[0]

    rows = []
    expected, theirs = counted(peer)
    lengths = [len(sample) for sample, _ in prompts]
    for size in (2, 8, 16):

        def ours(size=size):
            return answers(batches(lengths, range(SAMPLES), size))

        got, mine = counted(ours)
        assert got == expected and len(set(map(tuple, got))) > SAMPLES // 2
        times = paired(ours, peer, 3)
        rows.append(
            {
                "batch_size": size,
                "prompts": SAMPLES,
                "ours_tokens_computed": mine,
                "peer_tokens_computed": theirs,
                "ours_samples_per_s": SAMPLES / times["ours_median_s"],
                "peer_samples_per_s": SAMPLES / times["peer_median_s"],
                **times,
            }
        )
    report("generate", rows)


if __name__ == "__main__":
    main()
