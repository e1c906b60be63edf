"""Words for the deaths of workers, from the errors of Ray."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from rlhf_ray.cluster.runtime.deaths import cause, headline, is_death

# Of Ray 2.60, shortened in the middle.
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.7, ID: 8062f5e29b0dc1) was 22.40GB used / 23.54GB limit (0.951572)\n"
    "OOM kill reason: Memory usage 7351701504B exceeded threshold\n"
    "Object store memory usage: [- objects spillable: 0\n- bytes spillable: 0\n]\n"
    "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
    "27712\t12.43\tray::LearnerActor\n"
    "26390\t4.42\tpython -m someone.else recipe=demo...\n"
    "27045\t0.40\tray::ReferenceActor\n1\t0.1\ta\n2\t0.1\tb\n3\t0.1\tc\n"
    "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io"
)


def died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=b"1" * 16))


@pytest.mark.parametrize("of_actor", [False, True])
def test_memory_names_the_node_and_who_used_it(of_actor):
    error = died(MEMORY) if of_actor else OutOfMemoryError(MEMORY)
    assert is_death(error)
    assert headline("generator_0", error) == (
        "generator_0 was ended, because its node ran out of memory"
    )
    words = cause(error)
    assert words.startswith(
        "Ray's memory monitor ended it on 10.0.0.7 with 22.40GB used / 23.54GB limit. The largest "
        "there: process 27712 12.43 GB (ray::LearnerActor), process 26390 4.42 GB (python -m "
    )
    assert "process 3 " not in words
    assert "spillable" not in words


def test_a_node_that_died_is_named_before_its_worker():
    error = died("The actor died because its node has died. Node Id: 3f")
    assert headline("generator_0", error) == "the node of generator_0 died"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (died("The worker process has died: connection error code 2."), "puppet_0 died"),
        (RayTaskError("f", "traceback", ValueError("no")), "puppet_0 failed"),
    ],
)
def test_other_ends(error, words):
    assert headline("puppet_0", error) == words


def test_the_cause_of_a_failure_is_its_exception():
    assert cause(RayTaskError("f", "traceback", ValueError("no such row"))) == (
        "ValueError: no such row"
    )
