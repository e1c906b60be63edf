"""The reward worker with real child processes: rewards, failures, deaths of processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.worker import RewardWorker
from tests.unit.rewards.conftest import build_step_group as step_group

pytestmark = pytest.mark.unit_slow

TIMEOUT_S = 0.5
LATE = "it took longer than reward.timeout_s, 0.5 s"


def test_parts_are_weighted_and_reported_separately(make_worker, make_group, user_rewards) -> None:
    worker = make_worker(
        {"path": "arithmetic", "weight": 2.0},
        {"path": f"{user_rewards}:letters", "weight": -0.1},
        {"path": f"{user_rewards}:Prefix", "name": "polite", "arguments": {"text": "It"}},
    )
    group, summary = worker.score(
        make_group("42", indices=(1,)), make_group("It is 41", "It is 42", indices=(2, 0))
    )
    assert group.sample_indices == (0, 1, 2)
    assert {name: part.tolist() for name, part in group.reward_parts.items()} == {
        "arithmetic": [1.0, 1.0, 0.0],
        "letters": [8.0, 2.0, 8.0],
        "polite": [1.0, 0.0, 1.0],
    }
    assert group.rewards.tolist() == pytest.approx([2 - 0.8 + 1, 2 - 0.2, -0.8 + 1])
    assert group.rewards.dtype == torch.float64
    assert summary == group.summary()
    assert summary.failures == ()


def test_a_function_by_import_path_sees_the_whole_sample(make_worker, make_group, user_rewards):
    # The child's module path is that of this process.
    sys.path.append(str(Path(user_rewards).parent))
    try:
        worker = make_worker({"path": "user_rewards:column", "arguments": {"name": "level"}})
    finally:
        sys.path.remove(str(Path(user_rewards).parent))
    group, _ = worker.score(make_group("a"))
    assert group.rewards.tolist() == [5.0]


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        ("divide", FailureKind.REWARD_ERROR, r"'by_response': ZeroDivisionError: division by zero "
         r"\(.*user_rewards.py, line \d+, in <lambda>\)"),
        ("sys_exit", FailureKind.REWARD_ERROR, "SystemExit: 4"),
        ("text", FailureKind.REWARD_ERROR, r"it returned '1.0' \(str\), not a number"),
        ("none", FailureKind.REWARD_ERROR, r"it returned None \(NoneType\), not a number"),
        ("nan", FailureKind.REWARD_NOT_FINITE, "it returned nan, not a finite number"),
        ("infinity", FailureKind.REWARD_NOT_FINITE, "it returned -inf"),
        ("huge", FailureKind.REWARD_NOT_FINITE, "it returned inf"),
        *(
            (name, FailureKind.REWARD_TIMEOUT, LATE)
            for name in ("sleep", "regex", "hold")
        ),
        ("exit", FailureKind.REWARD_WORKER_LOST, "its process ended: exit status 3"),
        ("segfault", FailureKind.REWARD_WORKER_LOST, "its process ended: killed by SIGSEGV"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_a_typed_failure_and_the_others_are_scored(
    make_worker, make_group, user_rewards, response: str, kind: FailureKind, message: str
) -> None:
    worker = make_worker(
        f"{user_rewards}:by_response", f"{user_rewards}:letters", timeout_s=TIMEOUT_S
    )
    started = time.monotonic()
    group, summary = worker.score(make_group("a", response, "bb"))
    assert time.monotonic() - started < TIMEOUT_S + 5
    assert group.sample_indices == (0, 2)
    assert group.rewards.tolist() == [2.0, 3.0]
    assert group.lengths.tolist() == [3, 4]
    assert group.token_ids.tolist() == [0, 1, 2, 200, 201, 202, 203]
    (failure,) = summary.failures
    assert (failure.prompt_id, failure.sample_index, failure.kind) == ("e0-r1", 1, kind)
    assert re.search(message, failure.message), failure.message
    again, _ = worker.score(make_group("ccc"))
    assert again.rewards.tolist() == [4.0]


def test_steps_reach_their_tokens(make_worker, user_rewards) -> None:
    worker = make_worker(
        {"path": f"{user_rewards}:by_letter", "weight": 2.0},
        {"path": f"{user_rewards}:letters", "weight": 0.5},
    )
    parts = step_group("Ab", indices=(1,)), step_group("bCC", "A", indices=(2, 0))
    group, summary = worker.score(*parts)
    assert group.sample_indices == (0, 1, 2)
    assert group.reward_parts["by_letter"].tolist() == [1.0, 1.0, 2.0]
    assert group.reward_parts["letters"].tolist() == [1.0, 2.0, 3.0]
    assert group.rewards.tolist() == [2.5, 3.0, 5.5]
    # The number of letters counts at the end, behind the last letter.
    assert summary.step_rewards == ((2.5,), (2.0, 1.0), (0.0, 2.0, 3.5))
    assert summary == group.summary()


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        ("nan", FailureKind.REWARD_NOT_FINITE, r"'bad_steps': StepRewards.rewards\[1\]: it retur"),
        ("far", FailureKind.REWARD_ERROR, r"'bad_steps': StepRewards.ends\[0\] is 99; .* 3 here"),
        ("back", FailureKind.REWARD_ERROR, r"StepRewards.ends\[1\] is 1; ends rise strictly"),
        ("many", FailureKind.REWARD_ERROR, "StepRewards with 1 rewards and 2 ends"),
        ("broken", FailureKind.REWARD_ERROR, "RuntimeError: no list for you"),
    ],
)
def test_bad_steps_are_a_failure_and_never_a_reward(
    make_worker, user_rewards, response: str, kind: FailureKind, message: str
) -> None:
    worker = make_worker(f"{user_rewards}:bad_steps")
    group, summary = worker.score(step_group("a", response, "b"))
    assert group.sample_indices == (0, 2)
    assert summary.step_rewards == ((1.0,), (1.0,))
    (failure,) = summary.failures
    assert (failure.sample_index, failure.kind) == (1, kind)
    assert re.search(message, failure.message), failure.message


def test_infinite_steps_do_not_cancel(make_worker, user_rewards) -> None:
    arguments = {"capital": 1e300, "other": -1e300}
    entry = {"path": f"{user_rewards}:by_letter", "weight": 1e300, "arguments": arguments}
    _, summary = make_worker(entry).score(step_group("aA"))
    assert summary.failures[0].kind == FailureKind.REWARD_NOT_FINITE
    assert "weighted sum of the parts [0.0] is nan" in summary.failures[0].message


def test_several_bad_samples_in_one_group(make_worker, make_group, user_rewards) -> None:
    worker = make_worker(f"{user_rewards}:by_response", timeout_s=TIMEOUT_S)
    group, summary = worker.score(make_group("exit", "regex", "good", "exit", "nan"))
    assert group.rewards.tolist() == [1.0]
    assert [(f.sample_index, f.kind) for f in summary.failures] == [
        (0, FailureKind.REWARD_WORKER_LOST),
        (1, FailureKind.REWARD_TIMEOUT),
        (3, FailureKind.REWARD_WORKER_LOST),
        (4, FailureKind.REWARD_NOT_FINITE),
    ]


def test_a_group_of_failures_has_no_rewards(make_worker, make_group, user_rewards) -> None:
    group, summary = make_worker(f"{user_rewards}:by_response").score(make_group("nan", "none"))
    assert (group.num_samples, summary.rewards, len(summary.failures)) == (0, (), 2)
    assert group.reward_parts["by_response"].shape == (0,)


@pytest.mark.parametrize("weight", [1e308, 1e38])
def test_a_sum_that_overflows_is_not_finite(
    make_worker, make_group, user_rewards, weight: float
) -> None:
    """Neither in float64 nor in float32, in which advantages are computed."""
    worker = make_worker(
        {"path": f"{user_rewards}:letters", "weight": weight, "arguments": {"scale": 10.0}}
    )
    _, summary = worker.score(make_group("aaaa"))
    assert summary.failures[0].kind == FailureKind.REWARD_NOT_FINITE
    assert "weighted sum" in summary.failures[0].message


def test_what_a_function_prints_goes_to_the_log(make_worker, make_group, user_rewards, capfd):
    group, _ = make_worker(f"{user_rewards}:prints").score(make_group("a", "b"))
    assert group.rewards.tolist() == [0.5, 0.5]
    assert capfd.readouterr().out.count("raw bytes on the standard output") == 2


@pytest.mark.parametrize(
    ("on_failure", "fail_first", "rewards", "num_calls"),
    [("retry", 0, [0.0], 1), ("retry", 1, [1.0], 2), ("retry", 2, [], 2), ("drop", 1, [], 1)],
)
def test_a_failed_part_is_tried_once_more(
    make_worker, make_group, user_rewards, tmp_path, on_failure, fail_first, rewards, num_calls
) -> None:
    worker = make_worker(
        {
            "path": f"{user_rewards}:counts_calls",
            "arguments": {"folder": str(tmp_path), "fail_first": fail_first},
        },
        on_failure=on_failure,
    )
    group, summary = worker.score(make_group("a"))
    assert group.rewards.tolist() == rewards
    assert len(list(tmp_path.iterdir())) == num_calls
    assert len(summary.failures) == 1 - len(rewards)


def test_a_retry_runs_the_failed_part_only(make_worker, make_group, user_rewards, tmp_path):
    folders = [tmp_path / "good", tmp_path / "bad"]
    for folder in folders:
        folder.mkdir()
    worker = make_worker(
        *(
            {
                "path": f"{user_rewards}:counts_calls",
                "name": folder.name,
                "arguments": {"folder": str(folder), "fail_first": number},
            }
            for number, folder in enumerate(folders)
        ),
        on_failure="retry",
    )
    group, _ = worker.score(make_group("a", "b"))
    assert group.rewards.tolist() == [1.0, 1.0]
    assert [len(list(folder.iterdir())) for folder in folders] == [2, 4]


def child_of(worker: RewardWorker, make_group) -> psutil.Process:
    group, _ = worker.score(make_group("a"))
    return psutil.Process(int(group.rewards[0]))


def test_a_child_killed_between_groups_is_started_again(make_worker, make_group, user_rewards):
    worker = make_worker(f"{user_rewards}:process_id")
    child = child_of(worker, make_group)
    child.send_signal(signal.SIGKILL)
    wait_for_end(child)
    other = child_of(worker, make_group)
    assert other.pid != child.pid


def test_a_stopped_child_is_replaced_even_if_the_message_does_not_fit(
    make_worker, make_group, user_rewards
) -> None:
    worker = make_worker(f"{user_rewards}:process_id", timeout_s=1.0)
    child_of(worker, make_group).send_signal(signal.SIGSTOP)
    started = time.monotonic()
    group, summary = worker.score(make_group("x" * 2_000_000, "y"))
    assert time.monotonic() - started < 10
    assert [f.kind for f in summary.failures] == [FailureKind.REWARD_TIMEOUT]
    assert group.sample_indices == (1,)


def test_the_child_is_light_and_ends_with_close(make_worker, make_group, user_rewards) -> None:
    worker = make_worker(f"{user_rewards}:process_id", f"{user_rewards}:imports_torch")
    group, _ = worker.score(make_group("a"))
    assert group.reward_parts["imports_torch"].tolist() == [0.0]
    child = psutil.Process(int(group.rewards[0]))
    worker.close()
    worker.close()
    wait_for_end(child)


def test_programs_of_a_killed_function_are_killed(make_worker, make_group, user_rewards, tmp_path):
    worker = make_worker(
        {"path": f"{user_rewards}:leaves_program", "arguments": {"folder": str(tmp_path)}},
        timeout_s=TIMEOUT_S,
    )
    worker.score(make_group("a"))
    pid = int((tmp_path / "pid").read_text())
    if psutil.pid_exists(pid):
        wait_for_end(psutil.Process(pid))


def test_the_child_dies_with_its_parent_even_in_a_function_that_holds_the_interpreter(
    user_rewards, tmp_path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from conftest import build_group\n"
        "from rlhf_ray.config.groups.reward import RewardConfig\n"
        "from rlhf_ray.rewards.worker import RewardWorker\n"
        f"worker = RewardWorker(RewardConfig(functions=['{user_rewards}:process_id', "
        f"'{user_rewards}:by_response'], timeout_s=120))\n"
        "worker.start()\n"
        "print(int(worker.score(build_group('a'))[0].reward_parts['process_id'][0]), flush=True)\n"
        "worker.score(build_group('hold'))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    wait_for_end(child)


def wait_for_end(process: psutil.Process, timeout_s: float = 10.0) -> None:
    """Wait until a process has ended, or is a zombie that has not been reaped."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
    pytest.fail(f"process {process.pid} still runs after {timeout_s} s")


def test_a_function_that_cannot_be_loaded_is_a_request_error(user_rewards) -> None:
    entry = {"path": f"{user_rewards}:Refuses", "arguments": {"size": 9}}
    worker = RewardWorker(RewardConfig(functions=[entry]))
    with pytest.raises(RequestError, match="ValueError: size 9 is too large"):
        worker.start()


def test_a_module_that_ends_the_process_is_named(tmp_path) -> None:
    (tmp_path / "ends.py").write_text("import os\nos._exit(5)\n")
    worker = RewardWorker(RewardConfig(functions=[f"{tmp_path}/ends.py:f"]))
    with pytest.raises(RuntimeError, match="ended while it started: exit status 5"):
        worker.start()
