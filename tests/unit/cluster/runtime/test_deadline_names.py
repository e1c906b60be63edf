"""The deadline that a message names is a key of the configuration, in every phase."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from rlhf_ray.cluster.runtime.supervisor import _DEADLINES
from rlhf_ray.config.groups.runtime import DeadlineConfig

PACKAGE = Path(__file__).parents[4] / "rlhf_ray"


def test_every_phase_has_a_deadline_of_the_configuration():
    # The phases of a plan are no waits.
    files = [file for file in PACKAGE.rglob("*.py") if "planning" not in file.parts]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    phases = set(re.findall(r'phase="([a-z_]+)"', text))
    assert {"start", "generate", "update", "publish", "checkpoint"} <= phases
    keys = {field.name for field in dataclasses.fields(DeadlineConfig)}
    assert {f"{_DEADLINES.get(phase, phase)}_s" for phase in phases} - keys == set()
