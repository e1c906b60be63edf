"""Writes sources, runs the stage through `main`, and reads what it wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.compose import parse_overrides
from rlhf_ray.config.convert import Conversion
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.stages import prepare_data


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def source(name: str, path: Path | str, **settings: Any) -> list[str]:
    """Overrides that make up one entry of `prepare.sources`."""
    values = {"path": str(path), **settings}
    return [f"prepare.sources.{name}.{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value)


def prepare(output: Path, *overrides: str) -> int:
    """The exit status of the stage; no evaluation part unless it is asked for.

    As the command does it, but without composing conf/, which takes longer than the rest.
    """
    own = ["stage.name=prepare_data", f"output_dir={output}", "prepare.eval_fraction=0"]
    request, problems = parse_overrides([*own, *overrides])
    conversion = Conversion()
    for name, value in request.values:
        conversion.set_value(name, value)
    config = conversion.finish()
    assert problems + conversion.problems + cross_field_problems(config) == []
    return prepare_data.run(config)


class Result:
    """The output folder of a run that succeeds."""

    def __init__(self, output: Path, *overrides: str) -> None:
        assert prepare(output, *overrides) == 0
        self.output = output

    def lines(self, dataset: str, part: str = "train") -> list[dict[str, Any]]:
        return read_lines(self.output / dataset / f"{part}.jsonl")

    @property
    def removed(self) -> list[dict[str, Any]]:
        return read_lines(self.output / "removed.jsonl")

    @property
    def reasons(self) -> dict[str, str]:
        """Detail by reason, of the last one for each."""
        return {row["reason"]: row["detail"] for row in self.removed}

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.output / "report.json").read_text())


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
