"""Rules of deployment: serving, chat, compression, export."""

from __future__ import annotations

from tests.unit.config.rules.cases import (
    CHAT_MODEL,
    SERVE,
    check_broken_values,
    check_rule,
    check_rule_of_a_stage,
    each,
)

CHAT = ["stage=chat", "chat.url=http://127.0.0.1:8000/v1"]
COMPRESS = ["stage=compress"]

CASES = [
    (
        "no licence",
        ["stage=export", "export.licence=mit"],
        ["export.licence=null"],
        ["export.licence=null", "export.licence=apache-2.0"],
        ["export.licence=apache-2.0"],
    ),
    (
        "no method",
        COMPRESS,
        ["compress.methods=[]"],
        ["compress.methods=[]", "int8, int4"],
        ["compress.methods=[int8]"],
    ),
    (
        "an unknown method",
        COMPRESS,
        ["compress.methods=[int8,int3]"],
        ["compress.methods: 'int3' is unknown; choose from", "int4"],
        ["compress.methods=[int8,int4]"],
    ),
    (
        "a method twice",
        COMPRESS,
        ["compress.methods=[int8,int8]"],
        ["compress.methods: int8 is listed more than once"],
        ["compress.methods=[int8]"],
    ),
    (
        "nothing to calibrate on",
        COMPRESS,
        ["data.path="],
        ["data.path is empty", "those of the training run"],
        ["data.path=rows.jsonl"],
    ),
]

STAGE_CASES = [
    (
        "nothing to serve",
        ["stage=serve_reward"],
        [],
        ["reward.model.path=null", "stage=reward_model has written"],
        SERVE,
    ),
    (
        "a served model on ranks",
        SERVE,
        ["reward.model.num_ranks=2"],
        ["reward.model.num_ranks=2", "set them to 1 and 0"],
        ["reward.model.num_ranks=1"],
    ),
    (
        "a served model in slices",
        SERVE,
        ["reward.model.tensor_parallel_size=2"],
        ["reward.model.tensor_parallel_size=2", "set it to 1"],
        ["reward.model.tensor_parallel_size=1"],
    ),
    (
        "an open address without a token",
        SERVE,
        ["serve.host=0.0.0.0"],
        ["serve.host=0.0.0.0", "serve.token_variable=null"],
        ["serve.host=0.0.0.0", "serve.token_variable=TOKEN"],
    ),
    ("no model to serve", ["stage=serve"], [], ["model.path is empty", "`model`"], CHAT_MODEL),
    (
        "an open address of a language model without a token",
        CHAT_MODEL,
        ["serve.host=0.0.0.0"],
        ["serve.host=0.0.0.0", "serve.token_variable=null"],
        ["serve.host=0.0.0.0", "serve.token_variable=KEY"],
    ),
    (
        "replicas as they are needed, on one machine",
        CHAT_MODEL,
        ["serve.max_replicas=2"],
        ["serve.max_replicas=2", "serve.backend=ray_serve"],
        ["serve.max_replicas=2", "serve.backend=ray_serve"],
    ),
    (
        "fewer replicas at the busiest",
        [*CHAT_MODEL, "serve.backend=ray_serve"],
        ["serve.replicas=3", "serve.max_replicas=2"],
        ["serve.max_replicas=2", "less than serve.replicas=3"],
        ["serve.replicas=2", "serve.max_replicas=2"],
    ),
    (
        "an argument of a server that has a key",
        CHAT_MODEL,
        ["generation.extra_engine_args.max_model_len=64"],
        ["extra_engine_args.max_model_len: is set by serve.max_model_tokens"],
        ["serve.max_model_tokens=64", "generation.extra_engine_args.max_logprobs=5"],
    ),
    (
        "calls of tools without their parser",
        CHAT_MODEL,
        ["generation.extra_engine_args={enable_auto_tool_choice: true}"],
        ["enable_auto_tool_choice=true: set tool_call_parser"],
        ["generation.extra_engine_args={enable_auto_tool_choice: true, tool_call_parser: hermes}"],
    ),
    (
        "a parser that is not used",
        CHAT_MODEL,
        ["generation.extra_engine_args={tool_call_parser: hermes}"],
        ["tool_call_parser=hermes: it is used only with enable_auto_tool_choice=true"],
        ["generation.extra_engine_args={}"],
    ),
    (
        "no role",
        CHAT_MODEL,
        ["serve.roles=[]"],
        ["serve.roles=[]: every chat would be refused"],
        ["serve.roles=[user,assistant]"],
    ),
    (
        "any port of a cluster",
        [*CHAT_MODEL, "serve.backend=ray_serve"],
        ["serve.port=0"],
        ["serve.port=0", "name one, such as 8000"],
        ["serve.port=8000"],
    ),
    (
        "no model to chat with",
        ["stage=chat"],
        [],
        ["model.path is empty, and chat.url=null", "name the model to talk to"],
        ["model.path=a/b"],
    ),
    (
        "two to compare with",
        [*CHAT, "chat.compare_url=http://a/v1"],
        ["chat.compare_path=a/b"],
        ["chat.compare_url=http://a/v1, chat.compare_path=a/b", "set one of them to null"],
        ["chat.compare_path=a/b", "chat.compare_url=null"],
    ),
    (
        "no address to talk to",
        CHAT,
        ["chat.url=127.0.0.1:8000"],
        ["chat.url=127.0.0.1:8000: is not the address"],
        CHAT,
    ),
    (
        "a password in the address of another model",
        CHAT,
        ["chat.compare_url=http://me:secret@a/v1"],
        ["chat.compare_url: has a user or a password", "chat.token_variable"],
        ["chat.compare_url=http://a/v1"],
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
