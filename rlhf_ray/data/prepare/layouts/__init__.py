"""Mappings for the layouts of well-known data sets: one file each, and their table."""

from __future__ import annotations

from rlhf_ray.data.prepare.conversion.mapping import Layout
from rlhf_ray.data.prepare.layouts.alpaca import ALPACA
from rlhf_ray.data.prepare.layouts.gsm8k import GSM8K
from rlhf_ray.data.prepare.layouts.hh_rlhf import HH_RLHF
from rlhf_ray.data.prepare.layouts.openassistant import OPENASSISTANT
from rlhf_ray.data.prepare.layouts.sharegpt import SHAREGPT
from rlhf_ray.data.prepare.layouts.ultrafeedback import ULTRAFEEDBACK

LAYOUTS: dict[str, Layout] = {
    "alpaca": ALPACA,
    "gsm8k": GSM8K,
    "hh_rlhf": HH_RLHF,
    "openassistant": OPENASSISTANT,
    "sharegpt": SHAREGPT,
    "ultrafeedback": ULTRAFEEDBACK,
}
