"""Metrics of the engines' schedulers: how full they are, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def engine_metrics(engines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Join the statistics of all engines since the last step.

    They depend on the timing of requests: two runs with the same samples may differ here.

    Args:
        engines: of every engine, as `generation.llm.EngineStatistics.take` gives them.

    Returns:
        `engine/kv_cache_use_max` (0 to 1) and `engine/queue_max` (requests) of the fullest engine,
        `engine/preemptions` (requests whose cache was thrown away for others) of all, and
        `engine/prefix_hit_rate` (0 to 1, by tokens), if the prefix cache was asked.
    """
    if not engines:
        return {}
    metrics = {
        "engine/kv_cache_use_max": max(engine["kv_cache_use_max"] for engine in engines),
        "engine/queue_max": max(engine["queue_max"] for engine in engines),
        "engine/preemptions": sum(engine["preemptions"] for engine in engines),
    }
    if queries := sum(engine["prefix_queries"] for engine in engines):
        hits = sum(engine["prefix_hits"] for engine in engines)
        metrics["engine/prefix_hit_rate"] = hits / queries
    return metrics
