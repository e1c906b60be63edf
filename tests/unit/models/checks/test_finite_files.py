"""Weight files with numbers that are not finite are refused by name, in every form of file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.checks import finite_files
from rlhf_ray.models.checks.finite_files import check_weight_files

NAN, INF = float("nan"), float("inf")


def weights(dtype: torch.dtype, *, value: float | None = None, place: int = 0) -> dict:
    """Two weights of three pieces each, and a mask; `value` is one number of the second."""
    given = {name: torch.ones(25_000) for name in ("a.weight", "b.weight")}
    if value is not None:
        given["b.weight"][place] = value
    mask = torch.tensor([0.0, -INF])
    return {name: tensor.to(dtype) for name, tensor in given.items()} | {"mask": mask}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(finite_files, "_CHUNK_BYTES", 2**14)


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", [0, 24_999])
def test_one_number_of_a_format(tmp_path, dtype, place):
    file = tmp_path / "model.safetensors"
    save_file(weights(dtype), file)
    check_weight_files(str(tmp_path))
    save_file(weights(dtype, value=NAN, place=place), file)
    with pytest.raises(RequestError, match=r"model.path is .*\(model.safetensors: b.weight\)"):
        check_weight_files(str(tmp_path))


def test_only_a_mask_may_be_infinite(tmp_path):
    save_file(weights(torch.float32, value=INF), tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"b\.weight"):
        check_weight_files(str(tmp_path), key="reward.judge.model")


def test_the_files_of_the_index_and_a_pickle(tmp_path):
    good, bad = weights(torch.float32), weights(torch.float32, value=NAN)
    save_file(good, tmp_path / "model-1.safetensors")
    save_file(bad, tmp_path / "old.safetensors")
    index = {"weight_map": dict.fromkeys(good, "model-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weight_files(str(tmp_path))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(bad, pickled / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"pytorch_model.bin: b.weight"):
        check_weight_files(str(pickled))


def test_what_cannot_be_read_is_left_to_the_loading(tmp_path):
    save_file(weights(torch.float32), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content in (b"", b"\xff" * 64, whole[:-1], whole[:200]):
        (tmp_path / "model.safetensors").write_bytes(content)
        check_weight_files(str(tmp_path))
    check_weight_files("a/hub-name")
