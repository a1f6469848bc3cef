"""Four questions on one long document: the document prefilled once, against one full prefill for each question.

The document holds text and images at V2PE positions. Both sides end with the logits of the first new token, equal to
1e-5. A ratio on a CPU shows the algorithm, not the speed on a GPU. Companion: tokens through the language model.
"""

import torch
from harness import paired, report

from vlm.core.sample.positions import positions
from vlm.models import load_preset
from vlm.models.checkpoint.load import initialized

QUESTIONS, LENGTH, STRIDE = 4, 32, 2


@torch.inference_mode()
def main() -> None:
    shape = {"width": 256, "depth": 4, "heads": 8, "kv_heads": 4, "mlp_width": 512, "max_positions": 65_536}
    model = initialized(load_preset("tiny-internvl2").with_language(**shape), seed=0).eval()
    tile, context = model.tokens_per_tile, model.spec.image_tokens.context_id
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    computed = [0]
    model.language_model.model.layers[0].register_forward_pre_hook(
        lambda _, args: computed.__setitem__(0, computed[0] + args[0].shape[:2].numel())
    )
    rows = []
    for pages in (2, 4):  # a page is 480 tokens of text and an image of 4 tiles
        draw = torch.Generator().manual_seed(pages)
        text = torch.randint(10, 300, (pages, 480), generator=draw)
        image = torch.full((pages, 4 * tile), context)
        document = torch.cat([text, image], dim=1).view(1, -1).expand(QUESTIONS, -1)
        whole = torch.cat([document, torch.randint(10, 300, (QUESTIONS, LENGTH), generator=draw)], dim=1)
        layout = [("text", 480), ("image", 4)] * pages + [("text", LENGTH)]
        place = torch.from_numpy(positions(layout, tile, STRIDE, brackets=False)).expand(QUESTIONS, -1)
        pixels = torch.randn(pages * 4, 3, model.image_size, model.image_size, generator=draw)
        n = document.shape[1]

        def prefill(whole=whole, place=place, pixels=pixels, n=n):
            prefix = model.prefill(whole[:1, :n], pixel_values=pixels, position_ids=place[:1, :n])
            return prefix, *prefix.rest(whole, place)

        def one_by_one(prefill=prefill):
            prefix, ids, place = prefill()
            each = zip(ids.split(1), place.split(1), strict=True)
            return torch.cat([model.generate(i, prefix=prefix, position_ids=p, **settings).logits[0] for i, p in each])

        def together(prefill=prefill):
            prefix, ids, place = prefill()
            return model.generate(ids, prefix=prefix, position_ids=place, **settings).logits[0]

        def peer(whole=whole, place=place, pixels=pixels):
            each = zip(whole.split(1), place.split(1), strict=True)
            return torch.cat(
                [model.generate(i, pixel_values=pixels, position_ids=p, **settings).logits[0] for i, p in each]
            )

        def tokens(call):
            computed[0] = 0
            return call(), computed[0]

        expected, theirs = tokens(peer)
        for name, ours in (("one by one", one_by_one), ("as a batch", together)):
            got, mine = tokens(ours)
            error = (got - expected).abs().max().item()
            assert error < 1e-5, error
            rows.append(
                {
                    "document_tokens": n,
                    "questions": f"{QUESTIONS} {name}",
                    "max_logit_difference": error,
                    "ours_tokens_computed": mine,
                    "peer_tokens_computed": theirs,
                    **paired(ours, peer, 3),
                }
            )
    report("prefix", rows)


if __name__ == "__main__":
    main()
