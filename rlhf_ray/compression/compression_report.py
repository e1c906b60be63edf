"""Report on compressed models: compression.json and the table of sizes, speeds and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.compression.request import Compressed
from rlhf_ray.generation.speed import Speed
from rlhf_ray.observe.markdown import markdown_table

# Increased when a key of compression.json is renamed or changes its meaning; new keys may be added
# without.
SCHEMA = 1
ORIGINAL = "original"
_WEIGHTS = (".safetensors", ".bin")
_NOTHING = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form of the model (compressed, or the original) with its measurements.

    Attributes:
        speed: None if the method failed.
    """

    compressed: Compressed
    speed: Speed | None

    @property
    def runs(self) -> bool:
        """Whether this machine's engine runs the form."""
        return self.speed is not None and self.speed.tokens_per_s is not None


def weight_bytes(folder: Path) -> int:
    """Size of the files with the weights."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.endswith(_WEIGHTS))


def describe(forms: Sequence[Form], evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Content of compression.json.

    Args:
        forms: all forms, the original first.
        evaluation: evaluation.json of the forms that the engine runs; None without rewards.
    """
    models = {} if evaluation is None else evaluation["models"]
    return {
        "schema": SCHEMA,
        "forms": {f.compressed.name: _describe(f, models.get(f.compressed.name)) for f in forms},
    }


def _describe(form: Form, evaluated: Mapping[str, Any] | None) -> dict[str, Any]:
    compressed, speed = form.compressed, form.speed
    path = compressed.path
    answers = (evaluated or {}).get("greedy") or (evaluated or {}).get("sampled")
    return {
        "path": None if path is None else str(path),
        "error": compressed.error,
        "seconds": compressed.seconds,
        "bytes": None if path is None else weight_bytes(path),
        "zero_share": compressed.zero_share,
        "perplexity": compressed.perplexity,
        "runs_here": form.runs,
        "engine_error": "" if speed is None else speed.error,
        "tokens_per_s": None if speed is None else speed.tokens_per_s,
        "reward": None if answers is None else answers["reward"],
        "win_rate": None if answers is None else answers.get("win_rate"),
    }


def table(report: Mapping[str, Any]) -> str:
    """Table with a row for each form, and a line for each form that failed or does not run here."""
    forms = report["forms"]
    whole = forms[ORIGINAL]["bytes"]
    heading = (
        "",
        "MB",
        "of the original",
        "zeros",
        "perplexity",
        "tokens/s",
        "reward",
        "wins against the original",
    )
    rows: list[Sequence[str]] = [heading]
    for name, form in forms.items():
        size = form["bytes"]
        rows.append(
            (
                name,
                _number(size and size / 1e6),
                _number(size and size / whole),
                _number(form["zero_share"] if size else None),
                _number(form["perplexity"]),
                _number(form["tokens_per_s"]),
                _number(_value(form["reward"])),
                _number(_value(form["win_rate"])),
            )
        )
    notes = [
        f"{name}: {form['error'] or 'the engine here does not run it: ' + form['engine_error']}"
        for name, form in forms.items()
        if not form["runs_here"]
    ]
    return "\n".join([markdown_table(rows), *([""] if notes else []), *notes])


def _value(estimate: Mapping[str, Any] | None) -> float | None:
    return None if estimate is None else estimate["mean"]


def _number(value: float | None) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:.4g}"
