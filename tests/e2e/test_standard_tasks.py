"""lm-evaluation-harness on tasks that the test writes; `make test-slow` installs the extra."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.evaluation.harness_tasks import HarnessTasks, check_tasks
from rlhf_ray.testing.tiny import tiny_that_says

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]

TASKS = {
    "sums_generated": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "sums_chosen": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}
SUMS = [(3, 4), (5, 3), (2, 5)]


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {
            "question": f"What is {a}+{b}?",
            "answer": str(a + b),
            "choices": ["7", "8"],
            "gold": a + b - 7,
        }
        for a, b in SUMS
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        source = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        source += f"dataset_kwargs: {{data_files: {{test: {folder / 'sums.jsonl'}}}}}\n"
        (folder / f"{name}.yaml").write_text(source + text)
    return folder


def test_a_model_that_says_seven(make_run, tasks, tmp_path):
    seven = tiny_that_says(tmp_path / "seven", "7")
    evaluate = (
        "stage=evaluate",
        f"evaluation.models.seven={seven}",
        "evaluation.limit=4",
        f"evaluation.lm_eval_path={tasks}",
        "evaluation.lm_eval_chat=true",
        "evaluation.lm_eval_max_tokens=128",
    )
    run = make_run(*evaluate, "evaluation.lm_eval_tasks=[sums_generated,sums_chosen]").succeed(500)
    report = json.loads((run.output / "evaluation.json").read_text())
    found = report["models"]["seven"]["lm_eval"]
    assert set(found) == set(TASKS)
    for name, metric in (("sums_generated", "exact_match"), ("sums_chosen", "acc")):
        assert found[name]["num_samples"] == len(SUMS)
        assert found[name]["metrics"][metric]["mean"] == pytest.approx(2 / 3)
        assert f"lm-eval {name}: {metric}" in run.text


def test_a_task_that_there_is_not(tasks):
    misspelled = HarnessTasks(
        names=("sums_generated", "sums_choosen"),
        folder=str(tasks),
        limit=None,
        shots=None,
        uses_chat_template=False,
        max_tokens=None,
    )
    with pytest.raises(RequestError, match=r"no task 'sums_choosen'; did you mean sums_chosen"):
        check_tasks(misspelled)
