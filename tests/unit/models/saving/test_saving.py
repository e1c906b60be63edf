"""Saving of a model: mended settings, weights that outlive a failure, and modes of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.loading import empty_policy, load_policy
from rlhf_ray.models.saving.generation_settings import mend_generation_settings
from rlhf_ray.models.saving.trial import read_generation_settings, try_saving
from rlhf_ray.models.saving.write import PROBLEMS_FILE, check_saved, write_folder


@pytest.mark.parametrize(
    ("settings", "kept", "told"),
    [
        (
            {"temperature": 0.6, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.6},
            "set to true",
        ),
        ({"top_k": 20}, {"do_sample": True, "top_k": 20}, "top_k=20 without do_sample"),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}, "min_p=0.1 without do_sample"),
        ({"do_sample": False, "top_p": 0.9}, {"do_sample": False, "top_p": None}, "no effect"),
        ({"length_penalty": 2.0}, {"length_penalty": None}, "without num_beams"),
        ({"pad_token_id": -1}, {"pad_token_id": None}, "pad_token_id=-1 is no token"),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.6}, None),
        ({"num_beams": 4, "length_penalty": 2.0}, {"length_penalty": 2.0}, None),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 50}, {"do_sample": None}, None),
    ],
)
def test_mends(
    tiny: Path, tmp_path: Path, settings: dict[str, Any], kept: dict[str, Any], told: str | None
) -> None:
    model = empty_policy(ModelConfig(path=str(tiny)))
    model.generation_config = GenerationConfig(**settings)
    lines = mend_generation_settings(model)
    assert len(lines) == (told is not None)
    assert (told or "") in "".join(lines)
    fields = model.generation_config.to_dict()
    assert {name: fields.get(name) for name in kept} == kept
    model.generation_config.save_pretrained(tmp_path)


def llama_2_chat(folder: Path) -> None:
    settings = {"eos_token_id": 1, "pad_token_id": 0, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(settings))


def test_a_worker_mends_as_the_trial_does(copy: Path, tmp_path: Path) -> None:
    llama_2_chat(copy)
    settings = ModelConfig(path=str(copy))
    empty = empty_policy(settings)
    (line,) = read_generation_settings(empty, settings)
    assert "do_sample is set to true" in line
    try_saving(empty, AutoTokenizer.from_pretrained(copy), str(copy))
    load_policy(settings, dtype="float32").save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["top_p"]) == (True, 0.6, 0.9)
    assert read_generation_settings(empty_policy(settings), settings) == [line]


def test_trial_refuses_and_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    empty = empty_policy(ModelConfig(path=str(tiny)))
    try_saving(empty, tokenizer, "here")
    empty.generation_config = GenerationConfig(temperature=0.5)
    with pytest.raises(RequestError, match=r"(?s)here.*because of its configuration: ValueError"):
        try_saving(empty, tokenizer, "here")
    empty.generation_config = GenerationConfig()
    broken = _Broken(tokenizer)
    with pytest.raises(RequestError, match="because of its tokenizer: TypeError: no words"):
        try_saving(empty, broken, "here")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


class _Broken:
    """A tokenizer that cannot be saved."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def save_pretrained(self, _: object) -> None:
        raise TypeError("no words")


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Each tensor once, as the ranks give them: the head is the embedding."""
    weights = dict(model.state_dict())
    del weights["lm_head.weight"]
    return weights


class TestWeightsOutlive:
    def test_settings_and_tokenizer_that_fail(self, tiny: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny)
        model.generation_config = GenerationConfig(temperature=0.5)
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        write_folder(model, _Broken(tokenizer), tmp_path, weights_of(model))
        saved, there = (
            load_file(tmp_path / "model.safetensors"),
            load_file(tiny / "model.safetensors"),
        )
        assert saved.keys() == there.keys()
        assert all(torch.equal(saved[name], there[name]) for name in there)
        assert (tmp_path / "config.json").is_file()
        with pytest.raises(RunFailed) as caught:
            check_saved(tmp_path)
        for words in (
            f"the weights are in {tmp_path}, but it is not a whole model",
            "generation_config.json could not be written: ValueError",
            "the tokenizer could not be written: TypeError: no words",
        ):
            assert words in str(caught.value)
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(reloaded) is type(model)

    def test_a_whole_model(self, tiny: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny)
        write_folder(model, AutoTokenizer.from_pretrained(tiny), tmp_path, weights_of(model))
        assert not (tmp_path / PROBLEMS_FILE).exists()
        check_saved(tmp_path)
        AutoTokenizer.from_pretrained(tmp_path)

    def test_weights_that_fail_are_an_error(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        model = AutoModelForCausalLM.from_pretrained(tiny)
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
        monkeypatch.setattr("rlhf_ray.models.saving.write.save_torch_state_dict", full)
        with pytest.raises(OSError, match="No space left"):
            write_folder(model, _Broken(None), tmp_path, weights_of(model))


_SAVE = """
import os, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from rlhf_ray.atomic_file import atomic_folder, write_atomically
for mask in sys.argv[2:]:
    os.umask(int(mask, 8))
    folder = Path(sys.argv[1], mask)
    with atomic_folder(folder) as partial:
        (partial / "adapter").mkdir(parents=True)
        save_file({"x": numpy.zeros(3)}, partial / "model.safetensors")
        save_file({"x": numpy.zeros(3)}, partial / "adapter" / "adapter_model.safetensors")
        (partial / "run.sh").touch(0o700)
        (partial / "link").symlink_to("/etc/passwd")
    write_atomically(folder / "text", "x")
"""


def test_files_follow_the_umask(tmp_path: Path) -> None:
    """In a process: the mask belongs to it as a whole. safetensors itself writes mode 600."""
    masks = {"022": 0o644, "007": 0o660, "077": 0o600}
    subprocess.run(
        [sys.executable, "-c", _SAVE, tmp_path, *masks],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for mask, mode in masks.items():
        files = [f for f in (tmp_path / mask).rglob("*") if f.is_file() and not f.is_symlink()]
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in files}
        assert modes.pop("run.sh") == oct(0o700 & ~int(mask, 8)), "its owner made it so"
        assert modes == dict.fromkeys(
            ("model.safetensors", "adapter_model.safetensors", "text"), oct(mode)
        )
