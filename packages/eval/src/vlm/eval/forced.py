"""Teacher forcing: what the model would have said at each token of a given answer, from one forward pass.

For contexts too long to generate from (MM-NIAH at 128k to 1M tokens). Items end with the answer, as the assistant's
turn. Source: OpenGVLab/V2PE, evaluator of the long variant, which spreads a sample over a ring of processes; here one
process holds it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.core.chat import prompt_text
from vlm.core.encode import Encoded
from vlm.core.encoded import IGNORE
from vlm.core.records import Message
from vlm.eval.backends import NativeBackend, Reply, TooLong

if TYPE_CHECKING:
    from torch import Tensor


class TeacherForcedBackend(NativeBackend):
    """A checkpoint that predicts given answers. A reply is the text of the most likely tokens, one for each token of
    the answer without the one that ends it.

    >>> backend = TeacherForcedBackend(Checkpoint("pretrained/V2PE"), stride=64)              # doctest: +SKIP
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.settings = {**self.settings, "teacher_forced": True}

    def prompt(self, messages: list[Message]) -> str:
        spec = self.processor.spec
        return prompt_text(messages, spec.template, spec.system)

    def encode(self, item_id: str, messages: list[Message]) -> Encoded:
        encoded = self.processor.encode(messages, strides=self.stride, id=item_id, generation_prompt=False)
        if self.max_length and len(encoded) > self.max_length:
            raise TooLong(f"{len(encoded):,} tokens", expected=f"at most {self.max_length:,} (--max-length)")
        return self._float32(encoded) if self.positions == "float32" else encoded

    def answer(self, encoded: Sequence[Encoded], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[Reply]:
        from vlm.models.generate import Reply as Text

        tokenizer = self.processor.tokenizer
        predicted = [self.predicted(sample) for sample in encoded]
        return [Text(tokenizer.decode(ids, skip_special=True).strip(), len(ids), True) for ids in predicted]

    def predicted(self, sample: Encoded) -> list[int]:
        """The most likely token at each position of the answer, given everything before it."""
        import torch

        at = answer_positions(sample, self.processor.stop_ids)
        with torch.inference_mode():
            hidden = self._hidden(sample)[0, torch.from_numpy(at - 1)]
            return self.checkpoint.model.language_model.lm_head(hidden).argmax(-1).tolist()

    def _hidden(self, sample: Encoded) -> "Tensor":
        """[1, L, C], the whole sample as one packed document: no mask of L x L, no logits of what is not asked."""
        import torch

        from vlm.models.generate import encode_unique, left_padded

        model = self.checkpoint.model
        ids, _, positions = (tensor.to(self.checkpoint.device) for tensor in left_padded([sample]))
        features = encode_unique(model, self.processor, [sample], 32)
        borders = torch.tensor([0, len(sample)], dtype=torch.int32, device=ids.device)
        embeddings = model.embed(ids, features=features)
        document = model.decode(embeddings, attention_mask=None, position_ids=positions, cu_seqlens=borders)
        return document.last_hidden_state


def answer_positions(sample: Encoded, stop_ids: Sequence[int]) -> np.ndarray:
    """Indices of the tokens of the last answer, int64, without the token that ends it."""
    at = np.flatnonzero(sample.labels != IGNORE)
    return at[:-1] if len(at) and sample.input_ids[at[-1]] in stop_ids else at
