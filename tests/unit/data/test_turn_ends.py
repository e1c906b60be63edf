"""Tokens that end turns: of the template, and of the examples that are learnt."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples import load_demonstrations, load_rankings, load_texts
from rlhf_ray.data.tokens.turn_ends import engine_ends, template_end
from rlhf_ray.testing.turns import CHATML, TEXT_END, TURN_BEGIN, TURN_END, two_ends_tokenizer

# Thoughts are written like a turn, and end with a token that also ends the turns before the last.
THOUGHTS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ 'think<|end|><|im_start|>say' if loop.last }}{{ m.content }}"
    "{{ '<|im_end|>' if loop.last else '<|end|>' }}{% endgeneration %}{% else %}"
    "<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The end of the text follows the end of the last turn.
BOTH = CHATML.replace(
    "{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHAT = [user("hi"), assistant("hello"), user("and?"), assistant("the sum")]


@pytest.fixture
def source(tmp_path):
    def call(rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ExamplesConfig(path=str(path), **{"eval_share": 0.0, **settings})

    return call


def learnt(found) -> dict[str, int]:
    return {end.text: end.count for end in found.turn_ends}


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "end"),
        [
            (CHATML, TURN_END),
            (BOTH, TEXT_END),
            (THOUGHTS, TURN_END),
            # It begins the next turn whether or not it is asked to: the first token is the end.
            (CHATML + "<|im_start|>assistant\n", TURN_END),
            ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", None),
            ("{{ raise_exception('a system message is needed') }}", None),
            ("{% broken", None),
            ("{% for m in messages %}{{ m.role }}{% endfor %}", None),
            (None, None),
        ],
    )
    def test_its_end(self, template, end) -> None:
        specials = (TEXT_END, TURN_BEGIN, TURN_END, "<|end|>")
        tokenizer = two_ends_tokenizer(template=template, specials=specials)
        expected = None if end is None else tokenizer.convert_tokens_to_ids(end)
        assert template_end(tokenizer) == expected

    def test_a_token_that_is_not_marked_as_special(self) -> None:
        tokenizer = two_ends_tokenizer(specials=(TEXT_END,), others=(TURN_BEGIN, TURN_END))
        assert template_end(tokenizer) == tokenizer.convert_tokens_to_ids(TURN_END)

    def test_engines_stop_at_both_ends(self) -> None:
        tokenizer = two_ends_tokenizer()
        assert tokenizer.convert_ids_to_tokens(list(engine_ends(tokenizer))) == [TEXT_END, TURN_END]


class TestLearntEnds:
    def test_the_end_of_every_answer(self, source) -> None:
        found = load_demonstrations(source([{"messages": CHAT}] * 3), two_ends_tokenizer(), seed=0)
        assert learnt(found) == {TURN_END: 6}
        assert found.num_unended == 0

    def test_plain_texts(self, source) -> None:
        rows = source([{"prompt": "hi", "answer": "hello"}])
        found = load_demonstrations(rows, two_ends_tokenizer(template=None), seed=0)
        assert learnt(found) == {TEXT_END: 1}

    def test_both_tokens_where_the_template_writes_both(self, source) -> None:
        found = load_demonstrations(
            source([{"messages": CHAT}]), two_ends_tokenizer(template=BOTH), seed=0
        )
        assert learnt(found) == {TURN_END: 1, TEXT_END: 1}

    def test_not_a_token_after_which_answers_go_on(self, source) -> None:
        specials = (TEXT_END, TURN_BEGIN, TURN_END, "<|end|>")
        tokenizer = two_ends_tokenizer(template=THOUGHTS, specials=specials)
        found = load_demonstrations(source([{"messages": CHAT}] * 5), tokenizer, seed=0)
        assert learnt(found) == {TURN_END: 5}

    def test_a_quoted_token_does_not_hide_the_end(self, source) -> None:
        rows = [{"messages": CHAT}] * 200
        rows.append({"messages": [user("quote"), assistant(f"it is {TURN_END} and more")]})
        assert learnt(load_demonstrations(source(rows), two_ends_tokenizer(), seed=0)) == {
            TURN_END: 401
        }

    def test_a_token_that_is_not_marked_as_special(self, source) -> None:
        tokenizer = two_ends_tokenizer(specials=(TEXT_END,), others=(TURN_BEGIN, TURN_END))
        found = load_demonstrations(source([{"messages": CHAT}]), tokenizer, seed=0)
        assert learnt(found) == {TURN_END: 2}
        assert found.num_unended == 0
        (sample,) = found.train
        # The line break behind the token belongs to the template.
        said = tokenizer.decode(sample.token_ids[sample.loss_mask])
        assert said == f"hello{TURN_END}the sum{TURN_END}"

    def test_an_end_that_is_cut_off_is_not_learnt(self, source) -> None:
        rows = source([{"messages": CHAT}], max_tokens=30)
        found = load_demonstrations(rows, two_ends_tokenizer(), seed=0)
        assert found.num_cut == 1
        assert learnt(found) == {TURN_END: 1}

    def test_held_out_rows_teach_nothing(self, source, tmp_path) -> None:
        other = tmp_path / "held_out.jsonl"
        other.write_text(json.dumps({"prompt": "q", "answer": "a"}) + "\n")
        rows = source([{"messages": CHAT}], eval_path=str(other), eval_share=None)
        assert learnt(load_demonstrations(rows, two_ends_tokenizer(), seed=0)) == {TURN_END: 2}

    def test_rankings(self, source) -> None:
        rows = source([{"prompt": "q", "chosen": "a", "rejected": "b"}])
        assert learnt(load_rankings(rows, two_ends_tokenizer(), seed=0)) == {TURN_END: 2}

    def test_raw_texts_teach_the_end_of_the_text_alone(self, source) -> None:
        rows = source([{"text": f"hello {TURN_END}"}, {"text": "sum"}])
        assert learnt(load_texts(rows, two_ends_tokenizer(), seed=0)) == {TEXT_END: 2}
