"""Actors have every method that the group of their role calls, which Ray finds out too late."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from rlhf_ray.cluster import roles

MODULES = sorted(file.stem for file in Path(roles.__path__[0]).glob("[a-z]*.py"))
CALL = re.compile(r"\.handle\.(\w+)\.remote\(")
# Asked only of policies with a reference, and only of ranks that share a reward model.
NOT_OF_ALL = {"score_answers", "join"}


def own_classes(module) -> list[type]:
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if each.__module__ == module.__name__
    ]


def called(module) -> set[str]:
    return {name for each in own_classes(module) for name in CALL.findall(inspect.getsource(each))}


def actors(module) -> list[type]:
    """Those that make a worker of their own."""
    return [
        each
        for each in own_classes(module)
        if each.__name__.endswith("Actor") and "__init__" in vars(each)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_actors_have_the_methods_that_are_called(name):
    module = importlib.import_module(f"rlhf_ray.cluster.roles.{name}")
    missing = {
        f"{actor.__name__}.{method}"
        for actor in actors(module)
        for method in called(module) - NOT_OF_ALL
        if not hasattr(actor, method)
    }
    assert missing == set()


def test_policies_with_a_reference_score_answers():
    from rlhf_ray.cluster.roles import fit

    assert "score_answers" in called(fit)
    assert hasattr(fit.PreferenceTrainerActor, "score_answers")
    assert hasattr(fit.FeedbackTrainerActor, "score_answers")


def test_calls_and_actors_are_found():
    learner = importlib.import_module("rlhf_ray.cluster.roles.learner")
    assert {actor.__name__ for actor in actors(learner)} == {"LearnerActor"}
    assert "update" in called(learner)
