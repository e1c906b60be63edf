"""Every reason for which a sample is removed, what is mended, and what stays."""

from __future__ import annotations

import random
import time
from contextlib import closing

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prepare import libraries
from rlhf_ray.data.prepare.cleaning.deduplication import NearDeduplication, band_rows
from rlhf_ray.data.prepare.cleaning.language import LanguageFilter
from rlhf_ray.data.prepare.cleaning.personal_data import PersonalDataFinder, masked
from rlhf_ray.data.prepare.conversion.contents import Sample, Text
from rlhf_ray.data.prepare.store import SampleStore
from rlhf_ray.data.rows import DataError
from tests.unit.data.prepare.helpers import Result, assistant, source, user, write_lines

pytestmark = pytest.mark.unit_slow

ENGLISH = "The river runs through the old town and meets the sea behind the harbour walls."
GERMAN = "Der Fluss fließt durch die alte Stadt und mündet hinter dem Hafen ins Meer."
WORDS = random.Random(0).sample(range(10_000), 300)


def text_of(*numbers):
    return " ".join(f"word{WORDS[number]}" for number in numbers)


def prepared_texts(tmp_path, texts, *overrides):
    path = write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    result = Result(tmp_path / "out", *source("t", path, kind="text"), *overrides)
    return result, {row["text"] for row in result.lines("text")}


def test_encoding(tmp_path):
    texts = ["schÃ¶n", "“curled” ｆｕｌｌ ﬁne &amp;", "a\x00b\r\nc", "plain"]
    result, kept = prepared_texts(tmp_path, texts)
    assert kept == {"schön", "“curled” ｆｕｌｌ ﬁne &amp;", "ab\nc", "plain"}
    assert result.report["sources"]["t"]["found"]["encoding mended"] == 2
    _, kept = prepared_texts(tmp_path, texts, "prepare.mend_encoding=false")
    assert "schÃ¶n" in kept


def test_empty_and_length(tmp_path):
    texts = ["", " \n", "a" * 5, "b" * 6, "c" * 9, "d" * 10]
    bounds = ["prepare.min_characters=6", "prepare.max_characters=9"]
    result, kept = prepared_texts(tmp_path, texts, *bounds)
    assert kept == {"b" * 6, "c" * 9}
    assert result.report["removed"] == {"empty": 2, "too short": 1, "too long": 1}
    assert result.reasons["too long"] == "10 characters; prepare.max_characters=9"


def test_the_longest_answer_counts(tmp_path):
    rows = [{"prompt": "q", "chosen": "a" * 7, "rejected": "b" * 8}]
    rows.append({"prompt": "r", "chosen": "a" * 8, "rejected": "b"})
    path = write_lines(tmp_path / "p.jsonl", rows)
    limit = "prepare.max_characters=10"
    assert len(Result(tmp_path / "out", *source("p", path, kind="preference"), limit).removed) == 0
    limit = "prepare.max_characters=9"
    rows.append({"prompt": "s", "chosen": "a", "rejected": "b"})
    write_lines(path, rows)
    assert len(Result(tmp_path / "out", *source("p", path, kind="preference"), limit).removed) == 2


def test_tokens(tmp_path):
    from rlhf_ray.testing.tiny import tiny_random

    # Its tokens are bytes.
    model = tiny_random(tmp_path / "model")
    overrides = [f"model.path={model}", "prepare.max_tokens=4"]
    result, kept = prepared_texts(tmp_path, ["abcd", "äöü", "abcde"], *overrides)
    assert kept == {"abcd"}
    assert result.report["removed"] == {"too long": 2}


def test_megabytes_are_too_long_without_being_tokenised(tmp_path):
    from rlhf_ray.testing.tiny import tiny_random

    model = tiny_random(tmp_path / "model")
    overrides = [f"model.path={model}", "prepare.max_tokens=64", "prepare.mend_encoding=false"]
    started = time.process_time()
    result, kept = prepared_texts(tmp_path, ["abcd", "word " * 2_000_000], *overrides)
    assert time.process_time() - started < 20
    assert kept == {"abcd"}
    assert result.reasons == {"too long": "10000000 characters; prepare.max_tokens=64"}


