"""Masked tokens decode to exactly what the assistant says, in templates of many manners."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.examples import spans
from rlhf_ray.data.examples.labels import label_texts
from rlhf_ray.data.examples.spans import MarkedText, mark_answers, mark_plain
from rlhf_ray.data.rows import BadCell
from rlhf_ray.models.tiny.tokenizer import train_tokenizer
from rlhf_ray.records.supervised import LabelledTokens
from tests.unit.data.templates import tokenizer_of

NAMES = ("tiny", "chatml", "inst", "words", "marked", "marked_open", "thoughts")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sum of 1 and 2?"},
    {"role": "assistant", "content": "It is 3."},
    {"role": "user", "content": "And now? \n"},
    {"role": "assistant", "content": "é 漢 fine"},
]
# Any text but that of special tokens: those are what a template writes.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=12)
SAID = TEXTS.filter(lambda text: text.strip() != "")


def labelled(marked: MarkedText, tokenizer) -> LabelledTokens:
    (sample,) = label_texts([marked], tokenizer)
    assert isinstance(sample, LabelledTokens), sample
    return sample


def masked_text(sample: LabelledTokens, tokenizer) -> str:
    return tokenizer.decode(sample.token_ids[sample.loss_mask])


def chat_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
class TestTemplates:
    def test_every_answer(self, tokenizers, written, name: str) -> None:
        tokenizer = tokenizers[name]
        sample = labelled(mark_answers(CHAT, tokenizer, only_last=False), tokenizer)
        last = "((no))\né 漢 fine<eos>\n<pad>" if name == "thoughts" else written[name]("é 漢 fine")
        assert masked_text(sample, tokenizer) == written[name]("It is 3.") + last
        whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert tokenizer.decode(sample.token_ids) == whole

    def test_the_last_answer_alone(self, tokenizers, written, name: str) -> None:
        tokenizer = tokenizers[name]
        sample = labelled(mark_answers(CHAT, tokenizer, only_last=True), tokenizer)
        last = "((no))\né 漢 fine<eos>\n<pad>" if name == "thoughts" else written[name]("é 漢 fine")
        assert masked_text(sample, tokenizer) == last

    def test_the_prompt_has_the_tokens_that_it_has_in_a_rollout(self, tokenizers, name) -> None:
        tokenizer = tokenizers[name]
        sample = labelled(mark_answers(CHAT, tokenizer, only_last=True), tokenizer)
        prompt = tokenizer.apply_chat_template(
            CHAT[:-1], add_generation_prompt=True, return_dict=False
        )
        assert sample.token_ids[: len(prompt)].tolist() == prompt
        assert int(sample.loss_mask.nonzero()[0]) == len(prompt)

    # The fixtures hold no state that an example could change.
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(turns=st.lists(st.tuples(TEXTS, SAID), min_size=1, max_size=3))
    def test_any_texts(self, tokenizers, written, name: str, turns) -> None:
        tokenizer, chat = tokenizers[name], chat_of(turns)
        sample = labelled(mark_answers(chat, tokenizer, only_last=False), tokenizer)
        parts = [written[name](answer) for _, answer in turns]
        if name == "thoughts":
            parts[-1] = f"((no))\n{parts[-1]}\n<pad>"
        assert masked_text(sample, tokenizer) == "".join(parts)
        assert tokenizer.decode(sample.token_ids) == tokenizer.apply_chat_template(
            chat, tokenize=False
        )


class TestMarks:
    def test_they_are_those_of_transformers(self, tokenizers) -> None:
        tokenizer = tokenizers["marked"]
        sample = labelled(mark_answers(CHAT, tokenizer, only_last=False), tokenizer)
        theirs = tokenizer.apply_chat_template(
            CHAT, return_dict=True, return_assistant_tokens_mask=True
        )
        assert theirs["input_ids"] == sample.token_ids.tolist()
        # Theirs has the line break after <eos>, which a model that stops there never writes.
        breaks = [i for i, t in enumerate(theirs["input_ids"]) if tokenizer.decode(t) == "\n"]
        mask = [bool(m) and i not in breaks for i, m in enumerate(theirs["assistant_masks"])]
        assert mask == sample.loss_mask.tolist()

    def test_marks_in_pieces_are_one_answer(self) -> None:
        tokenizer = train_tokenizer(["a b"])
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
            "{% endgeneration %}{% generation %}<eos>{% endgeneration %}{% else %}"
            "<user>{{ m.content }}{% endif %}{% endfor %}"
        )
        marked = mark_answers(CHAT[1:], tokenizer, only_last=True)
        assert [marked.text[a:b] for a, b in marked.answers] == ["é 漢 fine<eos>"]

    def test_a_template_that_marks_nothing_here(self) -> None:
        tokenizer = train_tokenizer(["a b"])
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'model' %}{% generation %}"
            "{% endgeneration %}{% endif %}{% endfor %}"
        )
        with pytest.raises(BadCell, match="does not write the answer 'é 漢 fine' where it should"):
            mark_answers(CHAT, tokenizer, only_last=False)


class TestTemplatesThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("template", "message"),
        [
            # Thoughts are begun in the generation prompt alone.
            (
                "{% for m in messages %}<user>{{ m.content }}{% endfor %}"
                "{% if add_generation_prompt %}<user>((think)){% endif %}",
                r"renders the 2 messages before an answer otherwise .*'\(\(think\)\)' instead of "
                r".*\{% generation %\} \(model.chat_template\)",
            ),
            # An answer is in capitals where more follows.
            (
                "{% for m in messages %}<user>{{ m.content if loop.last or m.role != 'assistant' "
                "else m.content.upper() }}<eos>{% endfor %}"
                "{% if add_generation_prompt %}<user>{% endif %}",
                r"writes an answer otherwise where more follows: 'T IS 3\..*' instead of 't is 3",
            ),
            # Templates of models with images drop content that is plain text.
            (
                "{% for m in messages %}<user>{{ m.content if m.role != 'assistant' }}<eos>"
                "{% endfor %}{% if add_generation_prompt %}<user>{% endif %}",
                r"does not write the answer 'It is 3\.' where it should stand: there is '<eos>'",
            ),
        ],
    )
    def test_message(self, template: str, message: str) -> None:
        tokenizer = train_tokenizer(["a b"])
        tokenizer.chat_template = template
        with pytest.raises(BadCell, match=message):
            mark_answers(CHAT, tokenizer, only_last=False)


class TestTokenBorders:
    def test_answer_and_prompt_are_never_in_one_token(self, tokenizers) -> None:
        tokenizer = tokenizers["words"]
        text = "assistant: The answer"
        assert tokenizer.tokenize(text) != [
            *tokenizer.tokenize("assistant: "),
            *tokenizer.tokenize("The answer"),
        ], "the case is one where the border is inside a token"
        marked = MarkedText(text=text, answers=((11, len(text)),), adds_specials=False)
        sample = labelled(marked, tokenizer)
        assert masked_text(sample, tokenizer) == "The answer"
        context = sample.token_ids[~sample.loss_mask].tolist()
        assert context == tokenizer("assistant: ")["input_ids"]

    def test_tokenizer_that_puts_a_space_before_every_text(self) -> None:
        """Like SentencePiece: separate parts get a space that the whole text lacks."""
        tokenizer = _metaspace_tokenizer()
        marked = MarkedText(text="ab cd<eos>ab", answers=((2, 10),), adds_specials=False)
        sample = labelled(marked, tokenizer)
        assert sample.token_ids.tolist() == tokenizer("ab cd<eos>ab")["input_ids"]
        assert tokenizer.convert_ids_to_tokens(sample.token_ids[sample.loss_mask]) == [
            "\u2581",
            "c",
            "d",
            "<eos>",
        ]

    def test_no_borders_and_another_text_apart(self) -> None:
        tokenizer = _metaspace_tokenizer(merged="ab")
        marked = MarkedText(text="xabx", answers=((2, 4),), adds_specials=False)
        (problem,) = label_texts([marked], tokenizer)
        assert isinstance(problem, BadCell)
        assert "gives another text where they are apart" in str(problem)

    def test_beginning_of_plain_text(self) -> None:
        """A tokenizer that begins every text with a token does so once."""
        tokenizer = train_tokenizer(["a b"])
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<pad> $A", special_tokens=[("<pad>", 0)]
        )
        sample = labelled(mark_plain("q: ", "a b", tokenizer), tokenizer)
        assert tokenizer.decode(sample.token_ids) == "<pad>q: a b<eos>"
        assert masked_text(sample, tokenizer) == "a b<eos>"

    def test_the_first_token_is_never_predicted(self, tokenizer) -> None:
        sample = labelled(MarkedText(text="xyz", answers=((0, 3),), adds_specials=False), tokenizer)
        assert sample.loss_mask.tolist() == [False, True, True]

    def test_many_texts_keep_their_places(self, tokenizer) -> None:
        texts = [mark_plain(f"question {i} ", f"answer {i}", tokenizer) for i in range(5)]
        samples = label_texts(texts, tokenizer)
        assert [masked_text(sample, tokenizer) for sample in samples] == [
            f"answer {i}<eos>" for i in range(5)
        ]

    def test_no_end_of_text(self, tokenizers) -> None:
        tokenizer = train_tokenizer(["a b"])
        tokenizer.eos_token = None
        with pytest.raises(BadCell, match="has no end-of-text token"):
            mark_plain("q", "a", tokenizer)


def _metaspace_tokenizer(merged: str = "") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=100 if merged else 1,
        special_tokens=["<eos>"],
        initial_alphabet=["\u2581", *"abcdx"],
        limit_alphabet=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator([merged] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("name", ["whole", "marked"])
def test_a_chat_that_would_be_rendered_for_minutes_is_refused(name, monkeypatch) -> None:
    """A row of an agent: each of its answers is found by rendering the chat again."""
    tokenizer = tokenizer_of(name)
    turn = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]
    num_characters = len(mark_answers(turn * 20, tokenizer, only_last=False).text)
    # However short a message is, a template takes its time.
    size = num_characters + 40 * spans._CHARACTERS_OF_MESSAGE
    monkeypatch.setattr(spans, "_MAX_RENDERED", 2 * 20 * size)
    assert len(mark_answers(turn * 20, tokenizer, only_last=False).answers) == 20
    with pytest.raises(BadCell, match=r"the chat has 21 answers in 42 messages of .* split the"):
        mark_answers(turn * 21, tokenizer, only_last=False)
