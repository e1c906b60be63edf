"""Every method that the code knows has a file, a page and a ground truth."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.config.setting import setting_of
from rlhf_ray.experience.advantages import SAMPLE_ADVANTAGES, TOKEN_ADVANTAGES
from rlhf_ray.objectives.policy_losses import POLICY_LOSSES

FILES = {path.stem: path for path in sorted((conf_dir() / "algorithm").glob("*.yaml"))}
HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
# The plain function that each row of the code's tables is compared with.
GROUND_TRUTH = {
    "advantage": {
        "group": "group_advantages",
        "rloo": "rloo",
        "opo": "opo",
        "maxrl": "maxrl",
        "baseline": "mean",  # a difference: worked out by hand
        "remax": "mean",  # the same
        "returns": "returns_to_go",
        "gae": "gae_with_holes",
        "process": "process_advantages",
    },
    "policy_loss": {
        "clip": "policy_loss",
        "unclipped": "policy_loss",
        "cispo": "cispo",
        "sapo": "sapo",
        "gmpo": "gmpo",
        "clip_cov": "covariances",
        "kl_cov": "covariances",
    },
    "ratio_level": {
        "token": "policy_loss",
        "sequence": "sequence_ratio",
        "sequence_token": "sequence_ratio",
    },
    "reduction": {
        "token_mean": "reduce_tokens",
        "sequence_mean": "reduce_tokens",
        "sequence_sum": "reduce_tokens",
        "constant_length": "reduce_tokens",
    },
}


def choices(field: str) -> tuple[str, ...]:
    (found,) = [f for f in AlgorithmConfig.__dataclass_fields__.values() if f.name == field]
    rule = setting_of(found)
    assert rule is not None
    return rule.choices


def settings_of(path: Path) -> dict[str, object]:
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def test_the_tables_are_what_the_configuration_offers():
    assert set(choices("advantage")) == {*SAMPLE_ADVANTAGES, *TOKEN_ADVANTAGES}
    assert set(choices("policy_loss")) == set(POLICY_LOSSES)


@pytest.mark.parametrize("field", GROUND_TRUTH)
def test_every_choice_has_a_published_method_and_a_ground_truth(field):
    assert set(GROUND_TRUTH[field]) == set(choices(field))
    default = AlgorithmConfig.__dataclass_fields__[field].default
    used = {settings_of(path).get(field, default) for path in FILES.values()}
    assert used == set(choices(field))
    tree = ast.parse((HERE / "ground_truth.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    tests = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    for name, function in GROUND_TRUTH[field].items():
        assert function in functions, name
        assert f"ground_truth.{function}(" in tests or function == "mean", name


@pytest.mark.parametrize("name", FILES)
def test_every_file_bears_its_name_cites_its_source_and_has_a_row(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert settings_of(FILES[name])["name"] == name
    assert "arXiv:" in text or name == "reinforce"
    assert f"| `{name}` |" in PAGE
