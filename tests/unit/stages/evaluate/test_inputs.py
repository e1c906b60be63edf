"""What an evaluation reads before any worker starts."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.data.held_out import held_out_data
from rlhf_ray.stages.evaluate.inputs import read_inputs
from rlhf_ray.stages.evaluate.settings import collect_settings
from rlhf_ray.testing.tiny import tiny_random, tiny_reward_model

pytestmark = pytest.mark.unit_slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_random(folder / "one")
    tiny_random(folder / "two", seed=1)
    tiny_random(folder / "small", vocab_size=270)
    tiny_reward_model(folder / "judge")
    return folder


def load(folder, *overrides, models=("one", "two")):
    rows = [{"prompt": "What is " + "1+" * n + "1?", "answer": str(n + 1)} for n in (0, 1, 12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [f"evaluation.models.{name}={folder / name}" for name in models]
    overrides = ("data.max_prompt_tokens=200", *overrides)
    return load_config(
        ["recipe=demo", "stage=evaluate", f"data.path={folder / 'rows.jsonl'}", *named, *overrides]
    )


def test_every_model_has_prompts_of_its_own_rendering(folder):
    said: list[str] = []
    inputs = read_inputs(load(folder, "evaluation.baseline=two"), report=said.append)
    candidates = inputs.candidates
    assert [candidate.name for candidate in candidates] == ["one", "two"]
    assert inputs.baseline_model.path == str(folder / "two")
    assert [len(candidate.prompts.prompts) for candidate in candidates] == [3, 3]
    assert candidates[0].prompts == candidates[1].prompts
    assert candidates[0].demonstrations == ()
    assert said == [candidates[0].prompts.describe()]


def test_prompts_that_one_model_lacks_are_left_out_for_all(folder):
    """The smaller vocabulary takes more tokens for a prompt."""
    found = read_inputs(load(folder, models=("one", "small")), report=print).candidates
    longest = {c.name: len(c.prompts.prompts[-1].token_ids) for c in found}
    assert longest["one"] < longest["small"]
    limit = f"data.max_prompt_tokens={longest['one']}"
    said: list[str] = []
    found = read_inputs(load(folder, limit, models=("one", "small")), report=said.append).candidates
    assert [[p.prompt_id for p in c.prompts.prompts] for c in found] == [["r0", "r1"]] * 2
    assert said[-1] == "one: 1 prompts are left out that another model lacks"
    limit = "data.max_prompt_tokens=2"
    with pytest.raises(RequestError, match="no prompt of"):
        read_inputs(load(folder, limit, models=("one", "small")), report=print)


def test_demonstrations_are_those_of_the_file(folder):
    path = folder / "demonstrations.jsonl"
    path.write_text(json.dumps({"prompt": "What is 1+1?", "answer": "2"}) + "\n")
    settings = (f"examples.eval_path={path}",)
    one, two = read_inputs(load(folder, *settings), report=print).candidates
    assert len(one.demonstrations) == len(two.demonstrations) == 1
    assert one.demonstrations[0].loss_mask.sum() == 2


KL = ("evaluation.kl=k1", "evaluation.samples=1")


@pytest.mark.parametrize(
    ("overrides", "models", "message"),
    [
        (("evaluation.models.no=FOLDER/rows.jsonl",), ("one",), r"models\.no.*a file"),
        (("evaluation.models.no=FOLDER",), ("one",), r"models\.no.*without config\.json"),
        ((*KL, "reference.path=FOLDER/one"), ("one", "small"), r"models\.small.*vocabulary"),
        ((*KL, "reference.path=FOLDER/rows.jsonl"), ("one",), r"reference\.path.*a file"),
        (
            ("reward.model.path=FOLDER/judge", "reward.model.normalize=false"),
            ("one", "small"),
            r"models\.small.*tokenizer of the reward model",
        ),
    ],
)
def test_what_cannot_be_evaluated(folder, overrides, models, message):
    overrides = [override.replace("FOLDER", str(folder)) for override in overrides]
    with pytest.raises(RequestError, match=message):
        read_inputs(load(folder, *overrides, models=models), report=print)


def test_a_reward_model_reads_texts_where_one_model_is_foreign_to_it(folder):
    settings = (
        f"reward.model.path={folder / 'judge'}",
        "reward.model.normalize=false",
        "reward.model.foreign_tokens=text",
    )
    said: list[str] = []
    for models, expected in ((("small", "one"), "text"), (("one", "two"), "refuse")):
        inputs = read_inputs(load(folder, *settings, models=models), report=said.append)
        assert inputs.reward.model.foreign_tokens == expected


def test_held_out_prompts_have_a_limit_of_their_own(folder):
    def source(*overrides):
        config = load(folder, "data.limit=2", *overrides)
        return held_out_data(config.evaluation, config.data)

    own = source("evaluation.path=x.jsonl", "evaluation.limit=5")
    assert (own.path, own.limit) == ("x.jsonl", 5)
    assert source().limit == 2
    assert source("evaluation.limit=1").limit == 1
    split = source("evaluation.split=test")
    assert (split.split, split.limit) == ("test", None)


def test_as_many_prompts_at_once_as_the_engines_hold(folder):
    settings = ("generation.max_num_seqs=10", "generation.num_engines=2", "evaluation.samples=3")
    config = load(folder, *settings)
    found = collect_settings(
        config.evaluation,
        config.generation,
        greedy_from=config.greedy_from,
        max_failure_rate=0.0,
        timeout_s=1.0,
        measures_kl=True,
        with_text=True,
    )
    assert (found.prompts_at_once, found.measure.greedy_from) == (5, 3)
    assert found.measure.kl_estimator == "none"
