"""Low-rank adapters (LoRA), trained in place of a model's weights."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

ALL_LINEAR = "all-linear"


@dataclass
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), trained in place of weights."""

    r: int = setting(
        0, "Rank of the two factors of an adapter; 0 trains the weights themselves.", minimum=0
    )
    alpha: int = setting(
        32,
        "Scale of an adapter's output: alpha / r, or alpha / sqrt(r) with rslora.",
        minimum=1,
    )
    rslora: bool = setting(
        False,
        "Scale by the square root of the rank (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).",
    )
    target_modules: list[str] = setting(
        [ALL_LINEAR],
        "Layers with an adapter: all-linear for every linear layer except the output head, or "
        "suffixes of layer names, as in [q_proj,v_proj].",
    )

    @property
    def is_on(self) -> bool:
        return self.r > 0
