"""What is checked of a partly trained model before a worker starts, and where its result goes."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.stages.trained_part import check_trained, split_off_adapter, trained_identity
from rlhf_ray.testing.tiny import tiny_random


def identity_of(config: Config) -> dict[str, object]:
    return trained_identity(config.training, config.critic)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_random(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.freeze_layers=3"], "training.freeze_layers=3: the model has 2 layers"),
        (["training.freeze=[transformer.*]"], "training.freeze=transformer"),
        (
            ["training.lora.r=2", "training.lora.target_modules=[query]"],
            "among the names|Among the names",
        ),
        (["algorithm=ppo", "critic.freeze_layers=3"], "critic.freeze_layers=3"),
        (
            ["stage=reward_model", "examples.path=rows.jsonl", "training.freeze_layers=3"],
            "training.freeze_layers=3",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(model, overrides, message):
    with pytest.raises(RequestError, match=message):
        check_trained(load_config(["recipe=demo", f"model.path={model}", *overrides]))


def test_what_it_has_is_fine(model):
    for overrides in (
        ["training.freeze_layers=1", "training.freeze=[model.norm.*]"],
        ["training.lora.r=2"],
        ["algorithm=ppo", "critic.lora.r=2", "critic.lora.target_modules=[q_proj]"],
    ):
        check_trained(load_config(["recipe=demo", f"model.path={model}", *overrides]))


def test_a_model_that_is_trained_whole_is_not_looked_at():
    check_trained(load_config(["recipe=demo", "model.path=nowhere/nothing"]))


def test_a_checkpoint_knows_what_is_trained():
    """Null where it is everything, as in a checkpoint of a release that did not know it."""
    everything = identity_of(load_config(["recipe=demo"]))
    assert set(everything.values()) == {None}
    adapter = identity_of(load_config(["recipe=demo", "training.lora.r=2"]))
    other = identity_of(load_config(["recipe=demo", "training.lora.r=4"]))
    assert adapter["training.lora"]["r"] == 2
    assert adapter != other
    frozen = identity_of(load_config(["recipe=demo", "training.freeze=[a]"]))
    assert frozen == everything | {"training.freeze": ["a"]}


def test_the_adapter_is_moved_beside_the_model(tmp_path):
    (tmp_path / "model").mkdir()
    split_off_adapter(tmp_path)
    assert not (tmp_path / "adapter").exists()
    for content in ("first", "second"):
        (tmp_path / "model" / "adapter").mkdir()
        (tmp_path / "model" / "adapter" / "file").write_text(content)
        split_off_adapter(tmp_path)
        assert (tmp_path / "adapter" / "file").read_text() == content
        assert list((tmp_path / "model").iterdir()) == []
