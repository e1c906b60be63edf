"""Report of the stage: report.json, and the same as tables for the screen."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.blend import Draw
from rlhf_ray.data.prepare.prepare import PreparationResult

_WIDTH = 100


def report_of(
    result: PreparationResult,
    sources: Sequence[PreparedSource],
    prepare: PrepareConfig,
    *,
    seed: int,
) -> dict[str, Any]:
    """The content of report.json; the same inputs give the same report, byte for byte."""
    removed: Counter[str] = Counter()
    for counts in result.sources.values():
        removed.update(counts.removed)
    return {
        "stage": "prepare_data",
        "seed": seed,
        "settings": dataclasses.asdict(prepare),
        "removed": dict(removed.most_common()),
        "sources": {source.name: _source_json(result, source) for source in sources},
        "datasets": {name: _dataset_json(result, name) for name in result.datasets},
    }


def _source_json(result: PreparationResult, source: PreparedSource) -> dict[str, Any]:
    counts = result.sources[source.name]
    return {
        "path": source.path,
        "layout": source.layout,
        "kind": source.kind,
        "read": counts.read,
        "made": counts.made,
        "kept": counts.kept,
        "removed": dict(counts.removed.most_common()),
        "found": result.notes[source.name],
    }


def _dataset_json(result: PreparationResult, name: str) -> dict[str, Any]:
    dataset, draws, evals = result.datasets[name], result.draws[name], result.evals[name]
    return {
        "kind": dataset.kind,
        "train": sum(draw.drawn for draw in draws.values()),
        "eval": sum(evals.values()),
        "characters": dataset.lengths.to_json(),
        "tasks": dict(dataset.tasks),
        "sources": {
            source: {
                **({} if source not in draws else _draw_json(draws[source])),
                "eval": evals.get(source, 0),
            }
            for source in dict.fromkeys((*draws, *evals))
        },
    }


def _draw_json(draw: Draw) -> dict[str, Any]:
    return {
        "available": draw.available,
        "wanted": draw.wanted,
        "train": draw.drawn,
        "epochs": round(draw.epochs, 4),
    }


def report_tables(report: dict[str, Any]) -> str:
    """The report as text tables, without a newline at the end."""
    tables = [_sources_table(report), _sets_table(report)]
    if report["removed"] or any(source["found"] for source in report["sources"].values()):
        tables.insert(1, _removed_table(report))
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, force_terminal=False)
    for table in tables:
        console.print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def _table(title: str, *columns: str, words: int = 1) -> Table:
    """A table whose first columns hold words and whose others hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", overflow="fold")
    return table


def _sources_table(report: dict[str, Any]) -> Table:
    table = _table("Sources", "source", "kind", "read", "made", "removed", "kept", words=2)
    for name, source in report["sources"].items():
        counts = (source["read"], source["made"], sum(source["removed"].values()), source["kept"])
        table.add_row(name, source["kind"], *(f"{count:,}" for count in counts))
    return table


def _removed_table(report: dict[str, Any]) -> Table:
    """Reasons of removal, and findings that removed nothing."""
    names = list(report["sources"])
    table = _table("Removed and found", "what", *names)
    for reason in report["removed"]:
        counts = [report["sources"][name]["removed"].get(reason, 0) for name in names]
        table.add_row(f"removed: {reason}", *(f"{count:,}" for count in counts))
    found = dict.fromkeys(note for name in names for note in report["sources"][name]["found"])
    for note in found:
        counts = [report["sources"][name]["found"].get(note, 0) for name in names]
        table.add_row(note, *(f"{count:,}" for count in counts))
    return table


def _sets_table(report: dict[str, Any]) -> Table:
    table = _table("Sets", "set", "source", "train", "share", "epochs", "eval", words=2)
    for name, dataset in report["datasets"].items():
        for source, counts in dataset["sources"].items():
            train = counts.get("train", 0)
            table.add_row(
                name,
                source,
                f"{train:,}",
                f"{train / dataset['train']:.1%}",
                f"{counts.get('epochs', 0):.2f}",
                f"{counts['eval']:,}",
            )
        table.add_row(name, "all", f"{dataset['train']:,}", "", "", f"{dataset['eval']:,}")
    return table
