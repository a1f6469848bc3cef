"""Our models in lmms-eval, by its entry-point group `lmms_eval.models`: nothing to configure once both are installed.

    lmms-eval --model vlm --model_args pretrained=runs/quickstart/train/quickstart-convllava-stage3/model --tasks pope

Arguments: `pretrained` and those of `HarnessModel`. Facts: lmms-eval 0.7.3, models/registry_v2.py and api/model.py.
"""

import os
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.records import Message, Part, image, text, video
from vlm.eval.harness.model import HarnessModel, Question, media_in_front, new_token_limit

MAX_NEW_TOKENS = 1024
"""Limit of a task that names none, as in lmms-eval's own models."""


def manifest() -> ModelManifest:
    """Return what the entry point declares: the model's name and its class."""
    return ModelManifest("vlm", chat_class_path=f"{__name__}.{LmmsEvalModel.__name__}", aliases=("convllava", "v2pe"))


class LmmsEvalModel(lmms):  # type: ignore[misc]  # lmms-eval is optional and untyped
    """A checkpoint of ours as a chat model of lmms-eval.

    A stop token of the checkpoint's template ends an answer; `until` of a task is not applied, as in the published
    adapters.

    Raises:
        ConfigError: Several processes; `vlm eval --shard` divides items among them.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        stride: float | str | None = "model",
        positions: str = "exact",
        tiles: int | None = None,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        super().__init__()
        if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise ConfigError(f"{count} processes", expected="one", fix="`vlm eval --shard I/N` for several")
        size = int(batch_size) if str(batch_size).isdigit() else 8  # it may say `auto`; a batch changes no answer
        settings: dict[str, Any] = {"stride": None if stride == "none" else stride, "positions": positions}
        self.model = HarnessModel(
            pretrained, tiles=tiles, batch_size=size, device=device or "auto", dtype=dtype, **settings
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return the answers to `generate_until` requests, in order."""
        return self.model.answer(self._question(request) for request in requests)

    def _question(self, request: Any) -> Question:
        _, doc_to_messages, settings, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return [self._message(message) for message in messages], new_token_limit(settings, MAX_NEW_TOKENS)

    def _message(self, message: dict[str, Any]) -> Message:
        content = message["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {"role": message["role"], "content": media_in_front([self._part(part) for part in content])}

    def _part(self, part: dict[str, Any]) -> Part:
        if part["type"] == "text":
            return text(part["text"])
        if part["type"] == "image":
            return image(part["url"] if isinstance(part["url"], str) else self.model.store_picture(part["url"]))
        if part["type"] == "video" and isinstance(part["url"], str):
            start, end = part.get("start_time"), part.get("end_time")
            return video(part["url"], None if start is None or end is None else (start, end))
        raise DataError(f"a part of type {part['type']!r}", expected="text, image, or video as a path")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuse tasks that compare likelihoods: raise ConfigError."""
        raise ConfigError(
            "a task of type loglikelihood", expected="generate_until", fix="choose its generative variant"
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse tasks of several rounds: raise ConfigError."""
        raise ConfigError("a task of several rounds", expected="generate_until: one question, one answer")
