"""Teacher forcing: the model's most likely token at each token of a given answer, from one forward pass.

For contexts too long to generate from (MM-NIAH at 128k to 1M tokens). Items end with the answer, as the assistant's
turn. Source: OpenGVLab/V2PE, evaluator of the long variant, which spreads a sample over a ring of processes: so does
`RingBackend`; `TeacherForcedBackend` runs in one process.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vlm.core.errors import CheckpointError, HardwareError
from vlm.core.sample.encoded import IGNORE, Encoded
from vlm.eval.backends.base import BackendReply, Stopped
from vlm.eval.backends.native import NativeBackend

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.models.sequence.group import SequenceGroup


NOT_FINITE = 2**62
"""Stands for a token that cannot be predicted, above all token ids: the processes of a ring take the greatest."""


class TeacherForcedBackend(NativeBackend):
    """A checkpoint that predicts given answers.

    A reply is the text of the most likely tokens, one for each token of the answer without the one that ends it.

    >>> backend = TeacherForcedBackend(Checkpoint("pretrained/V2PE"), stride=64)              # doctest: +SKIP
    """

    generation_prompt: ClassVar[bool] = False

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.settings = {**self.settings, "teacher_forced": True}

    def answer(self, encoded: Sequence[Encoded], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[BackendReply]:
        """Return the predicted text of each given answer, in order; the limits do not apply: nothing is generated."""
        from vlm.models.answers import Reply as Text

        tokenizer = self.processor.tokenizer
        predicted = [self.predicted(sample) for sample in encoded]
        return [Text(tokenizer.decode(ids, skip_special=True).strip(), len(ids), True) for ids in predicted]

    def predicted(self, sample: Encoded) -> list[int]:
        """Return the most likely token id at each position of the answer, given everything before it.

        Raises:
            CheckpointError: Logits that are not finite.
        """
        import torch

        from vlm.models.generation.decoding import check_finite

        at = answer_positions(sample, self.processor.stop_ids)
        with torch.inference_mode():
            hidden = self._hidden(sample)[0, torch.from_numpy(at - 1)]
            logits = check_finite(self.checkpoint.model.language_model.lm_head(hidden))
            ids: list[int] = logits.argmax(-1).tolist()
            return ids

    def _hidden(self, sample: Encoded) -> "Tensor":
        """Return hidden states [1, L, C] of the sample as one packed document.

        No mask of L x L is made, and no logits of tokens that are not asked for.
        """
        import torch

        from vlm.models.answers import encode_unique, left_padded

        model = self.checkpoint.model
        ids, _, positions = (tensor.to(self.checkpoint.device) for tensor in left_padded([sample]))
        features = encode_unique(model, self.processor, [sample], 32, self.checkpoint.features_of(self.processor))
        borders = torch.tensor([0, len(sample)], dtype=torch.int32, device=ids.device)
        embeddings = model.embed(ids, features=features)
        document = model.decode(embeddings, attention_mask=None, position_ids=positions, cu_seqlens=borders)
        hidden: Tensor = document.last_hidden_state
        return hidden


class RingBackend(TeacherForcedBackend):
    """Teacher forcing over a ring of processes, each of which holds its share of a sample.

    The first process runs `vlm eval` with this backend, the others `follow`. Answers equal those of one process up to
    rounding.
    """

    def __init__(self, *args: Any, group: "SequenceGroup", **settings: Any):
        super().__init__(*args, **settings)
        self.group = group

    def answer(self, encoded: Sequence[Encoded], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[BackendReply]:
        """Return the predicted texts, in order.

        Raises:
            Stopped: A process failed on a sample; the others wait in the middle of it.
        """
        try:
            return super().answer(encoded, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)
        except RuntimeError as error:  # the others wait in the middle of a sample: no next one can follow
            what = f"the ring of {self.group.size} processes failed on {', '.join(sample.id for sample in encoded)}"
            fix = "use more processes or a lower --max-length, then rerun the same command"
            raise Stopped(HardwareError(f"{what}: {error}", fix=fix)) from error

    def predicted(self, sample: Encoded) -> list[int]:
        """Return the most likely token ids, after sending the sample to the other processes."""
        self.group.shared(sample)
        predicted = self.share(sample)
        if NOT_FINITE in predicted:  # the other processes are done with the sample
            raise CheckpointError(
                "logits are not finite (NaN or infinity)",
                expected="numbers",
                fix="float16 overflows: try --dtype bfloat16 or float32; else the weights are damaged: get them again",
            )
        return predicted

    def follow(self) -> None:
        """Take part in each sample until `end`; for all processes but the first."""
        while (sample := self.group.shared()) is not None:
            self.share(sample)

    def end(self) -> None:
        """Release the other processes: no more samples will come."""
        self.group.shared(None)

    def share(self, sample: Encoded) -> list[int]:
        """Compute this process's share of one sample; return the predictions of all (NOT_FINITE: no number)."""
        import torch

        from vlm.models.sequence_parallel import SharedRows, spread

        model = self.checkpoint.model
        rows = model.run_rows if isinstance(model.run_rows, SharedRows) else spread(model, self.group, "ring")
        arrays = (sample.input_ids, sample.position_ids)
        ids, positions = (torch.from_numpy(array)[None].to(self.checkpoint.device) for array in arrays)
        pixels = None if sample.pixels is None else self.processor.pixels(sample.pixels)
        borders = torch.tensor([0, len(sample)], dtype=torch.int32)
        before = torch.from_numpy(answer_positions(sample, self.processor.stop_ids) - 1)
        with torch.inference_mode():
            hidden, shard = rows.held_states(model, ids, pixels, positions, borders, sample.grids)
            place = {int(at): number for number, at in enumerate(shard.places)}
            predicted = torch.full((len(before),), -1, device=ids.device)
            for number, at in enumerate(before.tolist()):
                if at in place:
                    logits = model.language_model.lm_head(hidden[0, place[at]])
                    predicted[number] = logits.argmax() if torch.isfinite(logits).all() else NOT_FINITE
            return self.group.greatest(predicted).tolist()


def answer_positions(sample: Encoded, stop_ids: Sequence[int]) -> NDArray[np.int64]:
    """Return the indices of the tokens of the last answer, int64 [n], without the token that ends it."""
    at = np.flatnonzero(sample.labels != IGNORE)
    return at[:-1] if len(at) and sample.input_ids[at[-1]] in stop_ids else at
