"""Many conversations at once on one model: step-level batching, a shared prefix cache, queue, cancellation.

>>> with ChatEngine(model, processor) as engine:                                          # doctest: +SKIP
...     reply = engine.ask(processor.encode(messages), Sampling(max_new_tokens=64))
"""

from vlm.models.engine.engine import ChatEngine, Limits
from vlm.models.engine.request import Busy, ContextOverflow, Event, GenerationRequest, Sampling, TokenChoice

__all__ = ["Busy", "ChatEngine", "ContextOverflow", "Event", "GenerationRequest", "Limits", "Sampling", "TokenChoice"]
