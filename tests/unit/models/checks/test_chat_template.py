"""Chat templates that take all memory, never end or fail are refused within limits."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks import chat_template
from rlhf_ray.models.checks.chat_template import check_chat_template, check_served_template

pytestmark = pytest.mark.unit_slow

NESTED = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10000000000 }}", "takes more than 512 MiB of memory for a chat"),
        ("{{ 'a' * 50000000 }}", "makes 50,000,000 characters"),
        ("{% include 'x' %}", "fails on a chat of two messages: TypeError: no loader"),
        ("{% for i in range(100001) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "is broken: line 1"),
    ],
)
def test_refused(tokenizer: PreTrainedTokenizerBase, template: str, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(RequestError, match=f"the chat template of here .*{message}"):
        check_chat_template(tokenizer, "here")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 4 * 2**20, "KiB: the memory was the child's"


def test_endless(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    tokenizer.chat_template = NESTED
    with pytest.raises(RequestError, match="within 1 s of computing"):
        check_chat_template(tokenizer, "here")


def test_passing(tokenizer: PreTrainedTokenizerBase) -> None:
    """The model's own; one that refuses every chat in its own words; none at all."""
    check_chat_template(tokenizer, "here")
    tokenizer.chat_template = "{{ raise_exception('only tools') }}"
    check_chat_template(tokenizer, "here")
    tokenizer.chat_template = None
    check_chat_template(tokenizer, "here")


def test_named_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    good = tokenizer.chat_template
    tokenizer.chat_template = {"default": good, "tool_use": "{{ 1 / 0 }}"}
    with pytest.raises(RequestError, match="the chat template 'tool_use' of here fails"):
        check_chat_template(tokenizer, "here")


class TestServed:
    """The same by the files, which an engine reads by itself."""

    def test_model(self, copy: Path) -> None:
        check_served_template(ModelConfig(path=str(copy)))
        (copy / "chat_template.jinja").write_text("{{ 1 / 0 }}")
        with pytest.raises(RequestError, match=r"of .*copy fails on a chat"):
            check_served_template(ModelConfig(path=str(copy)))

    @pytest.mark.parametrize("several", [True, False])
    def test_tokenizer_config(self, copy: Path, edit, several: bool) -> None:
        (copy / "chat_template.jinja").unlink()
        check_served_template(ModelConfig(path=str(copy)))
        template = "{{ 1 / 0 }}"
        found = [{"name": "default", "template": template}] if several else template
        edit(copy / "tokenizer_config.json", chat_template=found)
        with pytest.raises(RequestError, match="ZeroDivisionError"):
            check_served_template(ModelConfig(path=str(copy)))

    def test_damaged_file(self, copy: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        (copy / "tokenizer_config.json").write_text(json.dumps([]))
        with pytest.raises(RequestError, match="cannot load a chat template"):
            check_served_template(ModelConfig(path=str(copy)))

    def test_given_template(self, copy: Path, tmp_path: Path) -> None:
        given = tmp_path / "own.jinja"
        given.write_text("{{ 1 / 0 }}")
        with pytest.raises(RequestError, match=r"of .*own\.jinja fails"):
            check_served_template(ModelConfig(path=str(copy), chat_template=str(given)))
        check_served_template(ModelConfig(path="owner/name"))

    def test_a_template_by_its_name(self, copy: Path, edit) -> None:
        (copy / "chat_template.jinja").unlink()
        named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "{{ 1 / 0 }}"}]
        edit(copy / "tokenizer_config.json", chat_template=named)
        check_served_template(ModelConfig(path=str(copy), chat_template="default"))
        with pytest.raises(RequestError, match="the chat template of rag fails"):
            check_served_template(ModelConfig(path=str(copy), chat_template="rag"))
        with pytest.raises(RequestError, match=r"own templates are 'default', 'rag'$"):
            check_served_template(ModelConfig(path=str(copy), chat_template="tools"))
        check_served_template(ModelConfig(path="owner/name", chat_template="rag"))

    def test_a_template_by_the_name_of_its_file(self, copy: Path) -> None:
        (copy / "additional_chat_templates").mkdir()
        (copy / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 / 0 }}")
        check_served_template(ModelConfig(path=str(copy), chat_template="default"))
        with pytest.raises(RequestError, match="the chat template of rag fails"):
            check_served_template(ModelConfig(path=str(copy), chat_template="rag"))
