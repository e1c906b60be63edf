"""`stage=prepare_data` as a command: what it writes, what it says, how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = (
    "prepare.sources.hh={path: hh.jsonl, layout: hh_rlhf, weight: 2}",
    "prepare.sources.own={path: own.csv, kind: preference, weight: 1}",
    "prepare.evaluation_sets.exam={path: exam.jsonl, kind: prompt}",
)
# Runs the command in this process's place and says on stderr how much memory it took, in KiB.
MEASURED = """
import resource, sys
from rlhf_ray.main import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def run(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "rlhf_ray.main"]
    return subprocess.run(
        [sys.executable, *program, "stage=prepare_data", "output_dir=out", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
    )


@pytest.fixture
def inputs(tmp_path) -> Path:
    def transcript(number: int, answer: str) -> str:
        return f"\n\nHuman: How far is town {number}?\n\nAssistant: {answer}"

    hh = [
        {
            "chosen": transcript(number, f"About {number} miles, schÃ¶n."),
            "rejected": transcript(number, "Ask jo@example.org."),
        }
        for number in range(60)
    ]
    hh += [hh[0], {"chosen": "no turns", "rejected": "none"}]
    _write(tmp_path / "hh.jsonl", hh)
    rows = "".join(f"Name river {number}.,River {number}.,No.\n" for number in range(40))
    same = "".join(f"Same {number}?,yes,yes\n" for number in range(5))
    (tmp_path / "own.csv").write_text(f"prompt,chosen,rejected\n{rows}{same}")
    _write(tmp_path / "exam.jsonl", [{"prompt": "how far is town 3"}])
    return tmp_path


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_three_stages_from_two_sources(inputs):
    arguments = [*SOURCES, "prepare.split=[2,4,4]", "prepare.personal_data=mask"]
    done = run(inputs, *arguments, "prepare.duplicates=near")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = inputs / "out"
    assert f"Result: {out}" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        "config.yaml",
        "removed.jsonl",
        "report.json",
        "reward_model",
        "rl",
        "sft",
    ]
    report = json.loads((out / "report.json").read_text())
    assert report["removed"]["evaluation leak"] == 1
    # Of five; the others are prompts or demonstrations, which have no second answer.
    assert 1 <= report["removed"]["identical answers"] < 5
    assert report["removed"]["broken conversation"] == 1
    assert sum(report["removed"].values()) == len(_lines(out / "removed.jsonl"))
    assert report["sources"]["hh"]["found"]["encoding mended"] == 61
    for name, kind in (("sft", "demonstration"), ("reward_model", "preference"), ("rl", "prompt")):
        told = report["datasets"][name]
        train, held = _lines(out / name / "train.jsonl"), _lines(out / name / "eval.jsonl")
        assert (told["kind"], told["train"], told["eval"]) == (kind, len(train), len(held))
        drawn = {source: counts.get("train", 0) for source, counts in told["sources"].items()}
        assert abs(drawn["hh"] - 2 * drawn["own"]) <= 1, "by weight"
    text = (out / "reward_model" / "train.jsonl").read_text()
    assert "schön" in text
    assert "<MAIL_ADDRESS>" in text
    assert "@" not in text

    # The same command again replaces the result with an equal one.
    before = {p: p.read_bytes() for p in out.rglob("*.jsonl")}
    assert run(inputs, *arguments, "prepare.duplicates=near").returncode == 0
    assert {p: p.read_bytes() for p in out.rglob("*.jsonl")} == before


def test_a_wrong_row_is_one_message_and_leaves_nothing(inputs):
    with (inputs / "own.csv").open("a") as file:
        file.write("only one cell\n")
    before = sorted(inputs.iterdir())
    done = run(inputs, *SOURCES)
    assert done.returncode == 2
    assert done.stderr.startswith("rlhf_ray: prepare.sources.own: own.csv line 47: has 1 cells")
    assert "prepare.on_bad_row=skip" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(inputs.iterdir()) == before


def test_the_plan_reads_nothing(inputs):
    before = sorted(inputs.iterdir())
    for file in before:
        file.write_bytes(b"\x00 nothing that can be read")
    done = run(inputs, *SOURCES, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "hh: hh.jsonl, hh_rlhf -> preference" in done.stdout
    assert sorted(inputs.iterdir()) == before


def test_the_plan_refuses_a_source_that_is_not_there(tmp_path):
    done = run(tmp_path, *SOURCES, "dry_run=true")
    assert done.returncode == 2
    assert "prepare.sources.hh.path is 'hh.jsonl': no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_never_in_memory(tmp_path):
    """Of 38 MB more input, the process takes less than 15 MB more memory."""

    def peak(count: int) -> int:
        with (tmp_path / "t.jsonl").open("w") as file:
            for number in range(count):
                text = f"{number} lines of the same kind. " * 1200
                file.write(json.dumps({"text": text[:32_000]}) + "\n")
        keys = ("prepare.sources.t={path: t.jsonl, kind: text}", "prepare.mend_encoding=false")
        done = run(tmp_path, *keys, "prepare.personal_data=off", code=MEASURED)
        assert done.returncode == 0, done.stderr
        return int(done.stderr.split()[-1])

    # The cache of 32 MB is full in both.
    few, many = peak(1200), peak(2400)
    assert (tmp_path / "t.jsonl").stat().st_size > 75_000_000
    assert many - few < 15_000, "KiB"
