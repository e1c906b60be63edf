"""Lines below the table of an evaluation."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.stages.evaluate.prompt_notes import prompt_notes

PROMPTS = {"path": "/data/sums/test.jsonl", "split": None, "num_prompts": 1234}


def run_on(folder: Path, path: str, stage: str = "rl") -> str:
    """A model in the folder of a run that was trained on these prompts."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"stage: {{name: {stage}}}\ndata: {{path: {path}, split: null}}\n"
    )
    return str(folder / "model")


def test_the_prompts_are_named_without_the_folders_of_the_machine(tmp_path: Path) -> None:
    assert prompt_notes(PROMPTS, {"hub": "owner/name"}) == "Prompts: test.jsonl: 1,234 prompts"
    assert prompt_notes({**PROMPTS, "split": "test"}, {}) == (
        "Prompts: test.jsonl, split test: 1,234 prompts"
    )


def test_models_that_were_trained_on_the_prompts_are_named(tmp_path: Path) -> None:
    models = {
        "seen": run_on(tmp_path / "a", "/data/sums/test.jsonl"),
        "unseen": run_on(tmp_path / "b", "/data/sums/train.jsonl"),
        # Its key data.path is not what it learnt from.
        "sft": run_on(tmp_path / "c", "/data/sums/test.jsonl", stage="sft"),
    }
    _, *notes = prompt_notes(PROMPTS, models).splitlines()
    assert notes == [
        "note: seen was trained on these prompts, so that its numbers say nothing about new ones"
    ]
