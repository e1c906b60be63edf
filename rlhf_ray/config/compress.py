"""`stage=compress`: smaller forms of a model."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

METHODS = (
    "int8",
    "int4",
    "int8_activations",
    "magnitude",
    "magnitude_2_4",
    "wanda",
    "wanda_2_4",
)


@dataclass
class CompressConfig:
    """What `model.path` is made smaller by, and with what."""

    methods: list[str] = setting(
        ["int8", "int4", "int8_activations", "wanda", "wanda_2_4"],
        "int8, weights of 8 bits, rounded to the nearest; int4, of 4 bits, by GPTQ; "
        "int8_activations, weights and activations of 8 bits, by SmoothQuant and GPTQ; "
        "magnitude and wanda, a share of the weights made zero, the smallest ones or those that "
        "matter least for the activations; magnitude_2_4 and wanda_2_4, two of each four.",
    )
    python: str = setting(
        ".venv-compress/bin/python",
        "Python with LLM Compressor; launch/setup_compress.sh makes it.",
    )
    sparsity: float = setting(
        0.5, "Share of the weights that magnitude and wanda make zero.", above=0, below=1
    )
    smoothing: float = setting(
        0.8,
        "SmoothQuant's strength: how much of the activations' range moves into the weights.",
        minimum=0,
        maximum=1,
    )
    ignore: list[str] = setting(
        ["lm_head"], "Layers that stay as they are; `re:` before a regular expression."
    )
    calibration_prompts: int = setting(
        128, "Prompts of `data` that methods look at.", unit="prompts", minimum=1
    )
    timeout_s: float = setting(
        3600.0,
        "All methods together, and likewise each test of an engine.",
        unit="seconds",
        above=0,
    )
