"""Budgets and borders that keep the code readable: sizes, who imports what, recipes that plan."""

from __future__ import annotations

import ast
import collections
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.cluster.resource_plan import missing
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.load import load_config
from rlhf_ray.main import main
from rlhf_ray.stages.pipeline import read_steps
from tests.unit.import_graph import (
    circles,
    imported_modules,
    module_graph,
    module_name,
    parsed,
    sibling_graphs,
)

PACKAGE = Path(__file__).parents[2] / "rlhf_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]
FOLDERS = sorted({file.parent for file in FILES})
FOLDER_NAMES = [str(folder.relative_to(PACKAGE.parent)) for folder in FOLDERS]

MAX_MODULES = 15
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4
MAX_LOOP_LINES = 120

# Where each heavy library may be imported: folders and files below rlhf_ray/.
HOMES = {
    "vllm": ("generation/",),
    "deepspeed": (
        "training/engine/deepspeed_engine.py",
        "training/engine/deepspeed_files.py",
        "training/engine/process.py",
        "training/engine/sharding.py",
        "training/engine/slicing/autotp.py",
        "training/engine/starting/",
        "training/engine/ulysses.py",
    ),
    "peft": ("training/weights/lora.py", "training/weights/lora_folder.py", "models/merged.py"),
    "ray": ("cluster/", "observe/"),
}

# Folders that know nothing of Ray's folder: a driver runs on fakes as it does on actors.
FREE_OF_RAY = ("driver", "publish")

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

# Words that open a docstring with a clause: a noun or an imperative verb is to open it.
CLAUSES = {"What", "Of", "As", "That", "With", "Those", "Likewise", "Who", "How"}

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _classes(tree: ast.Module) -> list[str]:
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _clauses(tree: ast.Module) -> Iterator[str]:
    """First lines of the docstrings that open with a clause."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            words = (ast.get_docstring(node) or "").split(maxsplit=1)
            if words and words[0].rstrip(",:") in CLAUSES:
                yield " ".join(words).splitlines()[0]


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


def _over_budget(file: Path) -> list[str]:
    """Words on everything in a file that is longer or deeper than its budget."""
    num_lines = len(file.read_text(encoding="utf-8").splitlines())
    found = [f"{num_lines} lines"] if num_lines > MAX_FILE_LINES else []
    for node in ast.walk(parsed(file)):
        if isinstance(node, FUNCTIONS):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MAX_FUNCTION_LINES:
                found.append(f"{node.name} has {size} lines")
            if (depth := _nesting(node)) > MAX_NESTING:
                found.append(f"{node.name} has {depth} levels")
    return found


def _away_from_home(file: Path) -> list[str]:
    """Heavy libraries that a file imports though it is not among their homes."""
    name, imported = str(file.relative_to(PACKAGE)), _imported_packages(parsed(file))
    return [lib for lib, homes in HOMES.items() if lib in imported and not name.startswith(homes)]


# One test each for all files: a test per file costs more than its check.
@pytest.mark.parametrize(
    "problems",
    [_over_budget, lambda file: list(_defaulted_lookups(parsed(file))), _away_from_home],
    ids=["budgets", "no lookup papers over a missing field", "heavy libraries stay at home"],
)
def test_every_file(problems):
    assert len(FILES) > 400
    found = {name: problems(file) for name, file in zip(NAMES, FILES, strict=True)}
    assert {name: some for name, some in found.items() if some} == {}


def test_a_folder_holds_few_modules():
    counts = {
        name: sum(file.name != "__init__.py" for file in folder.glob("*.py"))
        for name, folder in zip(FOLDER_NAMES, FOLDERS, strict=True)
    }
    assert len(counts) > 30
    assert {name: count for name, count in counts.items() if count > MAX_MODULES} == {}


def test_no_circle_among_modules():
    assert circles(module_graph(PACKAGE)) == []


def test_no_circle_among_sibling_folders():
    folders = {module_name(folder / "__init__.py", PACKAGE) for folder in FOLDERS}
    graphs = sibling_graphs(module_graph(PACKAGE), folders)
    assert len(graphs["rlhf_ray"]) > 10
    found = {name: circles(graph) for name, graph in graphs.items()}
    assert {name: some for name, some in found.items() if some} == {}


def test_no_class_name_is_used_twice():
    counts = collections.Counter(name for file in FILES for name in _classes(parsed(file)))
    assert [name for name, count in counts.items() if count > 1] == []


def test_docstrings_open_with_a_noun_or_a_verb():
    found = {name: list(_clauses(parsed(file))) for name, file in zip(NAMES, FILES, strict=True)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.unit_slow
@pytest.mark.parametrize("folder", FREE_OF_RAY)
def test_driver_and_publish_stand_without_the_cluster(folder):
    below = {
        module: imported
        for module, imported in module_graph(PACKAGE).items()
        if f"{module}.".startswith(f"rlhf_ray.{folder}.")
    }
    assert below
    assert [
        (module, other)
        for module, imported in below.items()
        for other in imported
        if f"{other}.".startswith("rlhf_ray.cluster.")
    ] == []


def test_the_loop_is_short_enough_to_read():
    loop = PACKAGE / "driver.py"
    file = loop if loop.exists() else PACKAGE / "driver" / "loop.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LOOP_LINES


def test_main_defines_no_class():
    tree = parsed(PACKAGE / "main.py")
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == []


# Prints, for one module after the other, which of the heavy libraries came with it.
LOADS = """
import importlib, json, sys
heavy, modules = json.loads(sys.argv[1])
loaded, before = {}, set()
for module in modules:
    importlib.import_module(module)
    now = {name for name in heavy if name in sys.modules}
    loaded[module] = sorted(now - before)
    before = now
