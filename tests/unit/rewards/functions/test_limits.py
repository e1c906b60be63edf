"""Limits of the functions' processes, and the variables that they see."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.functions.environment import function_environment
from rlhf_ray.rewards.functions.limits import FunctionLimits

pytestmark = pytest.mark.unit_slow

HOSTILE = str(Path(__file__).parent / "hostile_rewards.py")
NONE = FunctionLimits(memory_gib=None, processes=None, open_files=None, file_gib=None)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("memory", "reward.max_memory_gib is 1: MemoryError ("),
        ("files", "reward.max_open_files is 100: OSError: [Errno 24]"),
        ("file", "reward.max_file_gib is 0.01: OSError: [Errno 27]"),
        ("processes", "it had more processes at once than reward.max_processes, 20"),
    ],
)
def test_a_limit_that_is_reached_is_a_failure_that_names_it(
    make_worker, make_group, tmp_path, response: str, message: str
) -> None:
    worker = make_worker(
        {"path": f"{HOSTILE}:uses", "arguments": {"folder": str(tmp_path)}},
        max_memory_gib=1.0,
        max_open_files=100,
        max_file_gib=0.01,
        max_processes=20,
        timeout_s=30.0,
    )
    started = time.monotonic()
    group, summary = worker.score(make_group("a", response, "b"))
    assert time.monotonic() - started < 20
    assert group.rewards.tolist() == [1.0, 1.0]
    (failure,) = summary.failures
    assert failure.kind is FailureKind.REWARD_LIMIT
    assert message in failure.message, failure.message
    assert "sleep" not in {p.name() for p in psutil.Process().children(recursive=True)}


def test_memory_counts_for_all_processes_together(make_worker, make_group) -> None:
    worker = make_worker(f"{HOSTILE}:uses", max_memory_gib=0.4, timeout_s=30.0)
    _, summary = worker.score(make_group("together"))
    (failure,) = summary.failures
    assert failure.kind is FailureKind.REWARD_LIMIT
    assert "GiB, and reward.max_memory_gib is 0.4" in failure.message


def test_without_limits_all_of_it_is_allowed(make_worker, make_group, tmp_path) -> None:
    worker = make_worker(
        {"path": f"{HOSTILE}:uses", "arguments": {"folder": str(tmp_path)}},
        max_memory_gib=None,
        max_open_files=None,
        max_file_gib=None,
        max_processes=None,
    )
    group, _ = worker.score(make_group("files", "file"))
    assert group.rewards.tolist() == [500.0, 1.0]


def test_limits_are_set_and_never_raised() -> None:
    limits = FunctionLimits(memory_gib=2.0, processes=9, open_files=10**9, file_gib=0.5)
    code = (
        "import json, resource, sys\n"
        "from rlhf_ray.rewards.functions.limits import FunctionLimits\n"
        f"FunctionLimits(**{asdict(limits)!r}).apply()\n"
        "print([resource.getrlimit(kind) for kind in (resource.RLIMIT_DATA, "
        "resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert eval(printed) == [(2 << 30,) * 2, (1 << 29,) * 2, (0, 0), (files,) * 2]


def test_only_errors_of_limits_name_a_limit() -> None:
    limits = FunctionLimits(memory_gib=1.0, processes=None, open_files=5, file_gib=2.0)
    cases = {
        "reward.max_memory_gib is 1": (MemoryError(), OSError(errno.ENOMEM, "x")),
        "reward.max_open_files is 5": (OSError(errno.EMFILE, "x"),),
        "reward.max_file_gib is 2": (OSError(errno.EFBIG, "x"),),
    }
    for message, errors in cases.items():
        for error in errors:
            assert limits.reached_by(error) == message
            assert NONE.reached_by(error) is None
    assert limits.reached_by(OSError(errno.ENOENT, "x")) is None
    assert limits.reached_by(ValueError("x")) is None


def test_secrets_of_the_environment_are_not_seen(make_worker, make_group, monkeypatch) -> None:
    for name in ("HIDDEN_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "OPENAI_API_KEY", "LC_NUMERIC"):
        monkeypatch.setenv(name, "value")
    worker = make_worker(f"{HOSTILE}:sees", environment=["OPENAI_API_KEY"])
    names = ("HIDDEN_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "OPENAI_API_KEY", "LC_NUMERIC", "PATH")
    group, _ = worker.score(make_group(*names))
    seen = dict(zip(names, group.rewards.tolist(), strict=True))
    assert [name for name in names if seen[name]] == ["OPENAI_API_KEY", "LC_NUMERIC", "PATH"]


def test_the_environment_is_an_allow_list() -> None:
    given = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "HF_HOME": "/h", "PYTHONPATH": "/old"}
    secret = {"HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "RAY_ADDRESS": "a", "PATH2": "x"}
    secret |= {"HTTPS_PROXY": "http://user:password@proxy", "WANDB_API_KEY": "k"}
    chosen = function_environment({**given, **secret}, ["PATH2"])
    assert set(chosen) == {"PATH", "OMP_NUM_THREADS", "HF_HOME", "PYTHONPATH", "PATH2"}
    assert chosen["PYTHONPATH"] == os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def test_a_variable_that_is_not_set_is_refused(make_worker) -> None:
    with pytest.raises(RequestError, match=r"reward\.environment: NO_SUCH_KEY is not set where"):
        make_worker("length", environment=["NO_SUCH_KEY"])
    assert RewardConfig().environment == []
