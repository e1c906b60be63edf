"""What a row says is what is learnt: weights, thoughts, white space, fields, texts left out."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.data.examples import load_demonstrations, load_rankings
from rlhf_ray.data.rows import DataError
from tests.unit.data.templates import tokenizer_of

HI = {"role": "user", "content": "hi"}
MORE = {"role": "user", "content": "more"}
TOOL = {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1", "extra": {"x": 1}}


def says(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


@pytest.fixture
def load(source):
    """The set of one conversation, with one of the templates."""

    def call(messages: list[Any], template: str = "whole", **settings: Any):
        rows = [{"messages": messages}]
        return load_demonstrations(source(rows, **settings), tokenizer_of(template), seed=0)

    return call


def learnt(loaded) -> str:
    (sample,) = loaded.train
    return tokenizer_of("whole").decode(sample.token_ids[sample.loss_mask])


@pytest.mark.parametrize("template", ["whole", "marked"])
class TestWeights:
    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ((0, 1), "right<eos>"),
            ((1, 0), "wrong<eos>"),
            ((0.0, None), "right<eos>"),
            ((1, 1.0), "wrong<eos>right<eos>"),
        ],
    )
    def test_weight_of_a_turn(self, load, template, weights, expected) -> None:
        first, second = weights
        chat = [HI, says("wrong", weight=first), MORE, says("right", weight=second)]
        assert learnt(load(chat, template)) == expected

    @pytest.mark.parametrize("weight", [0.5, 2, -1, "0", True, [1]])
    def test_other_weights_are_refused(self, load, template, weight) -> None:
        with pytest.raises(DataError, match=r"'weight' of message 2 .* must be 1 .* or 0"):
            load([HI, says("a", weight=weight)], template)

    def test_nothing_left(self, load, template) -> None:
        with pytest.raises(DataError, match=r"no answer .* is to be learnt.*'weight' 0"):
            load([HI, says("a", weight=0)], template)

    def test_weights_where_nothing_can_be_learnt(self, source, load, template) -> None:
        with pytest.raises(DataError, match=r"message 1 .* 'weight' 1 and the role 'user'"):
            load([{**HI, "weight": 1}, says("a")], template)
        assert learnt(load([{**HI, "weight": 0}, says("a")], template)) == "a<eos>"
        row = {"prompt": [HI, says("x", weight=1), MORE], "chosen": "a", "rejected": "b"}
        with pytest.raises(DataError, match=r"message 2 .*'weight' 1, but nothing in a prompt"):
            load_rankings(source([row]), tokenizer_of(template), seed=0)
        row["prompt"][1]["weight"] = 0
        assert len(load_rankings(source([row]), tokenizer_of(template), seed=0).train) == 1

    @pytest.mark.parametrize(
        "field", ["train", "trainable", "learn", "loss", "loss_weight", "mask", "masked"]
    )
    def test_names_of_other_libraries(self, load, template, field: str) -> None:
        with pytest.raises(DataError, match=f"{field!r}, which is not read here; .*'weight'"):
            load([HI, says("a", **{field: False})], template)


class TestThoughts:
    THOUGHT = "<think>\nhm\n</think>\n\nyes"

    def test_those_of_the_last_turn(self, load) -> None:
        for message in (says(self.THOUGHT), says("yes", reasoning_content="hm")):
            assert learnt(load([HI, message], "thinks")) == f"{self.THOUGHT}<eos>"

    def test_another_form_of_them(self, load) -> None:
        loaded = load([HI, says("<think>hm</think>yes")], "thinks")
        assert learnt(loaded) == f"{self.THOUGHT}<eos>"
        assert "changes white space in an answer" in loaded.describe()

    @pytest.mark.parametrize("first", [says(THOUGHT), says("yes", reasoning_content="hm")])
    def test_those_of_an_earlier_turn_are_refused(self, load, first) -> None:
        chat = [HI, first, MORE, says("no")]
        with pytest.raises(DataError, match=r"does not write .*message 2.*set 'weight' to 0"):
            load(chat, "thinks")
        loaded = load([HI, {**first, "weight": 0}, MORE, says(self.THOUGHT)], "thinks")
        assert learnt(loaded) == f"{self.THOUGHT}<eos>"
        assert "leaves out text of earlier answers, which are context: 1 rows" in loaded.describe()

    def test_a_field_that_the_template_does_not_know(self, load) -> None:
        with pytest.raises(DataError, match="'reasoning_content' of the answer 'hm'"):
            load([HI, says("yes", reasoning_content="hm")], "whole")
        assert learnt(load([HI, says("yes", reasoning_content=" ")], "whole")) == "yes<eos>"

    def test_a_thought_alone(self, load) -> None:
        loaded = load([HI, says("", reasoning_content="hm")], "thinks")
        assert learnt(loaded) == "<think>\nhm\n</think>\n\n<eos>"


class TestTexts:
    def test_white_space_is_noted(self, load) -> None:
        loaded = load([HI, says(" yes\n")], "trims")
        assert learnt(loaded) == "yes<eos>"
        assert "changes white space in an answer, which is learnt as it writes it: 1 rows (first: "
        assert "rows.jsonl line 1)" in loaded.describe()
        assert learnt(load([HI, says(" yes\n")], "whole")) == " yes\n<eos>"
        assert load([HI, says("yes")], "trims").notes == ()

    @pytest.mark.parametrize(("template", "said"), [("shouts", "yes"), ("escapes", 'a "b"')])
    def test_rewritten(self, load, template: str, said: str) -> None:
        with pytest.raises(DataError, match=r"does not write the answer .* where it should stand"):
            load([HI, says(said)], template)

    def test_answers_that_stand_in_the_frame_by_chance(self, load) -> None:
        """The template drops the text, and the end of the turn contains it."""
        call = {"function": {"name": "add", "arguments": {}}}
        with pytest.raises(DataError, match="does not write the answer 'add'"):
            load([HI, says("add", tool_calls=[call])], "calls_alone")

    @pytest.mark.parametrize("role", ["system", "tool"])
    def test_messages_of_other_roles(self, load, role: str) -> None:
        chat = [HI, says("yes"), {"role": "tool", "content": "2"}, says("no")]
        if role == "system":
            chat = [{"role": "system", "content": "Be brief."}, HI, says("yes")]
        with pytest.raises(DataError, match=f"leaves out message . .of the role {role!r}"):
            load(chat, "two_roles")

    def test_silent_turns_are_noted(self, load) -> None:
        loaded = load([HI, says(" "), MORE, says("yes"), MORE])
        assert learnt(loaded) == "yes<eos>"
        assert "an answer without text is context, and not learnt: 1 rows" in loaded.describe()
        assert "after the last answer that is learnt are left out: 1 rows" in loaded.describe()


def test_fields_that_are_not_written_are_counted(load) -> None:
    chat = [HI, says("yes"), TOOL, says("no", name="bot")]
    described = load(chat).describe()
    for field in ("name", "tool_call_id", "extra"):
        assert f"the chat template does not write the field {field!r} of messages: 1 rows" in (
            described
        )
    described = load(chat, "names").describe()
    assert "'name'" not in described
    assert "'tool_call_id'" in described
    # Null is how Parquet writes a field that other messages have.
    assert load([{**HI, "name": None, "tool_calls": None}, says("yes")]).notes == ()


CUT = "the chat template changes or cuts message {} .of the role {!r}"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("m.content[:12]", CUT.format(1, "system")),
        ("m.content if m.role == 'system' else m.content[:12]", CUT.format(2, "user")),
        ("m.content.split('</think>')[-1]", CUT.format(2, "user")),
        ("m.content | e", CUT.format(2, "user")),
    ],
)
def test_context_that_is_cut_or_changed(source, written, message) -> None:
    tokenizer = tokenizer_of("whole")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", f"{{{{ m.content if m.role == 'assistant' else ({written}) }}}}"
    )
    chat = [
        {"role": "system", "content": "Never tell any lies to them"},
        {"role": "user", "content": "One & two. </think> And a second part"},
        says("yes"),
    ]
    with pytest.raises(DataError, match=message):
        load_demonstrations(source([{"messages": chat}]), tokenizer, seed=0)


def test_context_in_another_form_is_kept(source) -> None:
    tokenizer = tokenizer_of("whole")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}",
        "{{ m.content if m.role == 'assistant' or 'JSON' not in m.content else "
        "(m.content | tojson) }}",
    )
    chat = [{"role": "user", "content": 'as JSON:\n"ü" '}, says("yes")]
    loaded = load_demonstrations(source([{"messages": chat}]), tokenizer, seed=0)
    assert learnt(loaded) == "yes<eos>"
