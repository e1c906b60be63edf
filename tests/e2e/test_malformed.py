"""Wrong requests, end to end: what the command says and the status it ends with.

One table. A row is (name, arguments, exit status, fragments of the one message). The rows run in
this process through `main`; a few of them again as a real command, with its time.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from rlhf_ray.main import main

WRONG = 2
# Processor seconds, not wall: the machine that runs the tests may be busy with others.
MAX_CPU_S = 5.0
DEMO = "recipe=demo"

MALFORMED_CONFIGURATIONS = [
    # Keys and choices that do not exist.
    ("unknown key", [DEMO, "num_step=3"], ["num_step: unknown key", "did you mean num_steps"]),
    ("unknown group", [DEMO, "zebra.stripes=1"], ["zebra.stripes: unknown key", "--cfg job"]),
    (
        "a key of other libraries",
        [DEMO, "trainer.lr=1"],
        ["trainer.lr: unknown key; did you mean training.learning_rate"],
    ),
    (
        "misspelled group",
        [DEMO, "trainig.learning_rate=1e-5"],
        ["trainig.learning_rate: unknown key; did you mean training.learning_rate"],
    ),
    (
        "misspelled key",
        [DEMO, "generation.num_engine=2"],
        ["did you mean generation.num_engines"],
    ),
    (
        "key without its group",
        [DEMO, "learning_rate=1e-5"],
        ["did you mean training.learning_rate or critic.learning_rate"],
    ),
    ("added unknown key", [DEMO, "+foo=1"], ["foo: unknown key"]),
    ("key below a value", [DEMO, "num_steps.a=1"], ["num_steps.a: unknown key"]),
    ("Hydra's own key", [DEMO, "hydra.run.dir=x"], ["hydra.run.dir: unknown key"]),
    ("unknown recipe", ["recipe=demmo"], ["recipe=demmo", "did you mean recipe=demo?", "gpu_7b"]),
    ("unknown stage", [DEMO, "stage=plam"], ["stage=plam", "did you mean stage=plan?"]),
    ("unknown placement", [DEMO, "placement=shared"], ["colocated, disaggregated"]),
    ("unknown algorithm", [DEMO, "algorithm=dqn"], ["algorithm=dqn", "grpo, gspo", "opo, ppo"]),
    ("value for a group", [DEMO, "critic=3"], ["critic=3", "critic.num_ranks=..."]),
    # Forms that are not understood.
    ("no value", [DEMO, "num_steps"], ["num_steps: is not of the form key=value"]),
    ("no key", [DEMO, "=3"], ["=3: is not of the form key=value"]),
    ("unquoted equals", [DEMO, "num_steps=3=4"], ["num_steps=3=4", "quotes"]),
    ("open bracket", [DEMO, "generation.stop=[a"], ["generation.stop=[a", "cannot be read"]),
    ("sweep", [DEMO, "num_steps=1,2"], ["num_steps=1,2", "one run takes one value"]),
    ("removal", [DEMO, "~num_steps"], ["~num_steps", "cannot be removed"]),
    ("package", [DEMO, "algorithm@critic=ppo"], ["algorithm@critic=ppo", "algorithm=NAME"]),
    ("unknown option", [DEMO, "--multirun"], ["--multirun", "--help"]),
    ("unknown kind of print", ["--cfg", "hydra"], ["'hydra'", "'job'"]),
    ("interpolation", [DEMO, "seed=${nope}"], ["seed", "nope"]),
    # Values of a wrong type.
    ("text for a number", [DEMO, "num_steps=many"], ["num_steps=many: must be a whole number"]),
    ("part of a step", [DEMO, "num_steps=1.5"], ["num_steps=1.5: must be a whole number"]),
    ("truth for a number", [DEMO, "num_steps=true"], ["num_steps=true: must be a whole number"]),
    ("text for a rate", [DEMO, "training.learning_rate=low"], ["=low: must be a number"]),
    ("text for a truth", [DEMO, "dry_run=maybe"], ["dry_run=maybe: must be true or false"]),
    ("null for a number", [DEMO, "num_steps=null"], ["num_steps=null: must be a whole number"]),
    ("text for a list", [DEMO, "generation.stop=x"], ["must be a list of text", "[a,b]"]),
    ("list for text", [DEMO, "model.path=[a]"], ["model.path=[a]: must be text"]),
    ("text for a mapping", [DEMO, "generation.extra_engine_args=x"], ["mapping", "{a:1,b:2}"]),
    # Values out of bounds.
    ("no steps", [DEMO, "num_steps=0"], ["num_steps=0: must be at least 1 (steps)"]),
    ("negative staleness", [DEMO, "max_staleness=-1"], ["max_staleness=-1", "at least 0"]),
    ("huge seed", [DEMO, "seed=99999999999"], ["seed=99999999999", "at most 2147483647"]),
    ("cold", [DEMO, "generation.temperature=0"], ["generation.temperature=0", "at least 0.01"]),
    ("nucleus", [DEMO, "generation.top_p=1.5"], ["generation.top_p=1.5", "at most 1"]),
    ("wide top-k", [DEMO, "generation.top_k=2000"], ["generation.top_k=2000", "at most 1024"]),
    (
        "least share",
        [DEMO, "generation.min_p=0.1"],
        ["generation.min_p=0.1", "set generation.top_k to a number from 1 to 1024"],
    ),
    ("head kernel", [DEMO, "model.head_kernel=fused"], ["must be one of auto, chunked, liger"]),
    ("liger on a CPU", [DEMO, "model.head_kernel=liger"], ["model.head_kernel=chunked"]),
    ("not a number", [DEMO, "training.learning_rate=nan"], ["must be a finite number"]),
    ("infinite", [DEMO, "training.learning_rate=inf"], ["must be a finite number"]),
    ("ZeRO stage", [DEMO, "training.zero_stage=4"], ["must be one of 0, 1, 2, 3"]),
    ("number format", [DEMO, "training.dtype=float16"], ["must be one of float32, bfloat16"]),
    ("estimator", [DEMO, "algorithm.kl_estimator=k4"], ["must be one of k1, k2, k3"]),
    # Rules between keys; tests/unit/config/rules has cases of all of them, with their fix.
    ("nothing chosen", [], ["model.path is empty", "data.path is empty", "reward.functions is"]),
    ("budget", [DEMO, "training.max_tokens_per_micro_batch=8"], ["raise it to at least 38"]),
    ("mini-batches", [DEMO, "algorithm.num_mini_batches=500"], ["only 128 samples"]),
    ("idle ranks", [DEMO, "training.num_ranks=200"], ["use at most 128 ranks"]),
    ("idle engines", [DEMO, "generation.num_engines=20"], ["use at most 16 engines"]),
    ("group of one", [DEMO, "samples_per_prompt=1"], ["needs at least 2"]),
    (
        "part of the vocabulary",
        [DEMO, "generation.top_p=0.9"],
        ["generation.top_p=0.9", "set generation.top_k to a number from 1 to 1024"],
    ),
    ("critic warm-up", [DEMO, "algorithm.critic_warmup_steps=2"], ["use algorithm=ppo"]),
    ("CPU cache", [DEMO, "generation.kv_cache_gib=null"], ["generation.kv_cache_gib=null"]),
    ("offload", [DEMO, "training.offload_optimizer=true"], ["set zero_stage to 1, 2 or 3"]),
    ("colocated", [DEMO, "placement=colocated", "max_staleness=1"], ["placement=disaggregated"]),
    ("colocated GPUs", ["recipe=gpu_7b", "placement=colocated"], ["max_staleness=1"]),
    (
        "adaptive KL",
        [DEMO, "algorithm.kl_controller=adaptive", "algorithm.kl_coefficient=0"],
        ["algorithm.kl_coefficient=0", "kl_controller=fixed"],
    ),
    (
        "short responses",
        [DEMO, "generation.min_response_tokens=9"],
        ["min_response_tokens=9", "set it to 0"],
    ),
    ("remote folder", [DEMO, "output_dir=s3://bucket/run"], ["is not a folder"]),
    # Learning from examples.
    (
        "no examples",
        [DEMO, "stage=sft"],
        ["examples.path is empty", "stage=sft learns from", "stage=prepare_data"],
    ),
    (
        "random weights",
        [DEMO, "stage=sft", "examples.path=x", "model.random_weights=true"],
        ["model.random_weights=true", "use stage=pretrain"],
    ),
    # Rollout selection.
    (
        "unknown selection",
        [DEMO, "rollout_selection=dap"],
        ["rollout_selection=dap", "did you mean rollout_selection=dapo?"],
    ),
    (
        "too few",
        [DEMO, "rollout_selection.oversample=0.5"],
        ["rollout_selection.oversample=0.5", "at least 1"],
    ),
    (
        "no replacements",
        [DEMO, "rollout_selection.dynamic=true", "rollout_selection.max_replacements_per_step=0"],
        ["rollout_selection.max_replacements_per_step=0", "at least 1 (prompts)"],
    ),
    (
        "sure success",
        [DEMO, "rollout_selection.curriculum_target=1"],
        ["=1: must be", "less than 1"],
    ),
    (
        "inexact resume",
        [DEMO, "rollout_selection.oversample=1.5", "checkpoint.every_steps=10"],
        ["rollout_selection.oversample=1.5", "rollout_selection.exact_resume=false"],
    ),
    (
        "replay on-policy",
        [DEMO, "rollout_selection=replay", "algorithm.num_mini_batches=2"],
        ["rollout_selection.replay_groups_per_step=4", "algorithm.num_mini_batches=2"],
    ),
    (
        "punished from the start",
        [DEMO, "rollout_selection.overlong_buffer_tokens=20"],
        ["rollout_selection.overlong_buffer_tokens=20", "at most 5"],
    ),
    (
        "text for a weight",
        [DEMO, "rollout_selection.task_weights.sums=much"],
        [
            "rollout_selection.task_weights={'sums': 'much'}",
            "mapping of names to values",
            "{a:1,b:2}",
        ],
    ),
    (
        "weights without tasks",
        [DEMO, "rollout_selection.task_weights.sums=2"],
        ["rollout_selection.task_weights", "data.source_column"],
    ),
    # Texts.
    (
        "no texts",
        [DEMO, "algorithm.ptx_coefficient=0.5"],
        ["texts.path is empty", "as in texts.path=texts.jsonl"],
    ),
    (
        "texts for nothing",
        [DEMO, "texts.path=a.jsonl"],
        ["texts.path=a.jsonl", "algorithm.ptx_coefficient=0.1"],
    ),
    (
        "long texts",
        [DEMO, "texts.path=a.jsonl", "algorithm.ptx_coefficient=1", "texts.max_tokens=9000"],
        ["texts.max_tokens=9000", "at most 8192"],
    ),
    # Rewards.
    ("unknown reward", [DEMO, "reward.functions=[exact]"], ["'exact'", "exact_match"]),
    (
        "reward without a path",
        [DEMO, "reward.functions=[{weight:1}]"],
        ["reward.functions[0].path"],
    ),
    ("reward weight", [DEMO, "reward.functions=[{path:length,weight:x}]"], ["[0].weight", "'x'"]),
    ("twice the same", [DEMO, "reward.functions=[length,length]"], ["both named 'length'"]),
    ("no answers", [DEMO, "data.answer_column=null"], ["data.answer_column=null"]),
    # The data stage.
    ("no sources", ["stage=prepare_data"], ["prepare.sources is empty", "prepare.sources.NAME"]),
    (
        "unknown layout",
        ["stage=prepare_data", "prepare.sources.a={path: a.jsonl, layout: hh_rlfh}"],
        ["prepare.sources.a.layout=hh_rlfh", "did you mean hh_rlhf?", "openassistant"],
    ),
    (
        "two sources",
        ["stage=prepare_data", "prepare.sources.a=a.jsonl", "prepare.sources.b={pat: b.txt}"],
        ["wrong in 2 places", "sources.a: neither kind nor layout", "b.pat: unknown key"],
    ),
    # Several at once.
    (
        "several problems",
        [DEMO, "num_step=3", "training.zero_stage=9", "num_steps=x", "seed=1,2"],
        ["wrong in 4 places", "num_step:", "zero_stage=9", "num_steps=x", "seed=1,2"],
    ),
]

# Files that the arguments below name; the commands run in the folder that holds them.
GOOD_ROWS = '{"prompt": "What is 1+1?", "answer": "2"}\n'
REWARD_CODE = "def score(sample):\n    return 0.0\n"
INPUT_FILES = {
    "good.jsonl": GOOD_ROWS,
    "empty.jsonl": "",
    "broken.jsonl": GOOD_ROWS + '{"prompt": \n',
    "number.jsonl": GOOD_ROWS + '{"prompt": 7, "answer": "2"}\n',
    "object.json": '{"rows": 3}',
    "rows.txt": GOOD_ROWS,
    "texts.jsonl": '{"text": "one text"}\n{"text": " "}\n',
    "score.py": REWARD_CODE,
    "broken.py": "def score(sample:\n",
    "folder/readme.txt": "not a model",
    "tasks.jsonl": "".join(
        f'{{"prompt": "What is 1+1?", "answer": "2", "task": "{task}"}}\n'
        for task in ("words", "sums")
    ),
    "template.jinja": "{% for message in messages %}",
}

MIXED = ["algorithm.ptx_coefficient=0.1"]
# What a stage reads before it starts a worker.
MALFORMED_INPUTS = [
    # What an earlier stage makes.
    (
        "examples not prepared",
        ["stage=sft", "examples.path=nothing.jsonl"],
        ["examples.path is 'nothing.jsonl'", "demonstrations", "stage=prepare_data"],
    ),
    (
        "no model of an earlier stage",
        ["stage=sft", "examples.path=good.jsonl", "model.path=pretrained/model"],
        ["model.path is 'pretrained/model'", "stage=pretrain model.path=..."],
    ),
    # Data.
    ("no such file", ["data.path=god.jsonl"], ["god.jsonl", "good.jsonl"]),
    ("empty file", ["data.path=empty.jsonl"], ["empty.jsonl has no rows"]),
    ("broken line", ["data.path=broken.jsonl"], ["broken.jsonl line 2"]),
    ("no text", ["data.path=number.jsonl"], ["number.jsonl line 2", "data.on_bad_row=skip"]),
    ("not rows", ["data.path=object.json"], ["object.json must hold a list"]),
    ("unknown suffix", ["data.path=rows.txt"], ["'.txt'", "data.format"]),
    ("prompt column", ["data.prompt_column=promt"], ["data.prompt_column", "'promt'", "'prompt'"]),
    ("answer column", ["data.answer_column=anser"], ["data.answer_column", "'anser'", "'answer'"]),
    (
        "long prompt",
        ["data.max_prompt_tokens=3", "data.on_long_prompt=error"],
        ["good.jsonl line 1", "data.max_prompt_tokens is 3", "data.on_long_prompt=skip"],
    ),
    ("only long prompts", ["data.max_prompt_tokens=3"], ["no prompt", "is left"]),
    ("no module", ["data.path=no.such.module:rows"], ["no.such.module", "PYTHONPATH"]),
    ("no iterable", ["data.path=rlhf_ray.data.builtin:sums"], ["no 'sums'", "small_sums"]),
    (
        "nothing prepared",
        ["data.path=made/prompt/train.jsonl"],
        ["made/prompt/train.jsonl", "stage=prepare_data", "kind=prompt output_dir=made"],
    ),
    # Rewards.
    ("no reward file", ["reward.functions=[scor.py:score]"], ["scor.py does not exist"]),
    ("no function", ["reward.functions=[score.py:scor]"], ["no 'scor'", "did you mean 'score'"]),
    ("broken code", ["reward.functions=[broken.py:score]"], ["broken.py, line 1, is not Python"]),
    (
        "unknown argument",
        ["reward.functions=[{path:length,arguments:{most:3}}]"],
        ["no argument 'most'"],
    ),
    # Tasks.
    (
        "unknown task",
        [
            "data.path=tasks.jsonl",
            "data.source_column=task",
            "rollout_selection.task_weights={sum:2}",
        ],
        ["rollout_selection.task_weights.sum", "did you mean sums?", "There are: sums, words"],
    ),
    # Texts.
    ("no such texts", [*MIXED, "texts.path=text.jsonl"], ["texts.path", "'texts.jsonl'"]),
    (
        "text column",
        [*MIXED, "texts.path=texts.jsonl", "texts.text_column=txt"],
        ["texts.text_column is 'txt'", "did you mean 'text'"],
    ),
    (
        "no text in it",
        [*MIXED, "texts.path=texts.jsonl"],
        ["texts.jsonl line 2", "'text' is empty", "texts.on_bad_row=skip"],
    ),
    # Model and checkpoint.
    ("no model", ["model.path=./nowhere/model"], ["./nowhere/model", "no such folder"]),
    ("no model in it", ["model.path=folder"], ["model.path", "folder", "without config.json"]),
    ("unknown built-in", ["model.path=builtin:arithmetik"], ["arithmetik", "arithmetic"]),
    ("chat template", ["model.chat_template=template.jinja"], ["template"]),
    ("no checkpoint", ["resume=folder"], ["folder", "COMMITTED"]),
]


def _check_message(status: int, err: str, fragments: list[str]) -> None:
    assert status == WRONG
    assert err.startswith("rlhf_ray: ")
    assert err.count("rlhf_ray: ") == 1, "one message"
    assert "Traceback" not in err
    assert [fragment for fragment in fragments if fragment not in err] == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [row[1:] for row in MALFORMED_CONFIGURATIONS],
    ids=[row[0] for row in MALFORMED_CONFIGURATIONS],
)
def test_configuration(arguments, fragments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(arguments)
    out, err = capsys.readouterr()
    _check_message(status, err, fragments)
    assert out == ""
    assert list(tmp_path.iterdir()) == [], "a refused request leaves nothing behind"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    # Imported here: the configurations above are refused without torch.
    from rlhf_ray.testing.tiny import tiny_random

    return tiny_random(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [row[1:] for row in MALFORMED_INPUTS],
    ids=[row[0] for row in MALFORMED_INPUTS],
)
def test_input(arguments, fragments, model_folder, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in INPUT_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    good = [f"model.path={model_folder}", "output_dir=run"]
    if not arguments[0].startswith("stage="):
        good += [DEMO, "data.path=good.jsonl"]
    status = main([*good, *arguments])
    _check_message(status, capfd.readouterr().err, fragments)
    import ray

    assert not ray.is_initialized()


def test_the_table_is_long_enough():
    rows = MALFORMED_CONFIGURATIONS + MALFORMED_INPUTS
    assert len({row[0] for row in rows}) == len(rows) >= 40


@pytest.mark.parametrize(
    "name", ["unknown key", "budget", "unknown reward", "several problems", "nothing chosen"]
)
def test_as_a_command(name, tmp_path):
    (row,) = [row for row in MALFORMED_CONFIGURATIONS if row[0] == name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_ray.main", *row[1]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    _check_message(done.returncode, done.stderr, row[2])
    assert done.stdout == ""
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_s < MAX_CPU_S
    assert list(tmp_path.iterdir()) == []
