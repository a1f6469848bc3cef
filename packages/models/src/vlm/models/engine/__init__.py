"""Many conversations at once on one model: step-level batching, a shared prefix cache, queue, cancellation.

>>> with Engine(model, processor) as engine:                                          # doctest: +SKIP
...     reply = engine.ask(processor.encode(messages), Sampling(max_new_tokens=64))
"""

from vlm.models.engine.engine import Engine, Limits
from vlm.models.engine.request import Busy, Event, GenerationRequest, Sampling, TooLong
from vlm.models.engine.sampling import TokenChoice

__all__ = ["Busy", "Engine", "Event", "GenerationRequest", "Limits", "Sampling", "TokenChoice", "TooLong"]
