"""Provisional: replaced by the part that reads examples."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class ExamplesConfig:
    """The examples that a stage learns from."""

    path: str = setting("", "A file, a folder, a hub data set or package.module:iterable.")
    eval_path: str | None = setting(None, "Held-out rows; a part of `examples.path` otherwise.")
    eval_share: float = setting(0.0, "Share of the rows that is held out.", minimum=0, below=1)

    @property
    def has_eval_source(self) -> bool:
        return self.eval_path is not None

    @property
    def held_out_share(self) -> float:
        return self.eval_share

    max_tokens: int = setting(512, "Longest sample.", unit="tokens", minimum=2)
    shuffle: bool = setting(True, "Every epoch in an order of its own.")
