"""A reader that leaves, as `head` does: a run goes on, in real processes with real pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit_slow

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
# The parts of a run that print: before its folder is open, in it, from C, and after it.
RUN = """
import os, pathlib, sys
from rlhf_ray.observe.output_capture import quiet_driver
from rlhf_ray.observe.progress import make_progress
from rlhf_ray.unread_output import survive_readers

folder = pathlib.Path(sys.argv[1])
said = []
survive_readers(said.append)
print("first")
sys.stdin.readline()  # Until the reader has left.
print("second")
with quiet_driver(folder) as screen:
    progress = make_progress(sys.argv[2], 3, screen)
    print("a library")
    for step in range(1, 4):
        progress.phase("update")
        progress.step_done(step, {})
    progress.message("words " * 20000)
    progress.close()
    print("last words", file=screen, flush=True)
os.write(1, b"from C")
print("after " * 20000)
(folder / "result").write_text(f"{len(said)} {said[0]}")
"""


def test_a_run_goes_on_to_its_end(tmp_path):
    for display in ("plain", "live"):
        folder = tmp_path / display
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), display],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdout = None
        error = process.communicate("\n", timeout=120)[1]
        assert (process.returncode, error) == (0, "")
        assert (folder / "result").read_text().startswith("1 the reader of the output has left")
        assert "a library" in (folder / "logs" / "driver.log").read_text()


@pytest.mark.parametrize("closes", ["pipe", "both pipes", "descriptors"])
def test_the_command_goes_on_and_its_files_are_whole(tmp_path, closes):
    rows = [json.dumps({"prompt": f"How far is town {n}?", "answer": str(n)}) for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    command = [
        *(sys.executable, "-m", "rlhf_ray.main", "stage=prepare_data", "output_dir=out"),
        "prepare.sources.own={path: rows.jsonl, kind: prompt}",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=writing,
        stderr=writing if closes == "both pipes" else subprocess.PIPE,
        preexec_fn=(lambda: (os.close(0), os.close(1))) if closes == "descriptors" else None,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    if closes == "pipe":
        assert "the reader of the output has left (a closed pipe); the run goes on" in done.stderr
    assert "Traceback" not in (done.stderr or "")
    prepared = [line for file in (tmp_path / "out").rglob("*.jsonl") for line in file.open()]
    assert len(prepared) == 40


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="the device that is always full is Linux's")
class TestFullDisk:
    @pytest.mark.parametrize("argument", ["--help", "--cfg=job", "dry_run=true"])
    def test_what_is_printed_has_one_sentence_and_no_traceback(self, tmp_path, argument):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"prompt": "a"}) + "\n")
        own = "prepare.sources.own={path: rows.jsonl, kind: prompt}"
        with FULL.open("w") as full:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "rlhf_ray.main", "stage=prepare_data"),
                    *("output_dir=out", own, argument),
                ],
                cwd=tmp_path,
                env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
                check=False,
            )
        assert done.returncode == 1
        sentence = (
            "rlhf_ray: the output cannot be written (No space left on device); make room, or write "
            "it elsewhere\n"
        )
        assert done.stderr == sentence
        assert list(tmp_path.glob("rlhf_ray_error_*")) == []

    def test_a_run_goes_on_and_its_files_are_whole(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
        with FULL.open("w") as full:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "rlhf_ray.main", "stage=prepare_data"),
                    *("output_dir=out", "prepare.sources.own={path: rows.jsonl, kind: prompt}"),
                ],
                cwd=tmp_path,
                env=ENVIRONMENT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
                check=False,
            )
        assert done.returncode == 0
        assert done.stderr.count("the output cannot be written (No space left on device)") == 1
        assert "Traceback" not in done.stderr
        assert [line for file in (tmp_path / "out").rglob("*.jsonl") for line in file.open()]


def test_a_wrong_request_keeps_its_status(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_ray.main", "stage=prepare_data", "output_dir=out"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=writing,
        stderr=writing,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 2
