"""launch/setup.sh: what it installs, when it does nothing, what it refuses. `uv` is a fake here.

The real one is run by `make test` itself, which calls the script first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOTHING_TO_DO_S = 1.0
CHANGES_THE_INSTALL = (
    "pyproject.toml",
    "launch/setup.sh",
    "launch/uv_env.sh",
    "launch/locks/cpu.txt",
)
COPIED = (*CHANGES_THE_INSTALL, "launch/locked.sh", "launch/locks/gpu.txt")
# Writes down every call; makes the interpreter where an environment is asked for.
FAKE_UV = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
names = ("UV_TORCH_BACKEND", "UV_FIND_LINKS")
call = {"arguments": sys.argv[1:]} | {name: os.environ.get(name) for name in names}
with open(os.environ["FAKE_UV_CALLS"], "a") as file:
    file.write(json.dumps(call) + "\\n")
if sys.argv[1] == "venv":
    interpreter = pathlib.Path(sys.argv[-1]) / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
sys.exit(int(os.environ.get("FAKE_UV_STATUS", "0")))
"""


class Setup:
    """A copy of what the script reads, with a fake `uv` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        (self.checkout / "launch").mkdir(parents=True)
        (self.checkout / "launch/locks").mkdir()
        for name in COPIED:
            shutil.copy(REPOSITORY / name, self.checkout / name)
        (folder / "fakes").mkdir()
        fake = folder / "fakes" / "uv"
        fake.write_text(FAKE_UV)
        fake.chmod(0o755)
        self._calls = folder / "calls.jsonl"
        self.environment = {
            "PATH": f"{folder / 'fakes'}{os.pathsep}/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "FAKE_UV_CALLS": str(self._calls),
            "RLHF_RAY_DEVICE": "cpu",
        }

    def __call__(self, *extras: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / "launch" / "setup.sh"), *extras],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, *extras: str) -> list[dict]:
        """The calls of uv during one successful run of the script."""
        self._calls.unlink(missing_ok=True)
        done = self(*extras)
        assert done.returncode == 0, done.stderr
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup(tmp_path)


def test_makes_the_environment_once(setup):
    first = setup.calls("dev")
    assert [call["arguments"][0] for call in first] == ["venv", "pip"]
    assert first[1]["arguments"][-2:] == ["-e", ".[cpu,dev]"]
    assert setup.calls("dev") == []


def test_the_second_time_takes_no_time(setup):
    setup.calls("dev")
    started = time.monotonic()
    done = setup("dev")
    assert time.monotonic() - started < NOTHING_TO_DO_S
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_extra_more_is_installed_and_an_extra_less_is_not(setup):
    setup.calls("dev")
    assert setup.calls("bench")[0]["arguments"][-1] == ".[cpu,bench]"
    assert setup.calls() == []
    assert setup.calls("bench", "dev") == []


@pytest.mark.parametrize("name", CHANGES_THE_INSTALL)
def test_a_change_of_what_it_reads_installs_again(setup, name):
    setup.calls()
    with (setup.checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert len(setup.calls()) == 1


def test_a_failed_install_is_tried_again(setup):
    setup.calls()
    setup.environment["FAKE_UV_STATUS"] = "3"
    assert setup("dev").returncode == 3
    setup.environment["FAKE_UV_STATUS"] = "0"
    assert setup.calls("dev")[-1]["arguments"][-1] == ".[cpu,dev]"


def test_an_unknown_device_is_refused(setup):
    setup.environment["RLHF_RAY_DEVICE"] = "tpu"
    done = setup()
    assert done.returncode == 2
    assert done.stderr == "RLHF_RAY_DEVICE is 'tpu'; it can be cpu or gpu\n"


def test_torch_comes_from_its_own_index_or_from_find_links(setup):
    install = setup.calls()[-1]
    assert (install["UV_TORCH_BACKEND"], install["UV_FIND_LINKS"]) == ("cpu", None)
    setup.environment["PIP_FIND_LINKS"] = "/wheels"
    install = setup.calls("dev")[-1]
    assert (install["UV_TORCH_BACKEND"], install["UV_FIND_LINKS"]) == (None, "/wheels")


def test_on_a_gpu_torch_goes_in_before_flash_attention_is_built(setup):
    setup.environment["RLHF_RAY_DEVICE"] = "gpu"
    _, torch, rest = (call["arguments"] for call in setup.calls())
    assert any(argument.startswith("torch==") for argument in torch)
    assert "--no-build-isolation-package" in rest
    assert rest[-1] == ".[gpu]"


def test_the_device_is_a_gpu_where_one_is_listed(setup, tmp_path):
    del setup.environment["RLHF_RAY_DEVICE"]
    fake = tmp_path / "fakes" / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: a fake one'\n")
    fake.chmod(0o755)
    assert setup.calls()[-1]["arguments"][-1] == ".[gpu]"


def test_versions_and_hashes_of_the_lock_hold(setup):
    arguments = setup.calls("dev")[-1]["arguments"]
    assert arguments[arguments.index("--constraints") + 1] == "launch/locks/cpu.txt"
    assert "--verify-hashes" in arguments


def test_without_the_lock_it_says_so(setup):
    setup.environment["RLHF_RAY_LOCK"] = "no"
    done = setup("dev")
    assert done.returncode == 0
    assert "RLHF_RAY_LOCK=no: versions and hashes of launch/locks do not hold" in done.stderr


def test_another_python_is_not_locked_and_says_so(setup):
    setup.environment["RLHF_RAY_PYTHON"] = "3.12"
    done = setup("dev")
    assert done.returncode == 0
    assert "is for Linux on x86-64 with Python 3.11" in done.stderr
    assert "--constraints" not in setup.calls("bench")[-1]["arguments"]


def test_no_link_is_tracked():
    """A tracked link to an environment would replace that of everyone who checks it out."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(listed) > 500
    assert [line for line in listed if line.startswith("120000")] == []
