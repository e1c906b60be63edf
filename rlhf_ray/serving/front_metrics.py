"""Metrics of the endpoint, and those of the vLLM servers behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from rlhf_ray.serving.fleet import Fleet

__all__ = ["CONTENT_TYPE", "FrontMetrics"]

_PREFIX = "rlhf_ray_serve"
_ENGINES = "vllm:"
# Answers take from a fraction of a second to minutes.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class FrontMetrics:
    """Counters of one endpoint, in Prometheus' format."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Requests by path and status; 499 is a client that went away.",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}_request_seconds",
            "From the head of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        in_flight = Gauge(
            f"{_PREFIX}_requests_in_flight", "Requests under way.", registry=self._registry
        )
        in_flight.set_function(lambda: fleet.in_flight)
        ready = Gauge(f"{_PREFIX}_replicas_ready", "Replicas that answer.", registry=self._registry)
        ready.set_function(lambda: fleet.num_ready)
        self._restarts = Gauge(
            f"{_PREFIX}_replica_restarts",
            "Times that a replica was started again.",
            ("replica",),
            registry=self._registry,
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    async def text(self) -> bytes:
        """All metrics as text; vLLM's get a label with the index of their replica."""
        for replica in self._fleet.replicas:
            self._restarts.labels(str(replica.index)).set(replica.restarts)
        texts = await asyncio.gather(*(replica.metrics() for replica in self._fleet.replicas))
        engines = CollectorRegistry()
        engines.register(_Families(list(merged(enumerate(texts)))))
        return generate_latest(self._registry) + generate_latest(engines)


class _Families:
    """Collector of metrics that were counted by other processes, for `generate_latest`."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def merged(texts: Iterable[tuple[int, str]]) -> Iterator[Metric]:
    """Merge vLLM's metrics of several replicas into one metric family per name.

    Args:
        texts: pairs of a replica's index and its metrics in Prometheus' format.
    """
    families: dict[str, Metric] = {}
    for index, text in texts:
        for found in text_string_to_metric_families(text):
            if not found.name.startswith(_ENGINES):
                continue
            family = families.setdefault(
                found.name, Metric(found.name, found.documentation, found.type)
            )
            for sample in found.samples:
                labels = {"replica": str(index), **sample.labels}
                family.add_sample(sample.name, labels, sample.value)
    yield from families.values()
