"""Blending, splits over stages and evaluation, and tasks."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.examples import load_rankings
from rlhf_ray.data.prepare.blend import blend
from rlhf_ray.data.prompts.load import load_prompts
from tests.unit.data.prepare.helpers import Result, assistant, source, user, write_lines

pytestmark = pytest.mark.unit_slow

SPLIT = "prepare.split=[2,4,4]"
EVAL = "prepare.eval_fraction=0.2"


def prompts(tmp_path, name, count):
    rows = [{"prompt": f"{name} {number}"} for number in range(count)]
    return write_lines(tmp_path / f"{name}.jsonl", rows)


def pairs(count, start=0):
    return [
        {"prompt": f"question {number}", "chosen": "yes", "rejected": "no"}
        for number in range(start, start + count)
    ]


def questions(lines):
    return {
        (line["messages"] if "messages" in line else line["prompt"])[0]["content"] for line in lines
    }


def by_source(lines):
    return Counter(line["source"] for line in lines)


class TestBlendOfCounts:
    """Draws alone, worked out by hand."""

    def draws(self, available, *, total=None, max_epochs=1.0, **weights):
        sources = [
            PreparedSource(key="k", name=name, path="p", kind="text", **settings)
            for name, settings in weights.items()
        ]
        drawn = blend(available, sources, total=total, max_epochs=max_epochs)
        return {name: (draw.wanted, draw.drawn) for name, draw in drawn.items()}

    def test_without_weights_everything(self):
        drawn = self.draws({"a": 10, "b": 3}, a={}, b={"max_epochs": 2.5}, c={})
        assert drawn == {"a": (10, 10), "b": (7, 7)}

    def test_the_first_exhausted_source_ends_the_blend(self):
        # b gives 20 at most, for a quarter of the blend: 80 in all.
        drawn = self.draws({"a": 100, "b": 20}, a={"weight": 3}, b={"weight": 1})
        assert drawn == {"a": (60, 60), "b": (20, 20)}

    def test_epochs_let_it_go_on(self):
        drawn = self.draws({"a": 100, "b": 20}, a={"weight": 3}, b={"weight": 1, "max_epochs": 1.5})
        assert drawn == {"a": (90, 90), "b": (30, 30)}

    def test_total_by_largest_remainder(self):
        thirds = {"weight": 1}
        drawn = self.draws({"a": 9, "b": 9, "c": 9}, total=10, a=thirds, b=thirds, c=thirds)
        assert drawn == {"a": (4, 4), "b": (3, 3), "c": (3, 3)}

    def test_too_little_for_the_total_is_not_made_up_for(self):
        drawn = self.draws({"a": 100, "b": 20}, total=100, a={"weight": 1}, b={"weight": 1})
        assert drawn == {"a": (50, 50), "b": (50, 20)}

    def test_limits(self):
        drawn = self.draws({"a": 100, "b": 9}, a={"max_samples": 7}, b={"max_samples": 70})
        assert drawn == {"a": (7, 7), "b": (9, 9)}


class TestBlend:
    def run(self, tmp_path, *overrides, **settings):
        sources = [
            key
            for name, count in (("a", 30), ("b", 12))
            for key in source(
                name, prompts(tmp_path, name, count), kind="prompt", **settings.get(name, {})
            )
        ]
        return Result(tmp_path / "out", *sources, *overrides)

    def test_weights_and_epochs(self, tmp_path):
        result = self.run(
            tmp_path,
            "prepare.total_samples=40",
            "prepare.max_epochs=3",
            a={"weight": 1},
            b={"weight": 3},
        )
        lines = result.lines("prompt")
        assert by_source(lines) == {"a": 10, "b": 30}
        # 30 of 12 are two whole epochs and a half: 6 come three times, 6 twice.
        times = Counter(line["prompt"][0]["content"] for line in lines if line["source"] == "b")
        assert Counter(times.values()) == {3: 6, 2: 6}
        assert len({line["id"] for line in lines}) == len(lines), (
            "repetitions have ids of their own"
        )
        assert sum("#2" in line["id"] for line in lines) == 12
        told = result.report["datasets"]["prompt"]["sources"]
        assert told["b"] == {"available": 12, "wanted": 30, "train": 30, "epochs": 2.5, "eval": 0}
        assert told["a"]["epochs"] == pytest.approx(1 / 3, abs=1e-4)

    def test_sources_are_mixed_by_the_seed(self, tmp_path):
        first = [line["source"] for line in self.run(tmp_path).lines("prompt")]
        again = [line["source"] for line in self.run(tmp_path).lines("prompt")]
        other = [line["source"] for line in self.run(tmp_path, "seed=1").lines("prompt")]
        assert first == again
        assert first != other
        # 12 of 42 in a random order: all in one half has a chance of one in 5,000.
        assert 0 < first[:21].count("b") < 12

    def test_the_order_of_the_sources(self, tmp_path):
        lines = self.run(tmp_path, "prepare.shuffle=false", b={"max_epochs": 2}).lines("prompt")
        expected = [f"a {number}" for number in range(30)]
        expected += [f"b {number}" for number in range(12)] * 2
        assert [line["prompt"][0]["content"] for line in lines] == expected

    def test_rows_read(self, tmp_path):
        lines = self.run(tmp_path, a={"limit": 2}, b={"max_samples": 3}).lines("prompt")
        assert by_source(lines) == {"a": 2, "b": 3}


class TestEvaluationPart:
    def run(self, tmp_path, rows, *overrides):
        path = write_lines(tmp_path / "p.jsonl", rows)
        keys = source("p", path, kind="preference")
        return Result(tmp_path / "out", *keys, EVAL, *overrides)

    def test_about_its_share_and_nothing_twice(self, tmp_path):
        result = self.run(tmp_path, pairs(500))
        train, held = (questions(result.lines("preference", part)) for part in ("train", "eval"))
        assert train | held == questions(pairs_as_lines(500))
        assert not train & held
        assert len(held) == pytest.approx(100, abs=4 * 9)  # Four standard deviations.

    def test_stable_when_rows_come_and_go(self, tmp_path):
        before = questions(self.run(tmp_path, pairs(200)).lines("preference", "eval"))
        more = self.run(tmp_path, [*pairs(100, start=1000), *reversed(pairs(200))], "seed=7")
        after = questions(more.lines("preference", "eval"))
        assert before == {text for text in after if int(text.split()[1]) < 1000}

    def test_answers_to_one_question_stay_together(self, tmp_path):
        rows = [
            {"prompt": f"Question  {number % 50}".upper(), "chosen": f"{number}", "rejected": "no"}
            for number in range(200)
        ]
        result = self.run(tmp_path, rows)
        train, held = (questions(result.lines("preference", part)) for part in ("train", "eval"))
        assert held
        assert not train & held

    def test_another_seed_splits_another_way(self, tmp_path):
        one = questions(self.run(tmp_path, pairs(100)).lines("preference", "eval"))
        two = questions(
            self.run(tmp_path, pairs(100), "prepare.split_seed=1").lines("preference", "eval")
        )
        assert one != two


def pairs_as_lines(count):
    return [{"prompt": user(row["prompt"])} for row in pairs(count)]


class TestStages:
    """DeepSpeed-Chat's division of one set over the three stages."""

    def run(self, tmp_path, *overrides, rows=None):
        path = write_lines(tmp_path / "p.jsonl", pairs(500) if rows is None else rows)
        return Result(tmp_path / "out", *source("p", path, kind="preference"), SPLIT, *overrides)

    def test_shares_without_overlap(self, tmp_path):
        result = self.run(tmp_path, EVAL)
        sets = {
            (stage, part): questions(result.lines(stage, part))
            for stage in ("sft", "reward_model", "rl")
            for part in ("train", "eval")
        }
        every = [question for found in sets.values() for question in found]
        assert len(every) == len(set(every)) == 500
        sizes = [
            len(sets[s, "train"]) + len(sets[s, "eval"]) for s in ("sft", "reward_model", "rl")
        ]
        assert sizes == pytest.approx([100, 200, 200], abs=4 * 11)

    def test_each_stage_gets_its_kind(self, tmp_path):
        result = self.run(tmp_path)
        (sft, *_), (reward, *_), (rl, *_) = map(result.lines, ("sft", "reward_model", "rl"))
        assert sft["messages"][1] == assistant("yes")
        assert (reward["chosen"], reward["rejected"]) == ("yes", "no")
        assert rl.keys() == {"id", "task", "source", "prompt", "answer"}
        kinds = {name: set_["kind"] for name, set_ in result.report["datasets"].items()}
        assert kinds == {"sft": "demonstration", "reward_model": "preference", "rl": "prompt"}

    def test_a_source_with_its_own_shares(self, tmp_path):
        path = write_lines(
            tmp_path / "d.jsonl", [{"prompt": f"d{n}", "answer": "a"} for n in range(9)]
        )
        keys = source("d", path, kind="demonstration", split=[1, 0, 0])
        result = self.run(tmp_path, *keys)
        assert by_source(result.lines("sft"))["d"] == 9
        assert {line["source"] for line in result.lines("reward_model")} == {"p"}

    def test_two_answers_to_a_question_are_one_prompt(self, tmp_path):
        rows = [*pairs(50), *[{**row, "chosen": "surely"} for row in pairs(50)]]
        result = self.run(tmp_path, rows=rows)
        lines = result.lines("rl")
        assert len(lines) == len(questions(lines))
        assert result.report["removed"] == {"duplicate": len(lines)}


