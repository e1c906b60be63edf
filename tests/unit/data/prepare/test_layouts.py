"""Conversion of small files in the layouts of well-known data sets."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rlhf_ray.config.groups.prepare_sources import (
    BECOMES,
    COLUMNS,
    KINDS,
    LAYOUT_KINDS,
    STAGE_KINDS,
    read_source,
)
from rlhf_ray.data.prepare.conversion.contents import Removal, Sample
from rlhf_ray.data.prepare.conversion.convert import CONVERSIONS
from rlhf_ray.data.prepare.layouts import LAYOUTS
from rlhf_ray.data.prepare.reading import read_samples
from tests.unit.data.prepare.helpers import assistant, user, write_lines


def read(tmp_path, rows, **entry: Any) -> list[Any]:
    path = write_lines(tmp_path / "rows.jsonl", rows)
    config = read_source("s", {"path": str(path), **entry}, group="prepare.sources")
    items = read_samples(config)
    return [item.content.to_json() if isinstance(item, Sample) else item for item in items]


def preference(prompt, chosen, rejected, **values):
    empty = {"margin": None, "ranking": None, "ranking_pairs": None}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **empty, **values}


def test_tables_agree():
    assert set(LAYOUTS) == set(LAYOUT_KINDS)
    assert {(kind, other) for kind in BECOMES for other in BECOMES[kind]} == set(CONVERSIONS)
    assert set(KINDS) == set(BECOMES) == set(COLUMNS)
    assert set(STAGE_KINDS.values()) <= set(KINDS)


class TestHhRlhf:
    def test_several_turns(self, tmp_path):
        start = "\n\nHuman: Hi\n\nAssistant: Hello.\nHow can I help?"
        start += "\n\nHuman: A joke: now\n\nAssistant:"
        rows = [{"chosen": f"{start} One.\n\nTwo.", "rejected": f"{start} No "}]
        prompt = [*user("Hi"), assistant("Hello.\nHow can I help?"), *user("A joke: now")]
        expected = preference(prompt, "One.\n\nTwo.", "No")
        assert read(tmp_path, rows, layout="hh_rlhf") == [expected]

    @pytest.mark.parametrize(
        ("chosen", "rejected", "words"),
        [
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: b", "differ before"),
            ("\n\nHuman: a", "\n\nHuman: a", "ends with a message of the user"),
            (
                "nobody speaks",
                "\n\nHuman: a\n\nAssistant: b",
                "must begin with Human: or Assistant:; it begins with 'nobody speaks'",
            ),
            ("\n\nAssistant: b", "\n\nAssistant: c", "no prompt"),
        ],
    )
    def test_broken(self, tmp_path, chosen, rejected, words):
        (item,) = read(tmp_path, [{"chosen": chosen, "rejected": rejected}], layout="hh_rlhf")
        assert isinstance(item, Removal)
        assert item.reason == "broken conversation"
        assert words in item.detail


class TestUltraFeedback:
    def test_scores_make_the_margin(self, tmp_path):
        row = {
            "prompt": "Q",
            "prompt_id": "x",
            "chosen": [*user("Q"), assistant("good")],
            "rejected": [*user("Q"), assistant("bad")],
            "messages": [],
            "score_chosen": 8.5,
            "score_rejected": 6,
        }
        expected = preference(user("Q"), "good", "bad", margin=2.5)
        assert read(tmp_path, [row], layout="ultrafeedback") == [expected]

    @pytest.mark.parametrize(
        ("better", "worse", "words"),
        [
            (3, 5.0, "the score 3 and the rejected one 5, .*the worse one"),
            ("2.5", 2.5, "so that the chosen one is not better"),
        ],
    )
    @pytest.mark.parametrize(
        ("entry", "scores"),
        [
            ({"layout": "ultrafeedback"}, ("score_chosen", "score_rejected")),
            ({"kind": "preference"}, ("chosen_score", "rejected_score")),
        ],
    )
    def test_a_chosen_answer_without_the_higher_score_is_removed(
        self, tmp_path, entry, scores, better, worse, words
    ):
        row = {"chosen": [*user("Q"), assistant("a")], "rejected": [*user("Q"), assistant("b")]}
        row |= dict(zip(scores, (better, worse), strict=True))
        (item,) = read(tmp_path, [row], **entry)
        assert item.reason == "chosen not better"
        assert re.search(words, item.detail)

    def test_a_score_that_pandas_wrote_as_nan_is_missing(self, tmp_path):
        row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": float("nan")}
        rows = [{**row, "rejected_score": 2}, {**row, "margin": -1}]
        good, negative = read(tmp_path, rows, kind="preference")
        assert good["margin"] is None
        assert "the margin is -1" in negative.detail

    def test_answers_without_the_question(self, tmp_path):
        row = {"prompt": "Q", "chosen": [assistant("good")], "rejected": [assistant("bad")]}
        assert read(tmp_path, [row], layout="ultrafeedback") == [
            preference(user("Q"), "good", "bad")
        ]


def test_alpaca(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "whatever"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    ]
    assert read(tmp_path, rows, layout="alpaca") == [
        {"messages": [*user("Add.\n\n1 and 2"), assistant("3")]},
        {"messages": [*user("Say hi."), assistant("hi")]},
    ]


def test_sharegpt(tmp_path):
    def turns(*pairs):
        return [{"from": speaker, "value": text} for speaker, text in pairs]

    rows = [
        {"id": "a", "conversations": turns(("human", "q"), ("gpt", "a"), ("human", "unanswered"))},
        {"conversations": turns(("human", "q"), ("gpt", "a")), "system": "Be brief."},
        {"conversations": turns(("martian", "q"))},
        {"conversations": [{"from": "human", "value": 3}]},
    ]
    good, with_system, unknown, number = read(tmp_path, rows, layout="sharegpt")
    assert good == {"messages": [*user("q"), assistant("a")]}
    assert with_system["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (unknown.reason, number.reason) == ("broken conversation", "broken row")
    assert "'martian'" in unknown.detail
    assert "'value' of message 1" in number.detail


class TestGsm8k:
    ROWS = (
        {"question": "6*12?", "answer": "It is 6*12=<<6*12=72>>72.\n#### 1,072"},
        {"question": "?", "answer": "no result"},
    )

    def test_prompts_have_the_result(self, tmp_path):
        good, bad = read(tmp_path, self.ROWS, layout="gsm8k")
        assert good == {"prompt": user("6*12?"), "answer": "1072"}
        assert bad.reason == "broken row"

    @pytest.mark.parametrize(
        ("result", "answer"),
        [("1,234,567", "1234567"), ("$1,200", "$1200"), ("3,5", "3,5"), ("0,125", "0,125")],
    )
    def test_only_commas_of_thousands_go(self, tmp_path, result: str, answer: str) -> None:
        row = {"question": "q", "answer": f"a\n#### {result}"}
        (found,) = read(tmp_path, [row], layout="gsm8k")
        assert found["answer"] == answer

    def test_demonstrations_have_the_way(self, tmp_path):
        good, _ = read(tmp_path, self.ROWS, layout="gsm8k", kind="demonstration")
        assert good == {"messages": [*user("6*12?"), assistant("It is 6*12=72.\n#### 1072")]}


def message(number, parent, role, text, rank=None):
    return {
        "message_id": f"m{number}",
        "parent_id": parent and f"m{parent}",
        "role": role,
        "text": text,
        "rank": rank,
    }


# q1 has the answers a2 (rank 1) and a3 (rank 0); a3 is asked q4, which has a5, a6, a7.
FLAT = [
    message(1, None, "prompter", "q1"),
    message(2, 1, "assistant", "a2", 1),
    message(3, 1, "assistant", "a3", 0),
    message(4, 3, "prompter", "q4"),
    message(5, 4, "assistant", "a5", 2),
    message(6, 4, "assistant", "a6", 0),
    message(7, 4, "assistant", "a7", 1),
    message(8, None, "prompter", "q8"),
]


def nested(number):
    (row,) = [row for row in FLAT if row["message_id"] == f"m{number}"]
    children = [row for row in FLAT if row["parent_id"] == f"m{number}"]
    return {**row, "replies": [nested(int(child["message_id"][1:])) for child in children]}


@pytest.mark.parametrize("rows", [FLAT, [{"prompt": nested(1)}, {"prompt": nested(8)}]])
class TestOpenAssistant:
    def test_the_best_chat_of_a_tree(self, tmp_path, rows):
        chat, without_answer = read(tmp_path, rows, layout="openassistant")
        assert chat["messages"] == [*user("q1"), assistant("a3"), *user("q4"), assistant("a6")]
        assert without_answer.reason == "broken conversation"

    def test_rankings(self, tmp_path, rows):
        first, second = read(tmp_path, rows, layout="openassistant", kind="preference")
        assert first == preference(user("q1"), "a3", "a2")
        assert second == preference(
            [*user("q1"), assistant("a3"), *user("q4")],
            "a6",
            "a5",
            ranking=["a6", "a7", "a5"],
            ranking_pairs=[[0, 1], [0, 2], [1, 2]],
        )

    def test_prompts(self, tmp_path, rows):
        contents = read(tmp_path, rows, layout="openassistant", kind="prompt")
        assert [content["prompt"] for content in contents] == [user("q1"), user("q8")]


def test_openassistant_equal_ranks_and_lost_parents(tmp_path):
    rows = [
        message(1, None, "prompter", "q"),
        message(2, 1, "assistant", "a", 1),
        message(3, 1, "assistant", "b", 0),
        message(4, 1, "assistant", "c", 1),
        message(5, 99, "assistant", "lost", 1),
    ]
    lost, ranked = read(tmp_path, rows, layout="openassistant", kind="preference")
    assert lost.reason == "broken row"
    assert "'m99'" in lost.detail
    assert ranked["ranking"] == ["b", "a", "c"]
    assert ranked["ranking_pairs"] == [[0, 1], [0, 2]], "a and c are of one rank"
    assert ranked["margin"] is None


class TestColumns:
    """Without a layout."""

    def test_text(self, tmp_path):
        rows = [{"body": "one"}]
        assert read(tmp_path, rows, kind="text", columns={"text": "body"}) == [{"text": "one"}]

    def test_prompts(self, tmp_path):
        rows = [
            {"prompt": "Q", "answer": 7},
            {"prompt": user("Q")},
            {"prompt": "Q", "answer": None},
            {"prompt": 3.5},
            {"prompt": ["x"]},
        ]
        *good, broken = read(tmp_path, rows, kind="prompt")
        assert [(c["prompt"], c["answer"]) for c in good] == [
            (user("Q"), "7"),
            (user("Q"), None),
            (user("Q"), None),
            (user("3.5"), None),
        ]
        assert broken.reason == "broken row"

    def test_demonstrations(self, tmp_path):
        rows = [
            {"messages": [{"role": "human", "content": "q"}, {"role": "bot", "content": "a"}]},
            {"prompt": "q", "answer": "a"},
        ]
        expected = {"messages": [*user("q"), assistant("a")]}
        assert read(tmp_path, rows, kind="demonstration") == [expected, expected]

    def test_preferences(self, tmp_path):
        chats = {"chosen": [*user("q"), assistant("a")], "rejected": [*user("q"), assistant("b")]}
        rows = [
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"},
            {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 3, "rejected_score": 1},
            chats,
            {"prompt": "q", "ranking": ["a", "x", "b"]},
            {"prompt": "q", "answers": ["b", "a"], "scores": [1, "4.5"]},
            {"prompt": "q", "answers": ["b", "a", "c"], "scores": [1, 4, 1]},
            {"prompt": "q", "answers": ["b", "a"], "scores": [1, 1]},
            {"prompt": "q", "answers": ["b", "a"], "scores": [1]},
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"},
        ]
        *good, equal, count, word = read(tmp_path, rows, kind="preference")
        pairs = [[0, 1], [0, 2], [1, 2]]
        assert good == [
            preference(user("q"), "a", "b", margin=0.5),
            preference(user("q"), "a", "b", margin=2.0),
            preference(user("q"), "a", "b"),
            preference(user("q"), "a", "b", ranking=["a", "x", "b"], ranking_pairs=pairs),
            preference(user("q"), "a", "b", margin=3.5),
            preference(
                user("q"),
                "a",
                "c",
                margin=3.0,
                ranking=["a", "b", "c"],
                ranking_pairs=[[0, 1], [0, 2]],
            ),
        ]
        assert (equal.reason, count.reason) == ("chosen not better", "broken row")
        assert "'big'" in word.detail

    @pytest.mark.parametrize(
        ("kind", "row"),
        [
            ("prompt", {"prompt": str(user("q"))}),
            ("demonstration", {"prompt": "q", "answer": str([assistant("a")])}),
            ("preference", {"prompt": "q", "chosen": str([assistant("a")]), "rejected": "b"}),
            ("feedback", {"prompt": str(user("q")), "answer": "a", "good": True}),
        ],
    )
    def test_a_chat_that_was_written_as_text(self, tmp_path, kind, row):
        (item,) = read(tmp_path, [row], kind=kind)
        assert "is a chat that was written as text" in item.detail

    @pytest.mark.parametrize(
        ("value", "good"),
        [(True, True), (0, False), ("good", True), ("bad", False), ("1", True), ("False", False)],
    )
    def test_feedback(self, tmp_path, value, good):
        rows = [{"prompt": "q", "completion": "a", "label": value}]
        columns = {"answer": "completion", "good": "label"}
        assert read(tmp_path, rows, kind="feedback", columns=columns) == [
            {"prompt": user("q"), "answer": "a", "good": good}
        ]

    def test_feedback_that_is_neither(self, tmp_path):
        (item,) = read(tmp_path, [{"prompt": "q", "answer": "a", "good": 0.5}], kind="feedback")
        assert "must be true or false" in item.detail


def test_ids_and_tasks(tmp_path):
    rows = [{"prompt": "a", "key": 7, "topic": "sums"}, {"prompt": "b", "key": 8, "topic": "words"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    columns = {"id": "key", "task": "topic"}
    entry = {"path": str(path), "kind": "prompt", "columns": columns}
    named = list(read_samples(read_source("s", entry, group="g")))
    assert [(s.sample_id, s.task) for s in named] == [("s-7", "sums"), ("s-8", "words")]

    plain = {"path": str(path), "kind": "prompt", "task": "all"}
    before = list(read_samples(read_source("s", plain, group="g")))
    write_lines(path, [{"prompt": "new"}, *rows])
    after = list(read_samples(read_source("s", plain, group="g")))
    assert [s.sample_id for s in after[1:]] == [s.sample_id for s in before]
    assert {s.task for s in after} == {"all"}
