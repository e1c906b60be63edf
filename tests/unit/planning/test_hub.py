"""The configuration of a model on the hub: of the cache, of the hub, or unknown after a while."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

from rlhf_ray.config.errors import RequestError
from rlhf_ray.planning import hub
from rlhf_ray.planning.hub import planned_model
from tests.unit.planning.models import QWEN_7B

NAME = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    hub._fetched.cache_clear()
    yield
    hub._fetched.cache_clear()


def answers(monkeypatch, answer) -> list[str]:
    """The hub's client in the place of the real one; returns the names that it is asked for."""
    asked: list[str] = []

    def download(name: str, file: str, *, etag_timeout: float) -> str:
        assert file == "config.json"
        assert etag_timeout <= 5
        asked.append(name)
        return answer()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def written(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN_7B), encoding="utf-8")
    return folder / "config.json"


def test_the_cache_is_enough(tmp_path, monkeypatch):
    asked = answers(monkeypatch, lambda: pytest.fail("it is in the cache"))
    written(tmp_path / "hub" / "models--Qwen--Qwen2.5-7B-Instruct" / "snapshots" / "abc")
    assert planned_model(NAME, seed=0) == QWEN_7B
    assert asked == []


def test_the_hub_is_asked_once(tmp_path, monkeypatch):
    file = written(tmp_path / "downloaded")
    asked = answers(monkeypatch, lambda: str(file))
    assert planned_model(NAME, seed=0) == planned_model(NAME, seed=0) == QWEN_7B
    assert asked == [NAME]


def test_nothing_is_asked_offline(monkeypatch):
    asked = answers(monkeypatch, lambda: pytest.fail("it is off"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert planned_model(NAME, seed=0) is None
    assert asked == []


def test_a_hub_that_hangs_is_not_waited_for(monkeypatch):
    never = threading.Event()
    answers(monkeypatch, lambda: str(never.wait(30)))
    monkeypatch.setattr(hub, "_DEADLINE_S", 0.2)
    start = time.monotonic()
    assert planned_model(NAME, seed=0) is None
    assert time.monotonic() - start < 5
    never.set()


def raising(error: Exception):
    def answer() -> str:
        raise error

    return answer


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError("no", response=RESPONSE), "the hub has no such model"),
        (RemoteEntryNotFoundError("no", response=RESPONSE), "has no config.json"),
    ],
)
def test_a_model_that_the_hub_does_not_have_is_refused(monkeypatch, error, words):
    answers(monkeypatch, raising(error))
    with pytest.raises(RequestError, match=words):
        planned_model(NAME, seed=0)


def test_a_network_that_is_not_there_leaves_it_unknown(monkeypatch):
    answers(monkeypatch, raising(ConnectionError("no route to host")))
    assert planned_model(NAME, seed=0) is None
