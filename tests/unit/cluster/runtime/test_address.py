"""Ray's environment variables: refused before anything starts, with the way out."""

from __future__ import annotations

import socket
import time

import pytest

from rlhf_ray.cluster.runtime import address as checked
from rlhf_ray.cluster.runtime.address import (
    check_auth_mode,
    check_ray_environment,
    is_open,
    joined_address,
)
from rlhf_ray.config.errors import RequestError
from rlhf_ray.main import main


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("garbage", "must be host:port"),
        ("host:", "must be host:port"),
        (":6379", "must be host:port"),
        ("host:notaport", "must be host:port"),
        ("host:0", "must be host:port"),
        ("host:65536", "must be host:port"),
        ("ray://10.0.0.1:10001", "ray job submit"),
        ("http://10.0.0.1:8265", "ray job submit"),
    ],
)
def test_an_address_of_no_cluster_is_refused(address, words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RequestError, match=words) as caught:
        check_ray_environment()
    assert address in str(caught.value)


@pytest.mark.parametrize("address", ["", "local"])
def test_a_local_ray_needs_no_address(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_ray_environment()
    assert joined_address() is None


def test_what_listens_is_joined(listener, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", listener)
    check_ray_environment()
    assert joined_address() == listener


def test_what_does_not_listen_is_refused_in_time(dead_address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", dead_address)
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"no Ray cluster at .* \(Connection refused"):
        check_ray_environment()
    assert time.monotonic() - started < 10


def test_silence_is_refused_in_time(monkeypatch):
    """A firewall that drops: a backlog that is full answers no connection."""
    monkeypatch.setattr(checked, "_CONNECT_S", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        name = server.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(name)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{name[1]}")
        with pytest.raises(RequestError, match=r"no answer, within 0\.3 s"):
            check_ray_environment()
        for filler in fillers:
            filler.close()


def test_a_name_that_does_not_resolve_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(RequestError, match=r"no-such-host\.invalid"):
        check_ray_environment()


def test_auto_takes_the_cluster_of_this_machine(tmp_path, listener, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RequestError, match="no cluster was started on this machine"):
        check_ray_environment()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{listener}\n")
    check_ray_environment()
    assert joined_address() == listener


@pytest.mark.parametrize("mode", ["token", "TOKEN", "disabled", "Disabled"])
def test_modes_of_ray_are_accepted(mode, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    check_auth_mode()
    assert is_open() is (mode.lower() == "disabled")


@pytest.mark.parametrize("mode", ["zz", "", "tokens", "on", "true", "kubernetes"])
def test_a_misspelt_mode_does_not_switch_authentication_off(mode, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(RequestError, match="without authentication: set it to token"):
        check_auth_mode()


@pytest.mark.parametrize("stage", ["rl", "sft", "pretrain", "reward_model", "preference"])
def test_the_command_refuses_before_it_makes_a_folder(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "garbage")
    output = tmp_path / "run"
    examples = [] if stage == "rl" else ["examples.path=x"]
    assert main([f"stage={stage}", "recipe=demo", f"output_dir={output}", *examples]) == 2
    assert "RAY_ADDRESS='garbage'" in capsys.readouterr().err
    assert not output.exists()


def test_a_plan_needs_no_cluster(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "garbage")
    assert main(["recipe=demo", "stage=plan", f"output_dir={tmp_path}"]) == 0
