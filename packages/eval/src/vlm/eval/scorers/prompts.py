"""Prompts, frames and tiles of the published evaluators, under the names of the golden fixtures.

They are compared with the published values like scorers, but score nothing: loaders and the image pipeline use them.
"""

from pathlib import PurePosixPath
from typing import Any

from vlm.core.sample.tiling import plan_tiles
from vlm.eval.loaders.haystack import mmniah_prompt
from vlm.eval.loaders.milebench import milebench_prompt
from vlm.eval.loaders.video import mvbench_frame_indices, mvbench_qa_template
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer


def _mmniah_prompt(item: dict[str, Any], *, compat: Compat = "upstream") -> dict[str, Any]:
    marks = item["context"].count("<image>") + item["question"].count("<image>")
    both = item["meta"]["choices"] is not None and item["meta"]["choices_image_path"] is not None
    if marks != len(item["images_list"]) or both:
        raise AssertionError("marks and images differ in number, or two kinds of options (as published)")
    question, images = mmniah_prompt(item)
    return {"context": item["context"], "images_list": images, "question": question, "answer": item["answer"]}


def _milebench_prompt(record: dict[str, Any], *, compat: Compat = "upstream", **settings: Any) -> dict[str, Any]:
    question, images = milebench_prompt(record, **settings)
    root = PurePosixPath("ROOT/images")
    return {
        "question": question,
        "images": [str(root / name) for name in images],
        "response": str(record["response"]),
    }


def _dynamic_tiles(
    width: int, height: int, max_num: int, use_thumbnail: bool, *, compat: Compat = "upstream"
) -> dict[str, Any]:
    plan = plan_tiles(width, height, max_tiles=max_num, thumbnail=use_thumbnail)
    return {"grid": list(plan.grid), "tiles": plan.n_tiles, "boxes": [list(box) for box in plan.boxes]}


SCORERS = {
    "dynamic_tiles": Scorer(_dynamic_tiles),
    "milebench_prompt": Scorer(_milebench_prompt),
    "mmniah_prompt": Scorer(_mmniah_prompt),
    "mvbench_frame_indices": Scorer(mvbench_frame_indices),
    "mvbench_qa_template": Scorer(mvbench_qa_template),
}
