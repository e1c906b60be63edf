"""What the documentation names is there: files, make targets, recipes, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.schema import all_keys, group_names

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"\bmake ([a-z][a-z0-9-]*)")
RECIPE = re.compile(r"\brecipe=([a-z0-9_]+)")
SCRIPT = re.compile(r"\b((?:launch|docker|tests|docs|conf)/[\w./-]*\w)")
# `group.key`, or a key of the root with a value, in code.
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`")
# What the reader is to make.
YOURS = "my_"
# Words after `make` that are prose.
PROSE = {"it", "the", "a", "an", "them", "one", "other", "another", "use", "random"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(text_of(page)) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_exist(page):
    makefile = text_of(REPOSITORY / "Makefile")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(TARGET.findall("\n".join(code_of(page))))
    assert named - targets - PROSE == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_exist(page):
    named = {name for name in RECIPE.findall(text_of(page)) if not name.startswith(YOURS)}
    assert named - set(group_choices()["recipe"]) == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_exist(page):
    named = [name for name in SCRIPT.findall(text_of(page)) if not is_example(name)]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_keys_exist(page):
    known = all_keys()
    groups = set(group_names())
    # Below them stand names of the reader's choice.
    mappings = tuple(f"{name}." for name, key in known.items() if key.is_mapping)
    written = [name for name in KEY.findall(text_of(page)) if not name.endswith(".json")]
    named = [name for name in written if name.split(".")[0] in groups]
    unknown = [name for name in named if name not in known and name not in groups]
    assert [name for name in unknown if not name.startswith(mappings)] == []


def test_every_recipe_is_in_the_readme():
    text = text_of(REPOSITORY / "README.md")
    assert [name for name in group_choices()["recipe"] if f"| `{name}` |" not in text] == []


def is_example(name: str) -> bool:
    """Capitals stand for something else, as in conf/GROUP."""
    return Path(name).name.startswith(YOURS) or re.search("[A-Z]{4}", name) is not None


def code_of(page: Path) -> list[str]:
    """What stands in code blocks and between backticks."""
    text = text_of(page)
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```[a-z]*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`([^`]+)`", rest)