print(json.dumps(loaded))
"""


@functools.cache
def _heavy_imports(modules: tuple[str, ...], heavy: tuple[str, ...]) -> dict[str, list[str]]:
    """Module to the heavy libraries that its import loads in one new process, in this order.

    A library is held against the first module that loads it. So all lists are empty if and only if
    no module loads any.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOADS, json.dumps([heavy, modules])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.unit_slow
@pytest.mark.parametrize(("module", "heavy"), LIGHT.items(), ids=LIGHT)
def test_light_modules_load_nothing_heavy(module, heavy):
    together = tuple(name for name, libraries in LIGHT.items() if libraries == heavy)
    assert _heavy_imports(together, heavy)[module] == []


@pytest.mark.unit_slow
@pytest.mark.parametrize("recipe", group_choices()["recipe"])
def test_every_recipe_composes_validates_and_plans(recipe, capsys, tmp_path, monkeypatch):
    config = load_config([f"recipe={recipe}"])
    assert config.recipe == recipe, "a recipe sets its own name"
    nodes = [{"CPU": 64.0, "GPU": 8.0}] * 64
    is_pipeline = config.stage.name == "pipeline"
    runs = [step.config for step in read_steps(config)] if is_pipeline else [config]
    with_workers = [run for run in runs if run.stage.name != "prepare_data"]
    assert with_workers
    assert [missing(resource_plan(run), nodes) for run in with_workers] == [[]] * len(with_workers)
    # Those that start from what another command makes are planned too, and say what is missing.
    needs_others = recipe in ("pipeline_smollm2", "product", "smollm2_grpo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status = main([f"recipe={recipe}", "dry_run=true" if is_pipeline else "stage=plan"])
    out, err = capsys.readouterr()
    assert status == (2 if needs_others else 0)
    assert ("'outputs/" in err) == needs_others
    assert f"recipe: {recipe}" in out


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

    def test_classes(self):
        """Classes within classes and functions, too."""
        code = "class A:\n class B:\n  pass\ndef f():\n class A:\n  pass\n"
        assert sorted(_classes(ast.parse(code))) == ["A", "A", "B"]

    def test_clauses(self):
        code = '"""What it is."""\nclass A:\n """A thing. What else."""\n'
        code += ' def f():\n  """As, f.\n  g"""\n  async def g():\n   "Whatever"\n'
        assert list(_clauses(ast.parse(code))) == ["What it is.", "As, f."]

    def test_imported_modules(self):
        known = {name: Path() for name in ("p", "p.a", "p.a.b", "p.c")}
        tree = ast.parse(
            "import p.c\nfrom p.a import b\ndef f():\n from p.a import some_function\nimport os\n"
        )
        assert imported_modules(tree, known) == {"p.c", "p.a.b", "p.a"}

    def test_circles(self):
        chain = {"a": {"b"}, "b": {"c"}, "c": set()}
        assert circles(chain) == []
        assert circles(chain | {"c": {"b"}}) == [["b", "c"]]
        assert circles(chain | {"c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]

    def test_circles_of_siblings(self):
        """Each module imports one of the other folder: no circle of modules, one of folders."""
        graph = {
            **{name: set() for name in ("p", "p.x", "p.y", "p.y.inner", "p.y.inner.d")},
            "p.a": {"p.x.a"},
            "p.x.a": {"p.y.b"},
            "p.x.c": set(),
            "p.y.b": set(),
        }
        folders = {"p", "p.x", "p.y", "p.y.inner"}
        assert sibling_graphs(graph, folders) == {
            "p": {"p.x": {"p.y"}, "p.y": set()},
            "p.y": {"p.y.inner": set()},
        }
        back = sibling_graphs(graph | {"p.y.inner.d": {"p.x.c"}}, folders)
        assert circles(graph | {"p.y.inner.d": {"p.x.c"}}) == []
        assert circles(back["p"]) == [["p.x", "p.y"]]

    def test_modules_of_a_folder(self, tmp_path):
        """The graph of real files, with an import in a function."""
        package = tmp_path / "p"
        (package / "x").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "a.py").write_text("def f():\n    from p.x import b\n")
        (package / "x" / "__init__.py").write_text("")
        (package / "x" / "b.py").write_text("import p.a\n")
        graph = module_graph(package)
        assert graph == {"p": set(), "p.a": {"p.x.b"}, "p.x": set(), "p.x.b": {"p.a"}}
        assert circles(graph) == [["p.a", "p.x.b"]]

    def test_heavy_imports(self):
        found = _heavy_imports(("json", "email.message", "string"), ("email", "calendar"))
        assert found == {"json": [], "email.message": ["calendar", "email"], "string": []}
