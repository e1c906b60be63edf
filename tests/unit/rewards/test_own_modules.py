"""The files that the code of a reward consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.rewards.own_modules import own_modules


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(folder: Path, file: str, module: str = "") -> list[str]:
    own = own_modules(folder / file, module)
    return sorted(path.relative_to(folder.resolve()).as_posix() for path in own)


def test_modules_of_the_folder_of_a_file(tmp_path):
    write(
        tmp_path,
        reward="import json, torch\nimport own_helper\nfrom own_parts import sums\n"
        "def score(sample):\n    from own_late import f\n",
        own_helper="import own_deep, reward",
        own_deep="import no_such_module\nimport rlhf_ray.records",
        own_late="f = 1",
        own_other="never imported",
        own_parts__sums="from .units import unit\nfrom . import more",
        own_parts__units="",
        own_parts__more="",
        own_parts__left_out="",
    )
    (tmp_path / "own_parts" / "__init__.py").write_text("")
    assert found(tmp_path, "reward.py") == [
        "own_deep.py",
        "own_helper.py",
        "own_late.py",
        "own_parts/__init__.py",
        "own_parts/more.py",
        "own_parts/sums.py",
        "own_parts/units.py",
    ]


@pytest.mark.parametrize("place", ["src", "site-packages"])
def test_modules_of_the_package_of_a_module(tmp_path, monkeypatch, place):
    root = tmp_path / place
    write(
        root,
        own_pack__rewards__main="from ..tools import text\nimport own_pack.math\nimport own_lib",
        own_pack__tools__text="",
        own_pack__math="",
        own_lib="",
    )
    for folder in ("own_pack", "own_pack/rewards", "own_pack/tools"):
        (root / folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(root))
    own = found(root, "own_pack/rewards/main.py", "own_pack.rewards.main")
    assert {"own_pack/tools/text.py", "own_pack/math.py", "own_pack/__init__.py"} <= set(own)
    # Another package is the user's own only where it was not installed.
    assert ("own_lib.py" in own) is (place == "src")


def test_a_file_that_is_not_python_imports_nothing(tmp_path):
    write(tmp_path, reward="def")
    assert found(tmp_path, "reward.py") == []
