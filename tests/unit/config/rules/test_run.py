"""Rules of the run and of a pipeline."""

from __future__ import annotations

from tests.unit.config.rules.cases import (
    COLOCATED_GPU,
    GPU,
    SERVICE,
    check_broken_values,
    check_rule,
    check_rule_of_a_stage,
    each,
)

LORA = ["training.lora.r=4", "training.lora.target_modules=[q_proj]"]
PIPELINE = ["stage=pipeline", "pipeline.stages.a={stage: sft}"]

CASES = [
    ("no model", [], ["model.path="], ["model.path is empty", "recipe=demo"], ["model.path=a/b"]),
    (
        "transport of an adapter",
        ["publish.lora=adapter", *LORA],
        ["publish.transport=ipc"],
        ["publish.transport=ipc: with publish.lora=adapter only the adapter is sent"],
        ["publish.transport=auto"],
    ),
    (
        "transport between a GPU and a CPU",
        ["training=gpu"],
        ["publish.transport=collective"],
        ["publish.transport=collective: generation.num_gpus=0 and training.num_gpus=1"],
        ["publish.transport=object_store"],
    ),
    (
        "shared memory without a shared GPU",
        GPU,
        ["publish.transport=ipc"],
        ["publish.transport=ipc: with placement=disaggregated", "auto or collective"],
        ["publish.transport=collective"],
    ),
    (
        "two members of NCCL on one GPU",
        COLOCATED_GPU,
        ["publish.transport=collective"],
        ["NCCL refuses two members on one GPU", "placement=colocated", "auto or ipc"],
        ["publish.transport=ipc"],
    ),
    (
        "two members of NCCL on parts of GPUs",
        [*GPU, "generation.num_gpus=0.5", "training.num_gpus=0.5"],
        ["publish.transport=collective"],
        ["generation.num_gpus=0.5, training.num_gpus=0.5", "auto or object_store"],
        ["publish.transport=auto"],
    ),
    (
        "no time",
        ["model.template_time=2026-01-31T12:00:00"],
        ["model.template_time=yesterday"],
        ["model.template_time=yesterday", "2026-01-31T12:00:00"],
        ["model.template_time=2026-01-31"],
    ),
    (
        "longest collective operation",
        ["deadlines.collective_s=60"],
        ["deadlines.collective_s=1200"],
        ["deadlines.collective_s=1200", "deadlines.update_s=1200"],
        ["deadlines.collective_s=1000"],
    ),
    (
        "secret in the environment",
        ["placement.env.NCCL_DEBUG=INFO"],
        ["placement.env.HF_TOKEN=hf_123"],
        ["placement.env.HF_TOKEN", "config.yaml would show it", "env_from_driver=[HF_TOKEN]"],
        ["placement.env={TOKENIZERS_PARALLELISM: false}"],
    ),
    (
        "password in a URL of the environment",
        [],
        ["placement.env.HTTPS_PROXY=http://me:word@proxy"],
        ["placement.env.HTTPS_PROXY", "looks like a secret"],
        ["placement.env.HTTPS_PROXY=http://proxy:80"],
    ),
    (
        "own variable",
        [],
        ["placement.env.CUDA_VISIBLE_DEVICES=0"],
        ["placement.env.CUDA_VISIBLE_DEVICES", "sets it itself"],
        ["placement.env={}"],
    ),
    (
        "variable that the driver lacks",
        ["placement.env_from_driver=[PATH]"],
        ["placement.env_from_driver=[RLHF_NO_SUCH_VARIABLE]"],
        ["RLHF_NO_SUCH_VARIABLE: is not set here"],
        ["placement.env_from_driver=[]"],
    ),
    (
        "interface twice",
        ["placement.network_interface=ib0"],
        ["placement.env.GLOO_SOCKET_IFNAME=ib1"],
        ["placement.network_interface=ib0", "GLOO_SOCKET_IFNAME"],
        ["placement.network_interface=null"],
    ),
    ("no data", [], ["data.path="], ["data.path is empty"], ["data.path=rows.jsonl"]),
    (
        "no reward",
        [],
        ["reward.functions=[]"],
        ["reward.functions is empty", "[exact_match]"],
        ["reward.functions=[length]"],
    ),
    (
        "only watched",
        ["reward.model.path=a/b"],
        ["reward.functions=[]", "reward.model.weight=0"],
        ["every part of the reward has weight 0"],
        ["reward.functions=[]"],
    ),
    (
        "name of the reward model's part",
        ["reward.model.path=a/b"],
        ["reward.model.name=exact_match"],
        ["reward.functions[0] and reward.model are both named 'exact_match'"],
        ["reward.model.name=taste"],
    ),
    (
        "reserved name of the reward model's part",
        ["reward.model.path=a/b"],
        ["reward.model.name=std"],
        ["reward.model.name is 'std'", "reward/std"],
        ["reward.model.name=model"],
    ),
    (
        "reward entry",
        [],
        ["reward.functions=[{path:length,wight:1}]"],
        ["reward.functions[0]", "'wight'", "'weight'"],
        ["reward.functions=[{path:length,weight:1}]"],
    ),
    (
        "answer column",
        [],
        ["data.answer_column=null"],
        ["data.answer_column=null", "exact_match"],
        ["data.answer_column=answer"],
    ),
    (
        "accepted changes",
        [],
        ["checkpoint.accept_changes=[algorithm.kl_coeficient]"],
        ["'algorithm.kl_coeficient'", "did you mean algorithm.kl_coefficient"],
        ["checkpoint.accept_changes=[algorithm.kl_coefficient]"],
    ),
    (
        "changes that need no acceptance",
        [],
        ["checkpoint.accept_changes=[seed]"],
        ["seed needs no acceptance", "remove the entry"],
        ["checkpoint.accept_changes=[]"],
    ),
    ("output", [], ["output_dir="], ["output_dir is empty"], ["output_dir=x"]),
    ("store", [], ["output_dir=s3://a/b"], ["output_dir=s3://a/b", "folder"], ["output_dir=/b"]),
    ("resume", [], ["resume="], ["resume is empty", "auto or never"], ["resume=never"]),
    (
        "request deadline",
        [],
        ["deadlines.request_s=700"],
        ["deadlines.request_s=700.0", "deadlines.generate_s=600.0"],
        ["deadlines.request_s=600"],
    ),
    (
        "reward deadline",
        [],
        ["reward.timeout_s=700"],
        ["reward.timeout_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.timeout_s=600"],
    ),
    (
        "two parts of one name",
        SERVICE,
        ["reward.http.name=exact_match"],
        ["reward.functions[0] and reward.http are both named 'exact_match'"],
        ["reward.http.name=service"],
    ),
    (
        "a service that counts for nothing",
        [*SERVICE, "reward.functions=[]"],
        ["reward.http.weight=0"],
        ["every part of the reward has weight 0"],
        ["reward.http.weight=0.1"],
    ),
]

STAGE_CASES = [
    (
        "no stages",
        ["stage=pipeline"],
        [],
        ["pipeline.stages is empty", "recipe=pipeline_demo"],
        PIPELINE,
    ),
    (
        "folder of a later stage",
        PIPELINE,
        ["pipeline.stages.a.model.path='{b}/model'"],
        ["pipeline.stages.a.model.path={b}/model: there is no stage 'b' before this one"],
        ["pipeline.stages.b={stage: sft, model.path: '{a}/model'}"],
    ),
    (
        "figure of no stage",
        PIPELINE,
        ["pipeline.report.loss=b:loss_last"],
        ["pipeline.report.loss=b:loss_last: must be STAGE:PATH with one of the stages a"],
        ["pipeline.report.loss=a:loss_last"],
    ),
    (
        "a checkpoint of a pipeline",
        PIPELINE,
        ["resume=some/folder"],
        ["some/folder: a pipeline continues where it stopped", "auto or never"],
        ["resume=never"],
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
