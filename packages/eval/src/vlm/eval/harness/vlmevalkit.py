"""Our models in VLMEvalKit: registered in its table of models, then its own command runs. None of its files changes.

    python -m vlm.eval.harness.vlmevalkit --weights runs/quickstart/train/quickstart-convllava-stage3/model --data POPE

`--weights` and `--name`, `--stride`, `--positions`, `--tiles`, `--max-new-tokens`, `--device`, `--dtype` are ours; all
others are VLMEvalKit's (`--data`, `--work-dir`, `--mode`, `--judge`, …). Facts: ms-vlmeval 0.0.20, vlm/base.py, run.py.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

from vlm.core.errors import VlmError
from vlm.core.sample.records import Part, image, text, video
from vlm.eval.harness.model import HarnessModel, media_in_front

PART: dict[str, Callable[[str], Part]] = {"text": text, "image": image, "video": video}
"""Type of a VLMEvalKit part -> function(its value) -> part of ours."""


class VlmEvalKitModel(BaseModel):  # type: ignore[misc]  # VLMEvalKit is optional and untyped
    """A checkpoint of ours as a model of VLMEvalKit, with its datasets' prompts. `settings`: of `HarnessModel`."""

    INTERLEAVE = True
    VIDEO_LLM = True
    is_api = False

    def __init__(self, weights: str, max_new_tokens: int = 1024, **settings: Any):
        super().__init__()
        self.model, self.max_new_tokens = HarnessModel(weights, **settings), max_new_tokens

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Return the answer to one question: parts of type text, image or video with their `value`."""
        parts = [PART[part["type"]](part["value"]) for part in message]
        (reply,) = self.model.answer([([{"role": "user", "content": media_in_front(parts)}], self.max_new_tokens)])
        return reply


def register(name: str, weights: str, **settings: Any) -> None:
    """Register a checkpoint with VLMEvalKit in this process.

    >>> register("demo", "runs/quickstart/train/quickstart-v2pe-sft/model"); vlmeval.run.main()     # doctest: +SKIP
    """
    supported_VLM[name] = partial(VlmEvalKitModel, weights=weights, **settings)


def main() -> None:
    """Run VLMEvalKit's command with our model in its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint folder")
    parser.add_argument("--name", default="vlm", help="name of the model in VLMEvalKit's files")
    parser.add_argument("--stride", type=float, help="V2PE stride; default: the checkpoint's own")
    parser.add_argument("--positions", choices=["exact", "float32"], default="exact")
    parser.add_argument("--tiles", type=int, help="tile budget per image")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    ours, theirs = parser.parse_known_args()
    settings = vars(ours)
    name = settings.pop("name")
    if settings["stride"] is None:
        del settings["stride"]
    register(name, **settings)
    sys.argv = ["vlmeval", "--model", name, *theirs]
    from vlmeval import run

    try:
        run.main()
    except VlmError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
