"""Lines below the table of an evaluation."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.stages.evaluate.prompt_notes import prompt_line, prompt_notes

PROMPTS = {"path": "/data/sums/test.jsonl", "split": None, "num_prompts": 1234}


def run_on(folder: Path, path: str, stage: str = "rl", *, more: str = "") -> str:
    """A model in the folder of a run whose prompts are these."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"stage: {{name: {stage}}}\ndata: {{path: {path}, split: null}}\n{more}"
    )
    return str(folder / "model")


def test_the_prompts_are_named_without_the_folders_of_the_machine() -> None:
    assert prompt_line(PROMPTS) == "Prompts: test.jsonl: 1,234 prompts"
    assert prompt_line({**PROMPTS, "split": "test"}) == (
        "Prompts: test.jsonl, split test: 1,234 prompts"
    )
    assert prompt_notes(PROMPTS, {"hub": "owner/name"}) == []


def test_models_that_were_trained_on_the_prompts_or_chosen_by_them_are_named(tmp_path) -> None:
    here, other = "/data/sums/test.jsonl", "/data/sums/train.jsonl"
    fit = run_on(tmp_path / "d", other, "sft", more=f"examples: {{path: {here}}}\n")
    best = f"evaluation: {{path: {here}}}\nmodel: {{path: /gone/model}}\n"
    chosen = Path(run_on(tmp_path / "f", other, more=best)).parent / "best" / "step_000050"
    models = {
        "seen": run_on(tmp_path / "a", here),
        "unseen": run_on(tmp_path / "b", other),
        # Its key data.path is not what it learnt from.
        "sft": run_on(tmp_path / "c", here, stage="sft"),
        "fit": fit,
        "parent": run_on(tmp_path / "e", other, more=f"model: {{path: {fit}}}\n"),
        "chosen": str(chosen),
        "last": str(tmp_path / "f" / "model"),
        "spelt": run_on(tmp_path / "g", "/data/../data/sums/test.jsonl"),
    }
    notes = prompt_notes(PROMPTS, models)
    assert [note.split()[1] for note in notes] == ["seen", "fit", "parent", "chosen", "spelt"]
    assert notes[0] == (
        "note: seen was trained on these prompts, so that its numbers say nothing about new ones"
    )
    assert "chosen is the best of its run on these prompts" in notes[3]