def test_demonstrations_from_feedback(tmp_path):
    rows = [{"prompt": f"q{n}", "answer": "a", "good": n != 1} for n in range(3)]
    path = write_lines(tmp_path / "f.jsonl", rows)
    result = Result(tmp_path / "out", *source("f", path, kind="feedback"), "prepare.split=[1,0,0]")
    assert questions(result.lines("sft")) == {"q0", "q2"}
    assert result.reasons == {
        "bad answer": "feedback on a bad answer cannot become a demonstration"
    }


def test_one_preference_is_two_feedbacks(tmp_path):
    chats = [
        {
            "chosen": [*user(f"q{n}"), assistant("good")],
            "rejected": [*user(f"q{n}"), assistant("bad")],
        }
        for n in range(3)
    ]
    path = write_lines(tmp_path / "u.jsonl", chats)
    result = Result(tmp_path / "out", *source("u", path, layout="ultrafeedback", kind="feedback"))
    lines = result.lines("feedback")
    assert Counter((line["answer"], line["good"]) for line in lines) == {
        ("good", True): 3,
        ("bad", False): 3,
    }
    assert len({line["id"] for line in lines}) == 6
    told = result.report["sources"]["u"]
    assert (told["read"], told["made"], told["kept"]) == (3, 3, 6)


