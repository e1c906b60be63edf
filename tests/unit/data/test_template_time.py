"""The time that a chat template writes is one for a run."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.data.examples import load_demonstrations
from rlhf_ray.data.examples.answer_encoding import encode_answers
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.data.rows import DataError
from rlhf_ray.data.template_time import time_line
from rlhf_ray.driver.checkpoints import Checkpoints, check_identity
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.records import Prompt
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.stages.fit.inputs import fit_identity
from rlhf_ray.stages.rl.inputs import check_request
from rlhf_ray.stages.template_time import with_template_time
from rlhf_ray.testing.turns import CHATML, two_ends_model, two_ends_tokenizer

TIME = "2024-07-26T23:59:58"
SAYS = "26 Jul 2024 23:59:58 58"
# In a macro and in a branch, as templates of the field do it.
CLOCK = (
    "{% macro today(form) %}{{ strftime_now(form) }}{% endmacro %}"
    "{% if strftime_now is defined %}{{ today('%d %b %Y %H:%M:%S') + strftime_now(' %S') }}"
    "{% endif %}" + CHATML
)
MARKED = CLOCK.replace(
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}",
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return two_ends_model(tmp_path_factory.mktemp("clock"), two_ends_tokenizer(template=CLOCK))


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(ModelConfig(path=str(folder), template_time=TIME))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": CHAT, "prompt": CHAT[:1]}) + "\n")
    return str(file)


class TestRendering:
    """Every place that renders writes the frozen time."""

    @pytest.mark.parametrize("template", [CLOCK, MARKED], ids=["found", "marked"])
    def test_demonstrations(self, tokenizer, path, template) -> None:
        tokenizer.chat_template = template
        found = load_demonstrations(ExamplesConfig(path=path, eval_share=0), tokenizer, seed=0)
        (sample,) = found.train
        assert tokenizer.decode(sample.token_ids).startswith(SAYS + "<|im_start|>user")
        assert tokenizer.decode(sample.token_ids[sample.loss_mask]) == "hello<|im_end|>"

    def test_prompts(self, tokenizer, path) -> None:
        found = load_prompts(DataConfig(path=path), tokenizer, seed=0)
        assert found.prompts[0].text.startswith(SAYS)

    def test_scored_answers(self, tokenizer) -> None:
        (row,) = encode_answers(CHAT[:1], ["yes"], [True], tokenizer)
        assert isinstance(row, LabelledTokens)
        assert tokenizer.decode(row.token_ids).startswith(SAYS)

    def test_a_judges_question(self, tokenizer) -> None:
        prompt = Prompt(
            prompt_id="p",
            stream_index=0,
            text="",
            token_ids=(),
            answer=None,
            source="",
            seed=0,
            columns={},
        )
        judge = JudgeConfig(model="m", rubric="{response}")
        assert tokenizer.decode(Rubric(judge, tokenizer).question(prompt, "x")).startswith(SAYS)

    def test_the_real_time_where_none_is_set(self, folder) -> None:
        """A service renders at the time of the request."""
        tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
        text = apply_template(CHAT, tokenizer, add_generation_prompt=False)
        assert str(datetime.now().year) in text.partition("<")[0]

    def test_a_saved_tokenizer_writes_the_real_time(self, tokenizer, tmp_path) -> None:
        tokenizer.save_pretrained(tmp_path)
        assert "2024" not in (tmp_path / "tokenizer_config.json").read_text()
        saved = AutoTokenizer.from_pretrained(tmp_path)
        assert saved.chat_template == CLOCK
        text = apply_template(CHAT, saved, add_generation_prompt=False)
        assert SAYS not in text

    def test_what_is_said(self, tokenizer, folder) -> None:
        assert f"{TIME} in the whole run" in (time_line(tokenizer) or "")
        open_ended = load_tokenizer(ModelConfig(path=str(folder)))
        assert "no model.template_time" in (time_line(open_ended) or "")
        assert time_line(two_ends_tokenizer()) is None


def config_of(output, *overrides):
    return load_config(
        ["stage=sft", "model.path=m", "examples.path=e", f"output_dir={output}", *overrides]
    )


def checkpointed(output, identity) -> None:
    folders = Checkpoints(output, keep_last=2)
    folders.commit(folders.begin(1), {"step": 1, "identity": identity})


class TestRun:
    """The time of a run, from its start over its checkpoints."""

    def test_a_new_run_takes_the_present(self, tmp_path) -> None:
        before = datetime.now().replace(microsecond=0)
        config = with_template_time(config_of(tmp_path))
        assert config.model.template_time is not None
        assert before <= datetime.fromisoformat(config.model.template_time) <= datetime.now()
        assert fit_identity(config)["model.template_time"] == config.model.template_time

    def test_a_time_that_is_set_is_kept(self, tmp_path) -> None:
        config = config_of(tmp_path, f"model.template_time={TIME}")
        assert with_template_time(config) is config

    def test_a_resumed_run_takes_that_of_its_checkpoint(self, tmp_path) -> None:
        first = with_template_time(config_of(tmp_path, f"model.template_time={TIME}"))
        checkpointed(tmp_path, fit_identity(first))
        second = with_template_time(config_of(tmp_path))
        assert second.model.template_time == TIME
        check_identity(tmp_path, fit_identity(first), fit_identity(second))
        (folder,) = (tmp_path / "checkpoints").iterdir()
        elsewhere = config_of(tmp_path / "other", f"resume={folder}")
        assert with_template_time(elsewhere).model.template_time == TIME

    def test_never_resumed_means_the_present(self, tmp_path) -> None:
        checkpointed(tmp_path, {"model.template_time": TIME})
        found = with_template_time(config_of(tmp_path, "resume=never"))
        assert found.model.template_time not in (None, TIME)

    def test_a_checkpoint_without_a_time_still_goes_on(self, tmp_path) -> None:
        identity = fit_identity(config_of(tmp_path))
        del identity["model.template_time"]
        checkpointed(tmp_path, identity)
        config = with_template_time(config_of(tmp_path))
        assert config.model.template_time is None
        check_identity(tmp_path, identity, fit_identity(config))

    def test_another_time_is_another_run(self, tmp_path) -> None:
        there = fit_identity(config_of(tmp_path, f"model.template_time={TIME}"))
        here = fit_identity(config_of(tmp_path, "model.template_time=2026-01-31"))
        with pytest.raises(RequestError, match=f"model.template_time='{TIME}' there"):
            check_identity(tmp_path, there, here)

    def test_reinforcement_learning(self, tmp_path, folder) -> None:
        config = load_config(["recipe=demo", f"model.path={folder}", f"output_dir={tmp_path}"])
        request = check_request(config)
        time = request.config.model.template_time
        assert time is not None
        assert request.settings.identity["model.template_time"] == time
        checkpointed(tmp_path, {**request.settings.identity, "model.template_time": TIME})
        assert with_template_time(config).model.template_time == TIME


def test_a_stream_that_differs_names_the_time() -> None:
    def order(fingerprint):
        return RowOrder("samples", num_rows=3, fingerprint=fingerprint, seed=0, shuffle=True)

    with pytest.raises(DataError, match=r"model\.template_time sets it"):
        order("b").load_state_dict(order("a").state_dict())