def test_rows_that_cannot_be_read_end_the_run_or_are_counted(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = ['{"text": "x \\ud83d"}', '{"text": ' + "9" * 5000 + "}", "[" * 100_000]
    lines += ['{"text": "a", "text": "b"}', '{"text": NaN}']
    path.write_text("\n".join(['{"text": "good"}', *lines]))
    keys = source("t", path, kind="text")
    with pytest.raises(DataError, match=r"prepare\.sources\.t: r\.jsonl line 2: .*surrogate"):
        Result(tmp_path / "out", *keys)
    result = Result(tmp_path / "out", *keys, "prepare.on_bad_row=skip")
    assert result.report["removed"] == {"broken row": 5}
    assert [line["text"] for line in result.lines("text")] == ["good"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([assistant("a"), *user("q")], "comes first"),
        ([*user("q"), *user("q"), assistant("a")], "comes after the user's"),
        ([*user("q"), assistant("a"), assistant("b")], "comes after the assistant's"),
        ([*user("q"), assistant("a"), *user("q")], "not with an answer"),
        ([*user("q"), {"role": "system", "content": "s"}, assistant("a")], "of the system"),
        ([{"role": "owner", "content": "q"}, assistant("a")], "'owner'"),
        ([], "is an empty chat"),
    ],
)
def test_broken_conversations(tmp_path, messages, words):
    rows = [{"messages": messages}, {"messages": [*user("q"), assistant("a")]}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    result = Result(tmp_path / "out", *source("d", path, kind="demonstration"))
    assert len(result.lines("demonstration")) == 1
    assert words in result.reasons["broken conversation"]


def test_whole_conversations(tmp_path):
    system, tool = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
    chats = [
        [system, *user("q"), assistant("a")],
        [*user("q"), assistant("call"), tool, assistant("a"), *user("q"), assistant("b")],
    ]
    path = write_lines(tmp_path / "d.jsonl", [{"messages": chat} for chat in chats])
    assert Result(tmp_path / "out", *source("d", path, kind="demonstration")).removed == []


def test_prompts_end_with_a_question(tmp_path):
    rows = [{"prompt": [*user("q"), assistant("a")]}, {"prompt": "q"}]
    path = write_lines(tmp_path / "p.jsonl", rows)
    result = Result(tmp_path / "out", *source("p", path, kind="prompt"))
    assert "nothing to answer" in result.reasons["broken conversation"]


def test_identical_answers(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "the same", "rejected": "the  same\n"},
        {"prompt": "q", "ranking": ["a", "b", "a"]},
        {"prompt": "q", "chosen": "a", "rejected": ""},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    path = write_lines(tmp_path / "p.jsonl", rows)
    result = Result(tmp_path / "out", *source("p", path, kind="preference"))
    assert result.report["removed"] == {"identical answers": 2, "empty": 1}
    assert [row["where"] for row in result.removed] == [f"p.jsonl line {n}" for n in (1, 2, 3)]


class TestLanguage:
    def test_others_are_removed(self, tmp_path):
        numbers = "12 + 34 = 46; 99 * 88 = 8712; {x: 1, y: [2, 3, 4, 5]}"
        result, kept = prepared_texts(
            tmp_path, [ENGLISH, GERMAN, "Guten Tag", numbers], "prepare.languages=[en]"
        )
        assert kept == {ENGLISH, "Guten Tag", numbers}, "short texts and numbers tell nothing"
        assert result.reasons["wrong language"].startswith("de, ")

    def test_several_may_stay(self, tmp_path):
        _, kept = prepared_texts(tmp_path, [ENGLISH, GERMAN], "prepare.languages=[en,de]")
        assert kept == {ENGLISH, GERMAN}

    def test_unknown(self):
        with pytest.raises(RequestError, match="'english', which is not known"):
            LanguageFilter(["english"], confidence=0.8, min_characters=1)


PERSONAL = [
    ("write to Jo.Doe+x@mail.example.co.uk.", None, ["mail address"]),
    ("no@mail, @handle, a@b", None, []),
    ("call +49 30 123456 now", None, ["telephone number"]),
    ("call (650) 253-0000 now", "US", ["telephone number"]),
    ("call (650) 253-0000 now", None, []),
    ("card 4111 1111 1111 1111.", None, ["card number"]),
    ("card 4111-1111-1111-1111", "US", ["card number"]),
    ("378282246310005", None, ["card number"]),
    ("card 4111 1111 1111 1112", None, []),
    ("0000 0000 0000 0000", None, []),
    ("1234567890123456789012345", None, []),
    ("3.4111111111111111 and 12,345,678", "US", []),
    ("a@b.org, b@c.org", None, ["mail address", "mail address"]),
]


class TestPersonalData:
    @pytest.mark.parametrize(("text", "region", "kinds"), PERSONAL, ids=[p[0] for p in PERSONAL])
    def test_found(self, text, region, kinds):
        assert [finding.kind for finding in PersonalDataFinder(region).find(text)] == kinds

    def test_masked(self):
        text = "Jo (jo@x.org, +49 30 123456) paid with 4111 1111 1111 1111!"
        found = PersonalDataFinder(None).find(text)
        expected = "Jo (<MAIL_ADDRESS>, <TELEPHONE_NUMBER>) paid with <CARD_NUMBER>!"
        assert masked(text, found) == expected
        assert PersonalDataFinder(None).find(expected) == []

    def test_unknown_region(self):
        with pytest.raises(RequestError, match="'us'; it must be the ISO 3166 code"):
            PersonalDataFinder("us")

    @pytest.mark.parametrize("action", ["off", "report", "mask", "remove"])
    def test_report_mask_and_remove(self, tmp_path, action):
        rows = [{"prompt": "mail me", "answer": "at jo@x.org or jo@y.org"}, {"prompt": "clean"}]
        path = write_lines(tmp_path / "p.jsonl", rows)
        result = Result(
            tmp_path / "out",
            *source("p", path, kind="prompt"),
            f"prepare.personal_data={action}",
        )
        answers = {row["prompt"][0]["content"]: row["answer"] for row in result.lines("prompt")}
        found = result.report["sources"]["p"]["found"]
        assert found.get("mail address found", 0) == (0 if action == "off" else 2)
        assert found.get("samples masked", 0) == (1 if action == "mask" else 0)
        if action == "remove":
            assert result.reasons == {"personal data": "mail address"}
            assert "mail me" not in answers
        else:
            same, hidden = rows[0]["answer"], "at <MAIL_ADDRESS> or <MAIL_ADDRESS>"
            assert answers["mail me"] == (hidden if action == "mask" else same)


class TestLeaks:
    EVALUATION = (
        {"question": f"Schön: {text_of(*range(14))}?", "answer": "#### 1"},
        {"question": "What is 2+2?", "answer": "#### 4"},
    )

    def run(self, tmp_path, texts, *overrides):
        exam = write_lines(tmp_path / "exam.jsonl", self.EVALUATION)
        keys = source("exam", exam, layout="gsm8k")
        keys = [key.replace("prepare.sources", "prepare.evaluation_sets") for key in keys]
        return prepared_texts(tmp_path, texts, *keys, *overrides)

    def test_samples_that_contain_a_prompt(self, tmp_path):
        thirteen, twelve = text_of(*range(1, 14)), text_of(*range(2, 14))
        clean = [f"before {twelve} after", "Sure: what is 2+2? It is 4", "What is 2+3?"]
        leaks = [f"before {thirteen.upper()}, after", "what is 2 + 2"]
        result, kept = self.run(tmp_path, [*leaks, *clean])
        assert kept == set(clean)
        assert result.report["removed"] == {"evaluation leak": 2}
        assert result.removed[0]["detail"] == "13 words in a row of exam, exam.jsonl line 1"
        assert result.removed[1]["detail"] == "a text is a prompt of exam, exam.jsonl line 2"

    def test_fewer_words(self, tmp_path):
        _, kept = self.run(tmp_path, [text_of(3, 4, 5, 6), "x"], "prepare.leak_words=4")
        assert kept == {"x"}


class TestDuplicates:
    # 100 words have 98 groups of three; one word in the middle is in three of them.
    BASE = tuple(range(100))
    ONE_WORD = (*range(50), 250, *range(51, 100))  # 95 of 101 groups in common: 0.94
    HALF = (*range(50), *range(200, 250))  # 48 of 148: 0.32

    def texts(self):
        return [text_of(*numbers) for numbers in (self.BASE, self.ONE_WORD, self.HALF)]

    @pytest.mark.parametrize(
        ("duplicates", "removed"),
        [
            ("keep", {}),
            ("exact", {"duplicate": 1}),
            ("near", {"duplicate": 1, "near duplicate": 1}),
        ],
    )
    def test_removed(self, tmp_path, duplicates, removed):
        base, one_word, half = self.texts()
        texts = [base, one_word, half, base]
        result, kept = prepared_texts(tmp_path, texts, f"prepare.duplicates={duplicates}")
        assert result.report["removed"] == removed
        assert len(result.lines("text")) == 4 - sum(removed.values())
        assert {base, half} <= kept

    def test_the_first_one_stays_and_is_named(self, tmp_path):
        result, _ = prepared_texts(tmp_path, self.texts(), "prepare.duplicates=near")
        ids = {row["text"]: row["id"] for row in result.lines("text")}
        words = f"of {ids[self.texts()[0]]}, similarity 0.9"
        assert result.reasons["near duplicate"].startswith(words)

    def test_kept_ones_have_ids_of_their_own(self, tmp_path):
        result, _ = prepared_texts(tmp_path, ["a", "a", "a"], "prepare.duplicates=keep")
        ids = sorted(row["id"] for row in result.lines("text"))
        assert ids == [ids[0], f"{ids[0]}~2", f"{ids[0]}~3"]

    def test_texts_without_spaces_have_words(self, tmp_path):
        first, other = "今日はとてもいい天気ですね" * 3, "明日の会議は何時から始まりますか" * 3
        result, _ = prepared_texts(
            tmp_path, [first, first + "よ", other], "prepare.duplicates=near"
        )
        assert result.report["removed"] == {"near duplicate": 1}

    @pytest.mark.parametrize(("similarity", "rows"), [(0.5, 3), (0.8, 7), (1.0, 128)])
    def test_bands(self, similarity, rows):
        assert band_rows(similarity) == rows

    def test_against_all_pairs(self, tmp_path):
        """The index finds what comparing every pair by its true similarity finds."""
        random_ = random.Random(1)
        texts = []
        for _ in range(60):
            words = random_.choices(range(300), k=80)
            texts.append(words)
            copy = list(words)
            for _ in range(random_.choice([0, 1, 2, 12, 20])):
                copy[random_.randrange(80)] = random_.randrange(300)
            texts.append(copy)
        groups = [{tuple(words[i : i + 3]) for i in range(78)} for words in texts]
        with closing(SampleStore(tmp_path / "x.sqlite", seed=0)) as store:
            step = NearDeduplication(store, dataset="text", similarity=0.7)
            removed = [
                not isinstance(step.apply(_sample(number, text_of(*words))), Sample)
                for number, words in enumerate(texts)
            ]
        for number in range(1, len(texts), 2):
            a, b = groups[number - 1], groups[number]
            similarity = len(a & b) / len(a | b)
            if abs(similarity - 0.7) > 0.1:
                assert removed[number] == (similarity > 0.7), similarity
        assert not any(removed[::2])


def _sample(number, text):
    return Sample(sample_id=str(number), task="t", source="t", where="", content=Text(text=text))


def test_a_missing_library_is_named(monkeypatch):
    with pytest.raises(RequestError, match=r"prepare.x needs no_such_thing.*launch/setup.sh data"):
        libraries.library("no_such_thing.part", key="prepare.x")


def test_texts_about_encoding_stay(tmp_path):
    texts = ["Why is schÃ¶n shown for schön?", "Only schÃ¶n"]
    result, kept = prepared_texts(tmp_path, texts)
    assert kept == {texts[0], "Only schön"}
    found = result.report["sources"]["t"]["found"]
    assert found["encoding mended"] == 1
    assert found["encoding not mended, because the text has both forms"] == 1


def test_answers_that_differ_in_indentation(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "if x:\n    y()", "rejected": "if x:\ny()"},
        {"prompt": "r", "chosen": " a  b\n", "rejected": "a b"},
    ]
    path = write_lines(tmp_path / "p.jsonl", rows)
    result = Result(tmp_path / "out", *source("p", path, kind="preference"))
    assert [row["chosen"] for row in result.lines("preference")] == [rows[0]["chosen"]]
    assert result.report["removed"] == {"identical answers": 1}


