from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_ray.testing.tiny import tiny_random


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a chat template: <user>...<assistant>."""
    return AutoTokenizer.from_pretrained(tiny_random(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def plain_tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    """The same without a chat template."""
    folder = tiny_random(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    return AutoTokenizer.from_pretrained(folder)
