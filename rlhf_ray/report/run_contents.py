"""All that a report shows of one run, as plain values of JSON."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlhf_ray.config.stages import FIT_STAGES
from rlhf_ray.report.alarms.alarm_checks import FIT_CHECKS, RL_CHECKS
from rlhf_ray.report.alarms.evidence import Evidence, check_all
from rlhf_ray.report.curves import MAX_METRICS, MAX_POINTS, make_curves, split_ranges
from rlhf_ray.report.forgiving_reads import ReadNotes, read_json, read_steps
from rlhf_ray.report.rollouts.answer_measures import StepMeasures, reward_bands
from rlhf_ray.report.rollouts.rollout_browser import TokenText, make_browser
from rlhf_ray.report.rollouts.rollout_reader import (
    KeptGroup,
    ReadBounds,
    RolloutContents,
    read_rollouts,
)
from rlhf_ray.report.rollouts.token_texts import find_token_text
from rlhf_ray.report.run_events import find_events
from rlhf_ray.report.settings_shown import changed_settings, read_settings
from rlhf_ray.report.stage_results import (
    MAX_ERROR,
    read_compared_answers,
    read_error,
    read_pipeline,
    read_summary,
    read_tables,
)
from rlhf_ray.report.timeline.step_times import MAX_STEPS, shown_step_times, thinned
from rlhf_ray.run_folder.ending import END_FILE

_MAX_MEASURED_STEPS = 400
Panel = TypeVar("Panel")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContents:
    """A folder that was read; `values` makes of it what fits into a given size.

    Attributes:
        rollouts, held_out, compared: answers that may be shown, of the steps, of evaluations in
            between, and of an evaluation of several models.
        times: of the workers, by step.
        facts: the part of the report whose size is bounded.
        notes: of reading.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    rollouts: Sequence[KeptGroup]
    held_out: Sequence[KeptGroup]
    compared: Sequence[KeptGroup]
    token_text: TokenText | None
    times: Sequence[dict[str, Any]]
    facts: Mapping[str, Any]
    notes: Sequence[str]

    def values(
        self, *, characters: int, max_points: int = MAX_POINTS, max_metrics: int = MAX_METRICS
    ) -> dict[str, Any]:
        """The content of the report.

        Args:
            characters: about the size of the answers, as JSON.
        """
        notes = ReadNotes()
        for text in self.notes:
            notes.add(text)
        kinds = {
            "rollouts": self.rollouts,
            "held-out answers": self.held_out,
            "models side by side": self.compared,
        }
        kinds = {name: groups for name, groups in kinds.items() if groups}
        browsers = [
            make_browser(
                groups,
                notes,
                name=name,
                characters=characters // len(kinds),
                token_text=self.token_text,
            )
            for name, groups in kinds.items()
        ]
        curves = make_curves(self.rows, notes, max_points=max_points, max_metrics=max_metrics)
        times = thinned(self.times, max_points * MAX_STEPS // MAX_POINTS)
        return {
            **self.facts,
            "curves": curves,
            "times": times,
            "browsers": browsers,
            "left_out": notes.texts(),
        }


def read_run(
    folder: Path,
    *,
    ending: Mapping[str, Any] | None = None,
    error: str | None = None,
    bounds: ReadBounds | None = None,
) -> RunContents:
    """Read an output folder; a file that is missing or broken costs its panel and no more.

    Args:
        ending: how the run ended, where that is not in its file yet.
        error: the traceback; None for what error.log says.
    """
    notes = ReadNotes()
    settings = read_settings(folder, notes)
    end = dict(ending or read_json(folder / END_FILE, notes))
    stage = str(end.get("stage") or settings.get("stage.name") or "")
    panel = partial(_panel, notes)
    rows = panel("metrics", lambda: read_steps(folder / "metrics.jsonl", notes), [])
    rollouts = _answers(folder / "rollouts", notes, bounds)
    held_out = _answers(folder / "evaluation", notes, bounds)
    compared = panel("samples", lambda: read_compared_answers(folder, notes), [])
    times = panel("times", lambda: shown_step_times(folder, notes), [])
    has_tokens = any("ids" in sample for group in rollouts.groups for sample in group.samples)
    facts = {
        "name": folder.name,
        "folder": str(folder),
        "stage": stage,
        "made_at": _now(),
        "num_steps": len(rows),
        "end": end,
        "error": read_error(folder) if error is None else error[-MAX_ERROR:],
        "settings": panel("settings", lambda: changed_settings(settings, notes), []),
        "summary": panel("summary", lambda: read_summary(folder, notes), []),
        "tables": panel("tables", lambda: read_tables(folder, notes), []),
        "pipeline": panel("pipeline", lambda: read_pipeline(folder, notes), []),
        "startup": read_json(folder / "startup.json", notes),
        "events": panel("events", lambda: find_events(folder, rows, notes), []),
        "groups": panel(
            "groups", lambda: _measured(rollouts.measures, notes), _measured([], ReadNotes())
        ),
        "alarms": panel("alarms", lambda: _alarms(stage, settings, rows, rollouts), []),
    }
    return RunContents(
        settings=settings,
        rows=rows,
        rollouts=rollouts.groups,
        held_out=held_out.groups,
        compared=compared,
        token_text=panel("tokens", lambda: find_token_text(folder, settings, notes), None)
        if has_tokens
        else None,
        times=times,
        facts=facts,
        notes=notes.texts(),
    )


def _panel(notes: ReadNotes, name: str, make: Callable[[], Panel], empty: Panel) -> Panel:
    """Content of a panel; `empty` after any fault, which is noted."""
    try:
        return make()
    except Exception as fault:  # noqa: BLE001 - the rest of the report is worth having
        notes.add(f"{name} cannot be shown: {type(fault).__name__}: {fault}")
        return empty


def _answers(folder: Path, notes: ReadNotes, bounds: ReadBounds | None) -> RolloutContents:
    return _panel(
        notes, folder.name, lambda: read_rollouts(folder, notes, bounds), RolloutContents()
    )


def _alarms(
    stage: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    rollouts: RolloutContents,
) -> list[dict[str, Any]]:
    checks = FIT_CHECKS if stage in FIT_STAGES else RL_CHECKS if stage == "rl" else {}
    evidence = Evidence(
        rows=rows,
        measures=rollouts.measures,
        prompts_per_step=_whole(settings.get("prompts_per_step")),
    )
    return [dataclasses.asdict(finding) for finding in check_all(checks, evidence)]


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _measured(measures: Sequence[StepMeasures], notes: ReadNotes) -> dict[str, Any]:
    """Shares and histograms over time of the steps that were read."""
    if len(measures) > _MAX_MEASURED_STEPS:
        notes.add(f"groups over time: {_MAX_MEASURED_STEPS} of {len(measures)} steps are drawn")
        measures = [measures[a] for a, _ in split_ranges(len(measures), _MAX_MEASURED_STEPS)]
    shares = [step.shares() for step in measures]
    names = list(dict.fromkeys(name for found in shares for name in found))
    return {
        "steps": [step.step for step in measures],
        "shares": {name: [found.get(name) for found in shares] for name in names},
        "rewards": reward_bands(measures),
    }


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
