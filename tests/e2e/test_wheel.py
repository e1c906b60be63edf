"""The wheel, installed into an empty environment, works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_INSTALL_TIMEOUT_S = 600
# Some thousand of them, one after the other.
_TESTS_TIMEOUT_S = 1500
_COMMAND_TIMEOUT_S = 240
# Fails the whole run if the tests would see another package than the installed one.
_CONFTEST = """
from pathlib import Path

import rlhf_ray

assert "site-packages" in Path(rlhf_ray.__file__).parts, rlhf_ray.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
    )
    (path,) = folder.glob("rlhf_ray-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel, installed as the README says."""
    folder = tmp_path_factory.mktemp("environment")
    overrides = folder / "overrides.txt"
    overrides.write_text("\n".join(override_dependencies()) + "\n")
    interpreter = folder / "venv" / "bin" / "python"
    # uv_env.sh: where uv is, and where the CPU build of torch comes from on this machine.
    script = f"""
        set -euo pipefail
        source launch/uv_env.sh
        "${{uv[@]}}" venv --quiet --python {sys.version_info.major}.{sys.version_info.minor} \\
            "{folder}/venv"
        "${{uv[@]}}" pip install --quiet --python "{interpreter}" --override "{overrides}" \\
            "{wheel}[cpu]" pytest hypothesis
    """
    _run(["bash", "-c", script], cwd=REPOSITORY, timeout_s=_INSTALL_TIMEOUT_S)
    return interpreter


def override_dependencies() -> list[str]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["uv"]["override-dependencies"]


def test_holds_the_package_and_conf_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "rlhf_ray/conf/config.yaml" in names
    recipes = sorted(path.name for path in (REPOSITORY / "conf" / "recipe").glob("*.yaml"))
    inside = [name for name in names if name.startswith("rlhf_ray/conf/recipe/")]
    assert sorted(Path(name).name for name in inside) == recipes
    assets = {path.name for path in (REPOSITORY / "rlhf_ray" / "report" / "assets").iterdir()}
    packed = {Path(name).name for name in names if name.startswith("rlhf_ray/report/assets/")}
    assert packed == assets, "scripts of the report, and the licence of its library"
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"rlhf_ray"}, "tests, launch, benchmarks, docs"


def test_the_readme_names_every_override():
    text = (REPOSITORY / "README.md").read_text()
    assert [line for line in override_dependencies() if line not in text] == []


def test_composes_and_plans_from_another_folder(python, tmp_path):
    assert "site-packages" in _run(
        [str(python), "-c", "import rlhf_ray; print(rlhf_ray.__file__)"], cwd=tmp_path
    )
    composed = _run([str(python), "-m", "rlhf_ray.main", "--cfg", "job"], cwd=tmp_path)
    assert "max_staleness: 0" in composed
    plan = _run([str(python), "-m", "rlhf_ray.main", "stage=plan", "recipe=demo"], cwd=tmp_path)
    assert "recipe: demo" in plan
    assert "learner" in plan
    assert "rlhf_ray 0." in _run([str(python.with_name("rlhf-ray")), "--version"], cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unit_tests_pass_from_another_folder(python, tmp_path):
    for name in ("algorithms", "config"):
        shutil.copytree(
            REPOSITORY / "tests" / "unit" / name,
            tmp_path / "tests" / "unit" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    # Compared with what the installed dataclasses generate, and with the methods there are.
    (tmp_path / "docs").mkdir()
    for name in ("configuration.md", "algorithms.md"):
        shutil.copy(REPOSITORY / "docs" / name, tmp_path / "docs")
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    report = _run(
        [str(python), "-m", "pytest", "-q", "tests"], cwd=tmp_path, timeout_s=_TESTS_TIMEOUT_S
    )
    assert " passed" in report
    assert "skipped" not in report


def _run(command: list[str], *, cwd: Path, timeout_s: int = _COMMAND_TIMEOUT_S) -> str:
    """Standard output of a command that must succeed; without this process's import path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "RLHF_RAY_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
