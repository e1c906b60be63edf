"""Budgets and borders that keep the code readable: sizes, who imports what, recipes that plan."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.cluster.resource_plan import missing
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.compose import group_choices
from rlhf_ray.config.load import load_config
from rlhf_ray.main import main
from rlhf_ray.stages.pipeline import read_steps

PACKAGE = Path(__file__).parents[2] / "rlhf_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4
MAX_LOOP_LINES = 120

# Where each heavy library may be imported: folders and files below rlhf_ray/.
HOMES = {
    "vllm": ("generation/",),
    "deepspeed": ("training/engine/deepspeed_engine.py",),
    "peft": ("training/weights/lora.py", "training/weights/lora_folder.py", "models/merged.py"),
    "ray": ("cluster/", "observe/"),
}

# What must import fast, and what must not come with it.
LIGHT = {
    "rlhf_ray.config.load": ("torch", "ray", "vllm", "deepspeed", "transformers"),
    "rlhf_ray.main": ("torch", "ray", "vllm", "deepspeed", "transformers"),
    "rlhf_ray.stages.plan": ("torch", "ray", "vllm", "deepspeed", "transformers"),
    "rlhf_ray.stages.prepare_data": (
        "torch",
        "ray",
        "vllm",
        "deepspeed",
        "transformers",
        "datasets",
    ),
    "rlhf_ray.records": ("ray", "vllm", "deepspeed"),
    "rlhf_ray.algorithms": ("ray", "vllm", "deepspeed"),
    "rlhf_ray.rewards": ("ray", "vllm", "deepspeed"),
    "rlhf_ray.driver": ("ray", "vllm", "deepspeed"),
    "rlhf_ray.driver.fit.checkpoints": ("ray", "vllm", "deepspeed"),
}

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _nesting(node: ast.AST) -> int:
    """Deepest chain of blocks below `node`; an `elif` is as deep as its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = (
            isinstance(node, ast.If)
            and isinstance(child, ast.If)
            and child in node.orelse
            and len(node.orelse) == 1
        )
        adds = 1 if isinstance(child, BLOCKS) and not is_elif else 0
        deepest = max(deepest, adds + _nesting(child))
    return deepest


def _defaulted_lookups(tree: ast.Module) -> Iterator[int]:
    """Lines with `hasattr(...)` or a three-argument `getattr(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name, count = node.func.id, len(node.args)
            if name == "hasattr" or (name == "getattr" and count == 3):
                yield node.lineno


def _imported_packages(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_budgets(file):
    num_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES
    functions = [node for node in ast.walk(_tree(file)) if isinstance(node, FUNCTIONS)]
    sizes = [(f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions]
    depths = [(f.name, _nesting(f)) for f in functions]
    assert [(name, size) for name, size in sizes if size > MAX_FUNCTION_LINES] == []
    assert [(name, depth) for name, depth in depths if depth > MAX_NESTING] == []


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_no_lookup_papers_over_a_missing_field(file):
    assert list(_defaulted_lookups(_tree(file))) == []


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_heavy_libraries_stay_at_home(file):
    name = str(file.relative_to(PACKAGE))
    imported = _imported_packages(_tree(file))
    away = {lib for lib, homes in HOMES.items() if lib in imported and not name.startswith(homes)}
    assert away == set()


def test_the_loop_is_short_enough_to_read():
    loop = PACKAGE / "driver.py"
    file = loop if loop.exists() else PACKAGE / "driver" / "loop.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LOOP_LINES


def test_main_defines_no_class():
    tree = _tree(PACKAGE / "main.py")
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == []


@pytest.mark.parametrize(("module", "heavy"), LIGHT.items(), ids=LIGHT)
def test_light_modules_load_nothing_heavy(module, heavy):
    code = (
        f"import json, sys, {module}; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("recipe", group_choices()["recipe"])
def test_every_recipe_composes_validates_and_plans(recipe, capsys):
    config = load_config([f"recipe={recipe}"])
    assert config.recipe == recipe, "a recipe sets its own name"
    nodes = [{"CPU": 64.0, "GPU": 8.0}] * 64
    is_pipeline = config.stage.name == "pipeline"
    runs = [step.config for step in read_steps(config)] if is_pipeline else [config]
    with_workers = [run for run in runs if run.stage.name != "prepare_data"]
    assert with_workers
    assert [missing(resource_plan(run), nodes) for run in with_workers] == [[]] * len(with_workers)
    assert main([f"recipe={recipe}", "dry_run=true" if is_pipeline else "stage=plan"]) == 0
    assert f"recipe: {recipe}" in capsys.readouterr().out


class TestTheChecksThemselves:
    """They can fail."""

    def test_nesting(self):
        two = "def f():\n if a:\n  for b in c:\n   pass\n elif d:\n  pass\n elif e:\n  pass\n"
        assert _nesting(ast.parse(two)) == 2
        five = "def f():\n if a:\n  for b in c:\n   while d:\n    with e:\n     try:\n      pass\n"
        assert _nesting(ast.parse(five + "     finally:\n      pass\n")) == 5

    def test_lookups(self):
        tree = ast.parse("getattr(a, 'b')\nhasattr(a, 'b')\ngetattr(a, 'b', None)\n")
        assert list(_defaulted_lookups(tree)) == [2, 3]

    def test_imports(self):
        tree = ast.parse("def f():\n import ray.util\nfrom vllm.config import x\nfrom . import y\n")
        assert _imported_packages(tree) == {"ray", "vllm"}
