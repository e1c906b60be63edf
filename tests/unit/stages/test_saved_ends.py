"""Saved models name every end of a turn that they have learnt, whichever stage saves them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.stages.fit import run as fit_run
from rlhf_ray.stages.rl.parts import save_models
from rlhf_ray.stages.rl.settings import rl_settings

pytestmark = pytest.mark.unit_slow


class Ranks:
    """Write the settings of a base model that ends with 2, and an adapter."""

    def save_model(self, folder: Path) -> list[Any]:
        for part in (folder, folder / "adapter"):
            part.mkdir(parents=True, exist_ok=True)
        (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        return []

    save_average = save_model


def system(ranks: Ranks) -> Any:
    waiter = SimpleNamespace(results=lambda calls, **_: calls)
    return SimpleNamespace(learner=ranks, ranks=ranks, supervisor=waiter)


def ends_of(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize("ends", [(), (2, 5)])
@pytest.mark.parametrize("keep_best", [False, True])
def test_stages_that_learn_from_examples(tmp_path, ends, keep_best):
    config = load_config(
        ["stage=sft", "model.path=m", "examples.path=e", f"fit.keep_best={str(keep_best).lower()}"]
    )
    run: Any = SimpleNamespace(
        inputs=SimpleNamespace(
            fit=config.fit, deadlines=config.deadlines, checkpoint=config.checkpoint
        ),
        output=tmp_path,
        system=system(Ranks()),
        end_token_ids=ends,
    )
    models = fit_run._models(run)
    models.keep(3)
    models.finish(3, tmp_path / "model")
    assert ends_of(tmp_path / "model") == ([2, 5] if ends else 2)
    if ends:
        assert ends_of(tmp_path / "model" / "adapter") == [2, 5]


def test_reinforcement_learning(tmp_path):
    config = load_config(["recipe=demo", f"output_dir={tmp_path}", "training.ema_decay=0.9"])
    settings = rl_settings(config, end_token_ids=(2, 5))
    save_models(settings, system(Ranks()))
    for name in ("model", "model_ema", "adapter"):
        assert ends_of(tmp_path / name) == [2, 5]


def test_engines_that_sample_past_the_end_teach_no_end():
    config = load_config(["recipe=demo", "generation.ignore_eos=true"])
    assert rl_settings(config, end_token_ids=(2, 5)).end_token_ids == ()
