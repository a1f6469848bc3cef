"""A miniature of easyVQA asked in batches of 8 and one by one, against a loop over transformers' `generate`.

100 questions, four about each picture (9.7 in the published set), 256 tokens a picture as the published models have, 8
new tokens, float32, one thread; the weights are random, and both sides give the same answers. Ours is `run_evaluation`
without loading the checkpoint: planning, hashing of the pictures, scores and all files included. The peer is the loop
that a user would write: the processor, `generate`, `batch_decode`, batches padded on the left in the order of the
questions. Its pictures go through the processor's PIL backend, whose pixels are ours. Companions: tiles encoded and
tokens through the language model.
"""

import json
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from harness import paired, profiled, report
from peers import checkpoint, make_tokenizer, small
from PIL import Image

from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation

PICTURES, NEW = 25, 8


def counting(model: Any, tower: Any, counts: Counter[str]) -> None:
    """Count the tiles and the tokens that a model computes, from now on."""
    tower.register_forward_pre_hook(
        lambda _, args, kw: counts.update(tiles=len((*args, *kw.values())[0])), with_kwargs=True
    )
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.0") and "language_model" in name)
    layer.register_forward_pre_hook(
        lambda _, args, kw: counts.update(tokens=(*args, *kw.values())[0].shape[:2].numel()), with_kwargs=True
    )


def peer_loop(folder: Path) -> tuple[Any, Any]:
    """The peer's model, and its function (questions, size of batches) -> answers."""
    processor = transformers.AutoProcessor.from_pretrained(folder, padding_side="left")
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answers(questions: list[tuple[str, str]], size: int) -> list[str]:
        found: list[str] = []
        for start in range(0, len(questions), size):
            chats = [
                [{"role": "user", "content": [{"type": "image", "image": Image.open(path).convert("RGB")}, words]}]
                for path, asked in questions[start : start + size]
                for words in [{"type": "text", "text": asked}]
            ]
            inputs = processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
            made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            texts = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found += [text.strip() for text in texts]
        return found

    return model, answers


def main(profile: bool = False) -> None:
    torch.set_num_threads(1)
    table = load_benchmark("easyVQA")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ours_at, peer_at = checkpoint(small(448, depth=3), place, make_tokenizer(place), dtype=torch.float32, gain=6)
        data = make_mini("easyVQA", place / "data", n=PICTURES)
        items = load_items(table, data)
        backend = NativeBackend(Checkpoint(ours_at, device="cpu"))
        model, ask = peer_loop(peer_at)
        questions = []
        for item in items:
            picture, words = item.messages[0]["content"]
            questions.append((picture["path"], words["text"].removeprefix("\n")))

        def ours(size: int) -> list[str]:
            backend.checkpoint.features = None  # of the run before
            run_evaluation(table, backend, place / "out", Options(batch_size=size), data=data)
            lines = (place / "out" / "results.jsonl").read_text().splitlines()
            (place / "out" / "outcomes.jsonl").unlink()
            return [json.loads(line)["completion"] or "" for line in lines]

        mine, theirs = Counter[str](), Counter[str]()
        counting(backend.checkpoint.model, backend.checkpoint.model.encoder, mine)
        counting(model, model.model.vision_tower.embeddings.patch_embeddings, theirs)
        rows = []
        for size in (8, 1):
            mine.clear(), theirs.clear()
            got, want = ours(size), ask(questions, size)
            assert got == want and len(set(got)) > PICTURES
            computed = {f"ours_{k}": n for k, n in mine.items()} | {f"peer_{k}": n for k, n in theirs.items()}
            by_us, by_peer = partial(ours, size), partial(ask, questions, size)
            if profile:
                print(size, "ours", profiled(by_us), "peer", profiled(by_peer), sep="\n")
                continue
            times = paired(by_us, by_peer, warm_up=False)
            rows.append({"batch_size": size, "questions": len(questions), "pictures": PICTURES, **computed, **times})
        if rows:
            report("peer_answers", rows, {"transformers": transformers.__version__})


if __name__ == "__main__":
    main(profile="--profile" in sys.argv)
