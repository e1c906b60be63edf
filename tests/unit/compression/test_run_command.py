"""Commands end in time, with a message, and together with their children."""

from __future__ import annotations

import sys
import time

import pytest

from rlhf_ray.compression.run_command import run_command
from rlhf_ray.config.errors import RunFailed


def run(code, tmp_path, *, timeout_s=30.0):
    log = tmp_path / "logs" / "child.log"
    run_command([sys.executable, "-c", code], log=log, what="the child", timeout_s=timeout_s)
    return log.read_text()


def test_output_is_a_file(tmp_path):
    assert run("print('done')", tmp_path) == "done\n"


def test_a_failure_shows_the_end_of_the_log(tmp_path):
    with pytest.raises(RunFailed, match=r"the child failed with status 3(.|\n)*what went wrong"):
        run("import sys; print('what went wrong'); sys.exit(3)", tmp_path)


@pytest.mark.unit_slow
def test_a_late_child_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "mark"
    grandchild = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}])\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"took longer than 1 s(.|\n)*started"):
        run(code, tmp_path, timeout_s=1.0)
    assert time.monotonic() - start < 20
    time.sleep(3.5)
    assert not mark.exists()
