"""The counters of the engines in Prometheus' text format."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vlm.cli.server.served import ServedModel

ENDED = ("stop", "length", "cancelled", "timeout", "error")
TOTALS = {
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Tokens of prompts that were cached",
    "new_tokens": "Tokens of replies",
    "tiles": "Tiles encoded",
    "steps": "Steps of the engine",
}


class EngineMetrics:
    """Reads the engines when they are asked for."""

    def __init__(self, models: dict[str, ServedModel]):
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        requests = CounterMetricFamily("vlm_requests", "Requests by how they ended", labels=["model", "ended"])
        for name, model in self.models.items():
            for ended in ENDED:
                requests.add_metric([name, ended], model.engine.counts[ended])
        yield requests
        for key, text in TOTALS.items():
            total = CounterMetricFamily(f"vlm_{key}", text, labels=["model"])
            for name, model in self.models.items():
                total.add_metric([name], model.engine.counts[key])
            yield total
        now: dict[str, tuple[str, Callable[[ServedModel], int]]] = {
            "running": ("Replies being written", lambda m: len(m.engine.running)),
            "waiting": ("Requests in the queue", lambda m: len(m.engine.waiting)),
            "prefix_bytes": ("Bytes of cached keys and values", lambda m: m.engine.prefixes.nbytes),
        }
        for key, (text, value) in now.items():
            gauge = GaugeMetricFamily(f"vlm_{key}", text, labels=["model"])
            for name, model in self.models.items():
                gauge.add_metric([name], value(model))
            yield gauge


def metrics_of(models: dict[str, ServedModel]) -> str:
    """Return all metrics as text."""
    registry = CollectorRegistry()
    registry.register(EngineMetrics(models))
    return generate_latest(registry).decode()