def test_near_duplicates_with_another_label(tmp_path):
    row = {"prompt": text_of(*range(40)), "answer": "no"}
    labels = (True, False, True)
    rows = [
        {**row, "good": good, "prompt": row["prompt"] + "!" * n} for n, good in enumerate(labels)
    ]
    path = write_lines(tmp_path / "f.jsonl", rows)
    near = "prepare.duplicates=near"
    result = Result(tmp_path / "out", *source("f", path, kind="feedback"), near)
    assert sorted(row["good"] for row in result.lines("feedback")) == [False, True]


def test_a_prompt_that_is_not_that_of_the_chats(tmp_path):
    def row(prompt, asked):
        chats = {name: [*user(asked), assistant(name)] for name in ("chosen", "rejected")}
        return {"prompt": prompt, **chats}

    rows = [row("asked", "another"), row("User: one?", "one?"), row(user("two"), "two")]
    path = write_lines(tmp_path / "p.jsonl", rows)
    result = Result(tmp_path / "out", *source("p", path, kind="preference"))
    kept = sorted(row["prompt"][0]["content"] for row in result.lines("preference"))
    assert kept == ["one?", "two"]
    assert "column 'prompt' is 'asked'" in result.reasons["broken conversation"]


def test_an_input_of_zero(tmp_path):
    rows = [{"instruction": "Double it", "input": given, "output": "x"} for given in (0, "", None)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    result = Result(tmp_path / "out", *source("a", path, layout="alpaca"))
    asked = [row["messages"][0]["content"] for row in result.lines("demonstration")]
    assert sorted(asked) == ["Double it", "Double it\n\n0"]
