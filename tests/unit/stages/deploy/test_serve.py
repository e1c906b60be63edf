"""What stage=serve looks at before it starts anything, and what it tells."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
import ray

from rlhf_ray.cluster.ray_serve import check_ray_serve
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.serving.local import ServedModel, model_name
from rlhf_ray.stages.deploy.serve import run, served_model, tell_ready
from rlhf_ray.testing.tiny import tiny_random

pytestmark = pytest.mark.unit_slow


def config_of(path: Path | str, *overrides: str) -> Config:
    return load_config(["stage=serve", f"model.path={path}", *overrides])


def model_folder(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    config = json.loads((tiny_random(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    return folder


def test_names(tmp_path):
    assert model_name(None, str(model_folder(tmp_path / "sft" / "model"))) == "sft"
    assert model_name(None, str(model_folder(tmp_path / "mine"))) == "mine"
    assert model_name(None, "owner/name") == "owner/name"
    assert model_name(None, "builtin:arithmetic") == "arithmetic"
    assert model_name("c", "a/b") == "c"


def look_at(config: Config) -> ServedModel:
    return served_model(config, report=pytest.fail)


def test_models(tmp_path):
    good = model_folder(tmp_path / "good")
    assert look_at(config_of(good)).model.path == str(good)
    assert look_at(config_of(good, "serve.model_name=c")).name == "c"
    reward = model_folder(tmp_path / "reward", "LlamaForSequenceClassification")
    with pytest.raises(RequestError, match=f"stage=serve_reward reward.model.path={reward}"):
        look_at(config_of(reward))
    with pytest.raises(RequestError, match=r"a folder without config\.json; did you mean"):
        look_at(config_of(tmp_path))
    (good / "config.json").write_text("[")
    with pytest.raises(RequestError, match="cannot read"):
        look_at(config_of(good))
    with pytest.raises(RequestError, match="no_such_file"):
        look_at(
            config_of(
                model_folder(tmp_path / "other"), f"model.chat_template={tmp_path}/no_such_file"
            )
        )


def test_a_missing_model_starts_nothing(tmp_path, capsys):
    output = tmp_path / "out"
    with pytest.raises(RequestError, match="stage=sft makes one"):
        run(config_of("outputs/x/model", f"output_dir={output}"))
    assert not output.exists()


def test_a_missing_key_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    folder = model_folder(tmp_path / "m")
    with pytest.raises(RequestError, match=r"serve\.token_variable=NO_SUCH_KEY"):
        run(config_of(folder, "serve.token_variable=NO_SUCH_KEY", f"output_dir={tmp_path}/out"))


def test_what_is_told(tmp_path, capsys):
    config = config_of("a/b", "serve.token_variable=KEY")
    served = ServedModel(
        name="b",
        model=config.model,
        generation=config.generation,
        serve=config.serve,
        start_s=1.0,
        stop_s=1.0,
    )
    tell_ready(served, "http://127.0.0.1:9/v1", tmp_path)
    facts = json.loads((tmp_path / "serve.json").read_text())
    assert (facts["url"], facts["model"]) == ("http://127.0.0.1:9/v1", "b")
    assert (facts["model_path"], facts["token_variable"]) == ("a/b", "KEY")
    assert [path.name for path in tmp_path.iterdir()] == ["serve.json"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "ready at http://127.0.0.1:9/v1 with model b; ask it: python -m rlhf_ray.main stage=chat "
        "chat.url=http://127.0.0.1:9/v1 chat.token_variable=KEY"
    )


def test_the_word_of_a_killed_service_is_taken_back(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "serve.json").write_text("{}")
    model = model_folder(tmp_path / "m")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=str(port)):
            run(config_of(model, f"serve.port={port}", f"output_dir={output}"))
    assert not (output / "serve.json").exists()


def test_ray_serve_is_not_installed(monkeypatch):
    monkeypatch.delattr(ray, "serve", raising=False)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(RequestError, match="install rlhf_ray with its extra serve"):
        check_ray_serve()
