"""launch/submit.sh: what it refuses, and the command that it builds. `ray` is a fake here.

tests/e2e/test_job_submit.py runs it against a real cluster.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SUBMIT = REPOSITORY / "launch" / "submit.sh"
# Writes down how it was called, and ends with the status it is told to.
FAKE_RAY = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
names = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES")
call = {"arguments": sys.argv[1:], "folder": os.getcwd()}
call |= {name: os.environ.get(name) for name in names}
pathlib.Path(os.environ["FAKE_RAY_CALL"]).write_text(json.dumps(call))
sys.exit(int(os.environ.get("FAKE_RAY_STATUS", "0")))
"""


class Submit:
    """Calls the script from `folder`, with a fake `ray` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.call_file = folder / "call.json"
        (folder / "fakes").mkdir()
        fake = folder / "fakes" / "ray"
        fake.write_text(FAKE_RAY)
        fake.chmod(0o755)
        # What asks whether the cluster is there; see `test_no_cluster_is_refused`.
        (folder / "fakes" / "timeout").write_text("#!/bin/sh\nexit 0\n")
        (folder / "fakes" / "timeout").chmod(0o755)
        (folder / "token").write_text("0" * 32)
        self.environment = {
            "PATH": f"{folder / 'fakes'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "FAKE_RAY_CALL": str(self.call_file),
            # No environment there, so that the script takes the one on the PATH.
            "RLHF_RAY_VENV": str(folder / "no_environment"),
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SUBMIT), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def call(self, *arguments: str) -> dict[str, Any]:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(self.call_file.read_text())


@pytest.fixture
def submit(tmp_path) -> Submit:
    return Submit(tmp_path)


def refused(submit: Submit, *arguments: str) -> str:
    done = submit(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("submit: ")
    assert not submit.call_file.exists()
    return done.stderr


def entrypoint(call: dict[str, Any]) -> list[str]:
    arguments = call["arguments"]
    return arguments[arguments.index("--") + 1 :]


def test_the_command(submit):
    call = submit.call("recipe=demo", "num_steps=10", "data.system_prompt='Be brief.'")
    assert call["folder"] == str(REPOSITORY)
    assert call["arguments"][:4] == ["job", "submit", "--working-dir", "."]
    assert entrypoint(call) == [
        *("python", "-m", "rlhf_ray.main"),
        *("recipe=demo", "num_steps=10", "data.system_prompt='Be brief.'"),
        f"output_dir={REPOSITORY}/outputs/demo",
    ]


def test_the_copy_leaves_out_what_no_job_needs(submit):
    arguments = submit.call("recipe=demo")["arguments"]
    environment = json.loads(arguments[arguments.index("--runtime-env-json") + 1])
    assert {".git", ".venv", "outputs"} <= set(environment["excludes"])


def test_options_of_ray_come_before_the_dashes(submit):
    call = submit.call("--no-wait", "--entrypoint-num-cpus", "1", "--", "recipe=demo")
    before = call["arguments"][: call["arguments"].index("--")]
    assert before[-3:] == ["--no-wait", "--entrypoint-num-cpus", "1"]
    assert entrypoint(call)[3] == "recipe=demo"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("output_dir=runs/a", "output_dir={folder}/runs/a"),
        ("output_dir=/shared/runs/a", "output_dir=/shared/runs/a"),
        ("output_dir=/shared/run=1", "output_dir=/shared/run=1"),
        ("++output_dir=/shared/runs/a b", "output_dir=/shared/runs/a b"),
    ],
)
def test_a_relative_output_folder_is_that_of_the_caller(submit, given, taken):
    """And it is given once: a job that gets it twice would take the last one."""
    command = entrypoint(submit.call("recipe=demo", given))
    folders = [argument for argument in command if argument.startswith("output_dir=")]
    assert folders == [taken.format(folder=submit.folder)]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("resume=auto", "resume=auto"),
        ("resume=old/checkpoints/step_000002", "resume={folder}/old/checkpoints/step_000002"),
        ("resume=/shared/old", "resume=/shared/old"),
    ],
)
def test_a_relative_checkpoint_is_that_of_the_caller(submit, given, taken):
    command = entrypoint(submit.call("recipe=demo", given))
    assert taken.format(folder=submit.folder) in command


@pytest.mark.parametrize(
    "given", ['output_dir="/shared/a b"', "output_dir=${recipe}/x", "recipe='demo'", "+resume='a'"]
)
def test_what_the_script_cannot_read_is_refused(submit, given):
    done = submit(given)
    assert done.returncode == 2
    assert f"submit: {given}: this script reads" in done.stderr
    assert "without quotes of its own" in done.stderr


def test_there_is_no_check_alone(submit):
    done = submit("--check", "recipe=demo")
    assert done.returncode == 2
    assert "the configuration is always checked before it is submitted" in done.stderr


def test_a_run_without_a_recipe_has_a_folder_too(submit):
    assert entrypoint(submit.call("num_steps=1"))[-1] == f"output_dir={REPOSITORY}/outputs/run"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
        ({"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:2"}, "http://b:2"),
    ],
)
def test_where_it_goes(submit, variables, address):
    submit.environment |= variables
    call = submit.call("recipe=demo")
    assert call["RAY_API_SERVER_ADDRESS"] == address
    assert call["RAY_AUTH_MODE"] == "token"


def test_the_status_is_that_of_ray(submit):
    submit.environment["FAKE_RAY_STATUS"] = "7"
    assert submit("recipe=demo").returncode == 7


def test_an_option_without_dashes_is_refused(submit):
    message = refused(submit, "recipe=demo", "--no-wait")
    assert "--no-wait" in message
    assert "go before a '--'" in message


def test_no_token_is_refused(submit):
    del submit.environment["RAY_AUTH_TOKEN_PATH"]
    message = refused(submit, "recipe=demo")
    assert str(submit.folder / "home" / ".ray" / "auth_token") in message
    assert "ray get-auth-token" in message
    assert "RAY_AUTH_MODE=disabled" in message


def test_an_empty_token_file_is_refused(submit):
    (submit.folder / "token").write_text("")
    assert f"{submit.folder / 'token'} is missing or empty" in refused(submit, "recipe=demo")


def test_a_token_in_the_environment_needs_no_file(submit):
    del submit.environment["RAY_AUTH_TOKEN_PATH"]
    submit.environment["RAY_AUTH_TOKEN"] = "0" * 32
    assert entrypoint(submit.call("recipe=demo"))


def test_without_authentication_no_token_is_needed(submit):
    del submit.environment["RAY_AUTH_TOKEN_PATH"]
    submit.environment["RAY_AUTH_MODE"] = "disabled"
    assert submit.call("recipe=demo")["RAY_AUTH_MODE"] == "disabled"


def test_no_cluster_is_refused(submit):
    (submit.folder / "fakes" / "timeout").unlink()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # Bound, and it does not listen.
        submit.environment["RAY_ADDRESS"] = f"http://127.0.0.1:{held.getsockname()[1]}"
        message = refused(submit, "recipe=demo")
        assert f"no Ray cluster answers at {submit.environment['RAY_ADDRESS']}. Start" in message
        assert "RAY_API_SERVER_ADDRESS=http://HOST:8265" in message
        held.listen()
        assert entrypoint(submit.call("recipe=demo"))
    submit.call_file.unlink()
    submit.environment["RAY_ADDRESS"] = "http://no-such-host.invalid"
    assert "no Ray cluster answers at http://no-such-host.invalid" in refused(submit, "recipe=demo")


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "10.0.0.1:6379"])
def test_other_addresses_are_left_to_ray(submit, address):
    (submit.folder / "fakes" / "timeout").unlink()
    submit.environment["RAY_ADDRESS"] = address
    assert submit.call("recipe=demo")["RAY_API_SERVER_ADDRESS"] == address


@pytest.fixture
def checked(submit) -> Submit:
    """With a Python next to `ray` that has the package."""
    python = submit.folder / "fakes" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return submit


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe=demo", "num_step=3"], "num_step: unknown key; did you mean num_steps"),
        (["recipe=demo", "stage=sft", "examples.path=x", "num_steps=3"], "set fit.max_steps"),
        (["recipe=translation", "pipeline.stages.sft.fit.max_steps=0"], "must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_not_submitted(checked, arguments, words):
    done = checked(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.endswith("submit: nothing was submitted\n")
    assert "Traceback" not in done.stderr
    assert not checked.call_file.exists()


def test_files_and_variables_of_the_cluster_are_not_asked_for(checked):
    there = ["data.path=/shared/rows.jsonl", "placement.env_from_driver=[HF_TOKEN]"]
    assert entrypoint(checked.call("recipe=demo", *there))[4:6] == there
    assert "not checked here" not in checked("recipe=demo", *there).stderr


def test_without_the_package_the_job_checks(submit):
    done = submit("recipe=demo", "num_step=3")
    assert done.returncode == 0
    assert "the configuration is not checked here" in done.stderr


def test_no_ray_is_refused(submit):
    (submit.folder / "fakes" / "ray").unlink()
    submit.environment["PATH"] = "/usr/bin:/bin"
    assert "run launch/setup.sh first" in refused(submit, "recipe=demo")