def test_a_ranking_with_ties_becomes_pairs(tmp_path):
    rows = [
        {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 4, 1]},
        {"prompt": "r", "answers": ["a", "b", "c"], "scores": [1, 4, 2]},
    ]
    keys = source("r", write_lines(tmp_path / "r.jsonl", rows), kind="preference")
    result = Result(tmp_path / "out", *keys)
    lines = result.lines("preference")
    assert sorted((str(line["ranking"]), line["chosen"], line["rejected"]) for line in lines) == [
        ("None", "b", "a"),
        ("None", "b", "c"),
        ("['b', 'c', 'a']", "b", "a"),
    ]
    told = result.report["sources"]["r"]
    assert (told["read"], told["made"], told["kept"]) == (2, 1, 3)


def test_the_next_stage_reads_every_pair_that_is_written(tmp_path, tokenizer):
    """Pairs in the wrong order and ties are removed and counted, by every route."""
    rows = [
        {
            "chosen": [*user(f"q{n}"), assistant("a")],
            "rejected": [*user(f"q{n}"), assistant("b")],
            "score_chosen": score,
            "score_rejected": 5,
        }
        for n, score in enumerate((7, 3, 5, None))
    ]
    path = write_lines(tmp_path / "u.jsonl", rows)
    for kind in ("preference", "demonstration", "feedback"):
        result = Result(tmp_path / kind, *source("u", path, layout="ultrafeedback", kind=kind))
        assert result.report["removed"] == {"chosen not better": 2}
        assert questions(result.lines(kind)) == {"q0", "q3"}
    config = ExamplesConfig(path=str(tmp_path / "preference/preference/train.jsonl"), eval_share=0)
    assert len(load_rankings(config, tokenizer, seed=0).train) == 2


