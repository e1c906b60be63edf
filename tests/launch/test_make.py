"""make targets make the environment first; .ci/run runs lint and tests within its budget."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
BUDGET = "RLHF_RAY_CI_BUDGET_S"
TARGETS = re.findall(r"^([a-z][a-z0-9-]*):.*## ", MAKEFILE, re.MULTILINE)
EVERYTHING_FAST = ["lint", "audit", "test", "test-cluster"]
# Writes down its arguments; fails, prints and takes as long as it is told for a target.
FAKE_MAKE = """\
#!/usr/bin/env python3
import json, os, sys, time
arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
with open(os.environ["FAKE_MAKE_CALLS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
time.sleep(float(os.environ.get("FAKE_MAKE_S", "0")))
if arguments[0] != "lint":
    print(f"===== 3 passed in 1.00s of {arguments[0]} =====")
sys.exit(arguments[0] in os.environ.get("FAKE_MAKE_FAILS", "").split())
"""


def dry_run(target: str) -> list[str]:
    """The commands of a target, without running them."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "target", [name for name in TARGETS if name not in ("help", "clean", "lock")]
)
def test_a_target_makes_the_environment_first(target):
    assert dry_run(target)[0].startswith("launch/setup.sh")


def test_the_targets_that_people_rely_on():
    promised = {"demo", "demo-ppo", "smollm2", "test", "test-slow", "lint", "bench", "docs"}
    assert {*promised, "quick", "agreement"} <= set(TARGETS)
    assert "recipe=demo output_dir=outputs/demo" in dry_run("demo")[-1]


def test_no_test_is_left_out():
    """Fast and slow tests, and those on several hosts, together are all that need no GPU."""
    fast, slow = dry_run("test")[-1], dry_run("test-slow")[-1]
    assert '-m "not slow and not gpu and not cluster"' in fast
    assert '-m "slow and not gpu and not cluster"' in slow
    assert " -m cluster " in dry_run("test-cluster")[-1]


def test_quick_is_a_part_of_test():
    """It leaves out more and adds nothing."""
    quick = dry_run("quick")[-1]
    assert '-m "not unit_slow and not slow and not gpu"' in quick
    assert " tests/unit " in quick


class Ci:
    """Calls .ci/run with a fake `make` on the PATH."""

    def __init__(self, folder: Path) -> None:
        fake = folder / "make"
        fake.write_text(FAKE_MAKE)
        fake.chmod(0o755)
        self._calls = folder / "calls.jsonl"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != BUDGET},
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "FAKE_MAKE_CALLS": str(self._calls),
        }

    def __call__(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(REPOSITORY / ".ci" / "run")],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.fixture
def ci(tmp_path) -> Ci:
    return Ci(tmp_path)


def test_ci_runs_lint_tests_and_slow_tests_in_what_is_left(ci):
    done = ci()
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in ci.calls] == [*EVERYTHING_FAST, "test-slow"]
    assert ci.calls[3][1] == "ARGS=-m 'cluster and not nightly'"
    wanted, _, left_s = ci.calls[4][1].partition(" --session-timeout=")
    assert wanted == "ARGS=-m 'slow and not gpu and not cluster and not nightly'"
    assert 4400 < int(left_s) <= 4500
    # The last lines are pytest's own, for whoever reads the end of a log only.
    shown = [line.split()[-2] for line in done.stdout.splitlines()[-3:]]
    assert shown == ["test", "test-cluster", "test-slow"]


@pytest.mark.parametrize("target", EVERYTHING_FAST)
def test_ci_runs_everything_fast_and_fails_if_one_part_does(ci, target):
    done = ci(FAKE_MAKE_FAILS=target)
    assert done.returncode == 1
    assert [call[0] for call in ci.calls] == EVERYTHING_FAST
    assert "test-slow  not run: an earlier step failed" in done.stdout


def test_ci_fails_where_slow_tests_fail(ci):
    assert ci(FAKE_MAKE_FAILS="test-slow").returncode == 1


def test_ci_fails_where_no_time_is_left_for_slow_tests(ci):
    done = ci(**{BUDGET: "61"}, FAKE_MAKE_S="0.6")
    assert done.returncode == 1
    assert [call[0] for call in ci.calls] == EVERYTHING_FAST
    assert "test-slow  not run" in done.stdout
