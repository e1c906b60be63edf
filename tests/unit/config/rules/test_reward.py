"""Rules of reward functions, the reward model, the reward service and the judge."""

from __future__ import annotations

from rlhf_ray.config.load import load_config
from tests.unit.config.rules.cases import (
    EVALUATE,
    SERVE,
    SERVICE,
    check_broken_values,
    check_rule,
    check_rule_of_a_stage,
    each,
)

OWN_JUDGE = ["reward.judge.model=a/b"]

CASES = [
    (
        "a variable with its value",
        [],
        ["reward.environment=['A=b']"],
        ["reward.environment=[A=b]: is not the name", "without values"],
        ["reward.environment=[A]"],
    ),
    (
        "Ray's token for reward functions",
        [],
        ["reward.environment=[RAY_AUTH_TOKEN]"],
        ["reward.environment=[RAY_AUTH_TOKEN]", "join the cluster"],
        ["reward.environment=[RAYS_KEY]"],
    ),
    (
        "the token of a service for reward functions",
        ["reward.http.token_variable=KEY"],
        ["reward.environment=[KEY]"],
        ["reward.environment=[KEY]", "reward.http.token_variable", "another variable"],
        ["reward.environment=[OTHER_KEY]"],
    ),
    (
        "the network of no sandbox",
        [],
        ["reward.sandbox_network=true"],
        ["reward.sandbox_network=true", "reward.sandbox=none", "reward.sandbox=bwrap"],
        ["reward.sandbox_network=true", "reward.sandbox=bwrap"],
    ),
    (
        "files in no sandbox",
        [],
        ["reward.sandbox_read=[/data]"],
        ["reward.sandbox_read=['/data']", "reward.sandbox=bwrap"],
        ["reward.sandbox_read=[/data]", "reward.sandbox=bwrap"],
    ),
    (
        "half a normalisation",
        ["reward.model.path=a/b"],
        ["reward.model.standard_deviation=2"],
        ["reward.model.standard_deviation=2", "mean and standard_deviation"],
        ["reward.model.standard_deviation=2", "reward.model.mean=0.5"],
    ),
    (
        "moments of nothing",
        ["reward.model.path=a/b", "reward.model.mean=1", "reward.model.standard_deviation=2"],
        ["reward.model.normalize=false"],
        ["reward.model.normalize=false", "reward.model.mean=1"],
        ["reward.model.normalize=true"],
    ),
    (
        "stage of the reward model",
        ["reward.model.path=a/b"],
        ["reward.model.zero_stage=2"],
        ["reward.model.zero_stage=2", "use 0", "or 3"],
        ["reward.model.zero_stage=3"],
    ),
    (
        "no address",
        [],
        ["reward.url=127.0.0.1:8000"],
        ["reward.url=127.0.0.1:8000: is not the address", "http://HOST:PORT"],
        ["reward.url=http://127.0.0.1:8000"],
    ),
    (
        "no port",
        [],
        ["reward.url=http://a:port"],
        ["reward.url=http://a:port: is not the address"],
        SERVICE,
    ),
    (
        "a password in an address",
        [],
        ["reward.url=http://me:secret@a/b"],
        ["reward.url: has a user or a password", "reward.http.token_variable"],
        ["reward.url=http://a/b", "reward.http.token_variable=TOKEN"],
    ),
    (
        "a query in an address",
        [],
        ["reward.url='http://a/b?c=d'"],
        ["reward.url=http://a/b?c=d: has a query"],
        ["reward.url=http://a/b"],
    ),
    (
        "deadline of a service",
        SERVICE,
        ["reward.http.deadline_s=700"],
        ["reward.http.deadline_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.http.deadline_s=600"],
    ),
    (
        "a rubric without the response",
        OWN_JUDGE,
        ["reward.judge.rubric='Is {prompt} good?'"],
        ["reward.judge.rubric: has no {response}"],
        ["reward.judge.rubric='Is {response} good?'"],
    ),
    (
        "a rubric with an answer that is nowhere",
        [*OWN_JUDGE, "reward.functions=[length]"],
        ["reward.judge.rubric='{response} or {answer}'", "data.answer_column=null"],
        ["reward.judge.rubric: has {answer}", "data.answer_column=null"],
        ["reward.judge.rubric='{response}'", "data.answer_column=null"],
    ),
    (
        "an invalid pattern",
        OWN_JUDGE,
        ["reward.judge.pattern='([0-9]'"],
        ["reward.judge.pattern=([0-9]: is not a regular expression"],
        ["reward.judge.pattern='([0-9])'"],
    ),
    (
        "a pattern without a group",
        OWN_JUDGE,
        ["reward.judge.pattern='[0-9]'"],
        ["reward.judge.pattern=[0-9]: has no group"],
        ["reward.judge.pattern='Score: ([0-9]+)'"],
    ),
    (
        "an empty range of scores",
        OWN_JUDGE,
        ["reward.judge.min_score=10"],
        ["reward.judge.min_score=10: must be less than reward.judge.max_score=10"],
        ["reward.judge.min_score=0"],
    ),
    (
        "judgements that are the same",
        OWN_JUDGE,
        ["reward.judge.num_samples=3"],
        ["reward.judge.num_samples=3", "reward.judge.temperature=0"],
        ["reward.judge.num_samples=3", "reward.judge.temperature=1"],
    ),
    (
        "deadline of a judge",
        OWN_JUDGE,
        ["reward.judge.timeout_s=700"],
        ["reward.judge.timeout_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.judge.timeout_s=600"],
    ),
    (
        "a judge that sleeps",
        ["placement=colocated"],
        ["reward.judge.model=policy"],
        ["reward.judge.model=policy", "placement=disaggregated"],
        OWN_JUDGE,
    ),
    (
        "a judge without a cache",
        OWN_JUDGE,
        ["reward.judge.kv_cache_gib=null"],
        ["reward.judge.kv_cache_gib=null", "for instance to 1"],
        ["reward.judge.kv_cache_gib=1"],
    ),
    (
        "parts of GPUs for the ranks of a judge",
        OWN_JUDGE,
        ["reward.judge.num_gpus=0.5", "reward.judge.tensor_parallel_size=2"],
        ["reward.judge.num_gpus=0.5", "reward.judge.tensor_parallel_size=2"],
        ["reward.judge.num_gpus=1", "reward.judge.tensor_parallel_size=2"],
    ),
    (
        "models that judge themselves",
        EVALUATE,
        ["reward.judge.model=policy"],
        ["reward.judge.model=policy", "judge itself"],
        ["reward.judge.model=a/b", "reward.judge.kv_cache_gib=1"],
    ),
]

STAGE_CASES = [
    (
        "half of a normalisation that is served",
        SERVE,
        ["reward.model.mean=1"],
        ["reward.model.mean=1", "standard_deviation"],
        ["reward.model.mean=1", "reward.model.standard_deviation=2"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


@each(STAGE_CASES)
def test_rule_of_a_stage(case):
    check_rule_of_a_stage(case)


def test_a_reward_model_that_is_off_is_not_held_to_rules():
    load_config(["recipe=demo", "reward.model.zero_stage=2", "reward.model.mean=1"])
    load_config(["recipe=demo", "reward.model.name=exact_match", "reward.model.weight=0"])
    load_config(["recipe=demo", "reward.model.max_tokens_per_micro_batch=1"])
