"""The lock files: complete, hashed, and of the versions that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRAS = ("dev", "data", "serve", "smollm2", "lm-eval", "bench")
# The CPU build of torch has no hash: its index may have built it again.
WITHOUT_HASH = {"cpu": {"torch"}, "gpu": set(), "compress": {"torch"}}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of every package."""
    text = (REPOSITORY / f"launch/locks/{name}.txt").read_text()
    blocks = re.findall(r"^(\S+)==(\S+)((?:[^\n]*\\\n +--hash=\S+)*)", text, flags=re.MULTILINE)
    assert len(blocks) == len(re.findall(r"^\S", text, flags=re.MULTILINE))
    return {package: (version, rest.count("--hash=sha256:")) for package, version, rest in blocks}


def wanted(device: str) -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for x in (device, *EXTRAS) for line in optional[x])]


@pytest.mark.parametrize("name", ["cpu", "gpu", "compress"])
def test_every_package_has_its_hashes(name: str) -> None:
    packages = locked(name)
    assert len(packages) > 50
    assert {p for p, (_, hashes) in packages.items() if not hashes} == WITHOUT_HASH[name]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lock_is_that_of_the_project(device: str) -> None:
    packages = locked(device)
    for requirement in wanted(device):
        package, pinned = re.match(r"([\w.-]+)(?:\[\w+\])?(?:==(\S+))?", requirement).groups()
        if package == "rlhf_ray":
            continue
        version = packages[package.lower().replace("_", "-")][0]
        assert pinned in (None, version.partition("+")[0]), f"{requirement}: run `make lock`"


def test_the_compressor_is_that_of_its_setup() -> None:
    script = (REPOSITORY / "launch/setup_compress.sh").read_text()
    version = re.search(r'compressor="llmcompressor==(.*)"', script)[1]
    assert locked("compress")["llmcompressor"][0] == version


@pytest.mark.parametrize("name", ["cpu", "gpu", "compress"])
def test_no_index_is_named(name: str) -> None:
    assert "://" not in (REPOSITORY / f"launch/locks/{name}.txt").read_text()
