"""The audit of the installed packages."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.launch.load_script import load_script

audit = load_script("audit")
LOCK = Path(__file__).resolve().parents[2] / "launch/locks/cpu.txt"


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        ("MIT", True),
        ("MIT License; Apache Software License", True),
        ("Apache-2.0 AND MIT", True),
        ("CC0-1.0 OR Apache-2.0", True),
        ("GPL-2.0-only OR MIT", True),
        ("MPL-2.0 AND MIT", False),
        ("GPLv2", False),
        ("Other/Proprietary License", False),
        ("", False),
    ],
)
def test_licences(licence: str, permissive: bool) -> None:
    assert audit.is_permissive(licence) is permissive


def test_this_environment_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(audit.licence_problems(LOCK)) == []
    assert "packages" in capsys.readouterr().out


def test_a_licence_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_ALLOWED", {})
    problems = list(audit.licence_problems(LOCK))
    assert any(problem.startswith("tqdm: licence") for problem in problems)


def test_without_the_network_the_skipped_half_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert list(audit.vulnerabilities(LOCK, uv="uv")) == []
    assert "vulnerabilities skipped: api.osv.dev cannot be reached (no route)" in (
        capsys.readouterr().out
    )
    assert list(audit.vulnerabilities(LOCK, uv=None)) == []
    assert "there is no uv" in capsys.readouterr().out


class _Connection:
    def close(self) -> None:
        pass


@pytest.mark.parametrize(("status", "found"), [(0, 0), (1, 1)])
def test_pip_audit_reads_plain_versions(tmp_path, monkeypatch, status: int, found: int) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: _Connection())
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\necho found >&2\nexit {status}\n")
    uv.chmod(0o755)
    problems = list(audit.vulnerabilities(LOCK, uv=str(uv)))
    assert len(problems) == found
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "torch==2.13.0" in asked
    assert all("==" in line and "--hash" not in line and "\\" not in line for line in asked)
