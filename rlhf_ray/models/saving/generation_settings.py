"""Mends of generation settings that transformers reads, and refuses to save."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

# Settings and their values without an effect, as `GenerationConfig.validate` of transformers 5.19
# compares them.
_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_BEAMS: dict[str, Any] = {"early_stopping": False, "length_penalty": 1.0}


def mend_generation_settings(model: PreTrainedModel) -> list[str]:
    """Make the generation settings of a model such that they can be saved, where that is obvious.

    Settings of sampling without `do_sample` (as in Llama 2's chat models) are meant for sampling.
    With `do_sample=false` they have no effect, and go; so do settings of beams without beams.

    Returns:
        A line for every mend.
    """
    if not model.can_generate() or model.generation_config is None:
        return []
    settings: GenerationConfig = model.generation_config
    lines = []
    sampling = _effective(settings, _SAMPLING)
    if sampling and settings.do_sample is None:
        settings.do_sample = True
        lines.append(f"{_told(sampling)} without do_sample: do_sample is set to true")
    elif sampling and settings.do_sample is False:
        _unset(settings, sampling)
        lines.append(f"{_told(sampling)} with do_sample=false has no effect and is left out")
    beams = _effective(settings, _BEAMS)
    if beams and settings.num_beams in (None, 1):
        _unset(settings, beams)
        lines.append(f"{_told(beams)} without num_beams has no effect and is left out")
    padding = settings.pad_token_id
    if isinstance(padding, int) and padding < 0:
        settings.pad_token_id = None
        lines.append(f"pad_token_id={padding} is no token and is left out")
    return [f"generation settings of the model: {line}" for line in lines]


def _effective(settings: GenerationConfig, neutral: dict[str, Any]) -> dict[str, Any]:
    """The settings that are there and have an effect."""
    fields = settings.to_dict()
    found = {name: fields.get(name) for name in neutral}
    return {name: v for name, v in found.items() if v is not None and v != neutral[name]}


def _unset(settings: GenerationConfig, names: dict[str, Any]) -> None:
    for name in names:
        setattr(settings, name, None)


def _told(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.items())
