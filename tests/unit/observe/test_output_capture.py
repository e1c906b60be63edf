"""Library output goes to the file, the run's messages to the screen; each in a real process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rlhf_ray.observe.output_capture import driver_log

NOISY_DRIVER = """
import logging, os, pathlib, subprocess, sys, warnings
from rlhf_ray.observe.output_capture import quiet_driver

early = logging.getLogger("early")
early.addHandler(logging.StreamHandler(sys.stderr))
early.propagate = False
print("before")
with quiet_driver(pathlib.Path(sys.argv[1])) as screen:
    print("noise: print")
    print("noise: stderr", file=sys.stderr)
    warnings.warn("noise: warning")
    early.warning("noise: a library with a handler of its own")
    late = logging.getLogger("late")
    late.addHandler(logging.StreamHandler())
    late.propagate = False
    late.warning("noise: a library that was imported later")
    logging.getLogger("plain").info("noise: information")
    os.write(1, b"noise: from C on 1\\n")
    os.write(2, b"noise: from C on 2\\n")
    subprocess.run(["echo", "noise: of a program"])
    print("step 1/1", file=screen, flush=True)
    if sys.argv[2] == "fail":
        raise SystemExit("error: it failed")
print("after")
print("after, stderr", file=sys.stderr)
"""


def run_driver(folder: Path, ending: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NOISY_DRIVER, str(folder), ending],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_driver_noise_goes_to_the_log(tmp_path: Path) -> None:
    result = run_driver(tmp_path, "end")
    assert result.returncode == 0
    assert result.stdout == "before\nstep 1/1\nafter\n"
    assert result.stderr == "after, stderr\n"
    log = driver_log(tmp_path).read_text()
    assert log.count("noise: ") == 9 + log.count('warnings.warn("noise: warning")')
    for word in ("print", "stderr", "warning", "of its own", "later", "information", "C on 2"):
        assert word in log
    assert "step 1/1" not in log


def test_errors_reach_the_screen(tmp_path: Path) -> None:
    result = run_driver(tmp_path, "fail")
    assert result.returncode == 1
    assert result.stderr == "error: it failed\n"


def test_a_second_run_appends(tmp_path: Path) -> None:
    run_driver(tmp_path, "end")
    length = driver_log(tmp_path).stat().st_size
    run_driver(tmp_path, "end")
    assert driver_log(tmp_path).stat().st_size == 2 * length


def test_worker_noise_stays_in_its_own_streams() -> None:
    code = (
        "import logging, os, warnings\n"
        "from rlhf_ray.observe.output_capture import quiet_worker\n"
        "quiet_worker()\n"
        "warnings.warn('a warning')\n"
        "logging.getLogger('vllm').info('loaded')\n"
        "print(os.environ['TQDM_DISABLE'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "1\n"
    assert "INFO vllm: loaded" in result.stderr
    assert "WARNING py.warnings:" in result.stderr
