"""Results of lm-evaluation-harness, and the message if it is not installed."""

from __future__ import annotations

import sys

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.evaluation.harness_tasks import HarnessTasks, check_tasks, task_results


def tasks(*names: str) -> HarnessTasks:
    return HarnessTasks(
        names=names,
        folder=None,
        limit=None,
        shots=None,
        uses_chat_template=False,
        max_tokens=None,
    )


def test_results_as_the_harness_returns_them():
    found = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.125,
                "exact_match,none": 0.5,
                "exact_match_stderr,none": "N/A",
            },
            "a_group": {"alias": "a group", "acc,none": 0.75, "acc_stderr,none": 0.0625},
        },
        "n-samples": {"gsm8k": {"original": 1319, "effective": 16}},
        "n-shot": {"gsm8k": 5},
    }
    assert task_results(found) == {
        "gsm8k": {
            "num_samples": 16,
            "num_fewshot": 5,
            "metrics": {
                "exact_match/strict-match": {"mean": 0.25, "standard_error": 0.125},
                "exact_match": {"mean": 0.5, "standard_error": None},
            },
        },
        "a_group": {
            "num_samples": None,
            "num_fewshot": None,
            "metrics": {"acc": {"mean": 0.75, "standard_error": 0.0625}},
        },
    }


def test_without_tasks_no_harness_is_needed():
    check_tasks(tasks())


def test_an_environment_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RequestError, match=r"install rlhf_ray\[lm-eval\]"):
        check_tasks(tasks("gsm8k"))
