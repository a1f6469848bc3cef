"""Whose turn it is: which prompts a step reads, and how much of each.

A prompt waits for every request that needs less work than the prompt has left, so that a short one beside a long one is
answered as if it were alone. But those that came later may overtake it only by the work of four pieces: then it reads
one, whoever is there, so that it gets half of the work where they keep coming. Work is counted in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vlm.models.attention import RowCache
from vlm.models.engine.caches import PromptKeys
from vlm.models.engine.request import GenerationRequest
from vlm.models.engine.sampling import Chooser, ReplyText

WRITTEN = 16
"""Prompt tokens that are read in the time of one step of writing: 15 for SmolLM2-135M on one thread of a CPU."""


@dataclass(eq=False)
class Running:
    """A request that has been started: `done` of its prompt's tokens are cached."""

    request: GenerationRequest
    keys: PromptKeys
    row: RowCache
    plain: bool
    chooser: Chooser
    text: ReplyText
    tile_of: list[int]
    """Number of tiles whose placeholders begin before each token, one more than tokens."""
    done: int = 0
    held: int = 0
    """Work, in tokens, by which requests that came later have overtaken the rest of its prompt."""
    position: float = 0.0
    last: int | None = None
    ids: list[int] = field(default_factory=list)
    features: dict[int, Tensor] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Number of prompt tokens that are not cached yet."""
        return len(self.request.prompt) - self.done

    @property
    def work(self) -> int:
        """Return the work, in tokens, that the request is known to need: what it reads and what it has written."""
        return len(self.request.prompt) - self.request.cached_tokens + WRITTEN * self.request.new_tokens


def readers(running: Sequence[Running], piece: int) -> list[Running]:
    """Return whose prompts may be read in this step, the first of them first.

    Args:
        running: requests in the order in which they came.
        piece: prompt tokens that a step reads at most.
    """
    reading = [r for r in running if r.left]
    due = [r for r in reading if is_due(r, piece)]
    free = [r for r in reading if not is_due(r, piece) and not any(q.work < r.left for q in running if q is not r)]
    return due + sorted(free, key=lambda r: r.left)


def is_due(r: Running, piece: int) -> bool:
    """Return whether a prompt has been overtaken by so much that its next piece waits for nobody."""
    return r.held >= 4 * piece


def count_overtaking(running: Sequence[Running], served: dict[int, int]) -> None:
    """Note by how much each prompt was overtaken in a step by requests that came later.

    Args:
        running: requests in the order in which they came.
        served: the tokens that the step read of a prompt, 0 for one more token of a reply, by the request's `id()`.
    """
    later = 0
    for r in reversed(running):
        read = served.get(id(r), 0)
        r.held = max(0, r.held + later - read)
        if id(r) in served:
            later += read if later else WRITTEN + read  # a step costs something, however many it serves