def test_rankings_as_pairs(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", [{"prompt": "q", "ranking": ["a", "b", "c"]}])
    keys = source("r", path, kind="preference")
    (whole,) = Result(tmp_path / "lists", *keys).lines("preference")
    assert whole["ranking"] == ["a", "b", "c"]
    lines = Result(tmp_path / "pairs", *keys, "prepare.rankings=pairs").lines("preference")
    assert sorted((line["chosen"], line["rejected"]) for line in lines) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert {line["ranking"] for line in lines} == {None}


def test_every_kind_has_its_own_set(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("One line\nand another.\n\n\nA second paragraph.\n", encoding="utf-8")
    path = write_lines(
        tmp_path / "p.jsonl",
        [{"prompt": "q", "topic": "sums"}, *[{"prompt": "r", "topic": "words"}]],
    )
    result = Result(
        tmp_path / "out",
        *source("t", text),
        *source("p", path, kind="prompt", columns={"task": "topic"}),
    )
    assert {line["text"] for line in result.lines("text")} == {
        "One line\nand another.",
        "A second paragraph.",
    }
    assert {line["task"] for line in result.lines("text")} == {"t"}
    assert {line["task"] for line in result.lines("prompt")} == {"sums", "words"}
    assert result.report["datasets"]["prompt"]["tasks"] == {"sums": 1, "words": 1}


@pytest.mark.parametrize(("unit", "count"), [("paragraph", 2), ("line", 3), ("file", 1)])
def test_units_of_plain_text(tmp_path, unit, count):
    path = tmp_path / "t.txt"
    path.write_text("One line\nand another.\n\n\nA second paragraph.\n", encoding="utf-8")
    assert len(Result(tmp_path / "out", *source("t", path, unit=unit)).lines("text")) == count


def test_rl_reads_prepared_prompts(tmp_path, tokenizer):
    rows = [{"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in range(5)]
    path = write_lines(tmp_path / "g.jsonl", rows)
    result = Result(tmp_path / "out", *source("g", path, layout="gsm8k", task="sums"))
    data = DataConfig(
        path=str(result.output / "prompt" / "train.jsonl"),
        answer_column="answer",
        source_column="task",
        id_column="id",
    )
    found = load_prompts(data, tokenizer, seed=0).prompts
    assert sorted((p.text, p.answer) for p in found) == [
        (f"<user>{n}+1?<assistant>", str(n + 1)) for n in range(5)
    ]
    assert {prompt.source for prompt in found} == {"sums"}


def test_prepared_sets_are_sources_too(tmp_path):
    """Of every kind: the canonical fields are the columns that are read without a mapping."""
    rows = [{"prompt": "q", "answers": ["a", "b", "c"], "scores": [3, 2, 1]}]
    path = write_lines(tmp_path / "r.jsonl", rows)
    first = Result(tmp_path / "one", *source("s", path, kind="preference"))
    made = first.output / "preference" / "train.jsonl"
    again = Result(tmp_path / "two", *source("s", made, kind="preference"))
    (before,), (after,) = first.lines("preference"), again.lines("preference")
    assert after["ranking"] == before["ranking"]
    assert after["ranking_pairs"] == before["ranking_pairs"]
