"""From rows to prompts: mapping, templates, validation, skipping."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.data.held_out import shared_lines
from rlhf_ray.data.prompts.load import PromptSet, Skipped, load_prompts
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import Prompt

USER = {"role": "user", "content": "Sum of 1 and 2?"}
GOOD = {"prompt": "Sum of 1 and 2?"}


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    """Prompts of rows; a row that is a string is written as it is."""

    def call(rows: list[Any], *, using: Any = tokenizer, **settings: Any) -> PromptSet:
        path = tmp_path / "sums.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines))
        return load_prompts(DataConfig(path=str(path), **settings), using, seed=3)

    return call


def only(prompts: PromptSet) -> Prompt:
    (prompt,) = prompts.prompts
    return prompt


class TestRendering:
    def test_plain_text_is_one_user_message(self, load, tokenizer) -> None:
        text, chat = only(load([GOOD])), only(load([{"prompt": [USER]}]))
        assert text.text == chat.text == "<user>Sum of 1 and 2?<assistant>"
        assert text.messages == chat.messages == (USER,)
        assert text.token_ids == chat.token_ids

    def test_tokens_are_those_of_the_models_own_template(self, load, tokenizer) -> None:
        chat = [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "And 4?"},
        ]
        expected = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        prompt = only(load([{"prompt": chat}]))
        assert list(prompt.token_ids) == expected
        assert tokenizer.convert_tokens_to_ids("<eos>") in prompt.token_ids
        assert tokenizer.decode(prompt.token_ids) == prompt.text

    def test_system_prompt_goes_before_chats_that_have_none(self, load) -> None:
        own = [{"role": "system", "content": "Mine."}, USER]
        prompts = load([GOOD, {"prompt": own}], system_prompt="Be brief.").prompts
        assert prompts[0].text == "Be brief.<user>Sum of 1 and 2?<assistant>"
        assert prompts[1].text == "Mine.<user>Sum of 1 and 2?<assistant>"
        assert prompts[0].messages == ({"role": "system", "content": "Be brief."}, USER)
        assert prompts[1].messages == tuple(own)

    def test_without_template(self, load, tokenizer) -> None:
        prompt = only(load([GOOD], apply_chat_template=False))
        assert prompt.text == GOOD["prompt"]
        assert list(prompt.token_ids) == tokenizer(GOOD["prompt"])["input_ids"]
        assert prompt.messages == (USER,)

    def test_tokenizer_without_template(self, load, plain_tokenizer) -> None:
        assert only(load([GOOD], using=plain_tokenizer)).text == GOOD["prompt"]
        with pytest.raises(DataError, match=r"sums.jsonl line 1: .* has no chat template"):
            load([{"prompt": [USER]}], using=plain_tokenizer)
        with pytest.raises(DataError, match=r"data.system_prompt is set, .* no chat template"):
            load([GOOD], using=plain_tokenizer, system_prompt="Be brief.")

    def test_chat_that_may_not_be_rendered(self, load) -> None:
        with pytest.raises(DataError, match=r"data\.apply_chat_template is false"):
            load([{"prompt": [USER]}], apply_chat_template=False)

    def test_plain_text_gets_the_beginning_that_the_tokenizer_adds(self, load, tokenizer) -> None:
        class Beginning:
            """Stands for tokenizers that begin every text with a token (Llama, Gemma)."""

            chat_template = None
            added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
            all_special_tokens: tuple[str, ...] = ()
            all_special_ids: tuple[int, ...] = ()
            bos_token = cls_token = eos_token = sep_token = None

            def decode(self, ids: list[int], **_: Any) -> str:
                return GOOD["prompt"] if ids == [1, 9, 8] else ""

            def get_vocab(self) -> dict[str, int]:
                return {"a": 9, "b": 8}

            def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
                begin = [1] if add_special_tokens else []
                return {"input_ids": [[*begin, 9, 8] for _ in texts]}

        assert only(load([GOOD], using=Beginning())).token_ids == (1, 9, 8)

    def test_broken_template(self, load, tokenizer) -> None:
        tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
        tokenizer.chat_template = "{% for message in messages %}"
        with pytest.raises(DataError, match="the chat template is broken: line 1"):
            load([GOOD], using=tokenizer)

    def test_template_that_refuses_a_chat(self, load, tokenizer) -> None:
        tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
        tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}"
            "{% endif %}{{ messages[0]['content'] }}"
        )
        rows = [GOOD, {"prompt": [{"role": "system", "content": "x"}, USER]}]
        with pytest.raises(DataError, match=r"line 2: the chat template refuses .*no system here"):
            load(rows, using=tokenizer)
        assert len(load(rows, using=tokenizer, on_bad_row="skip").prompts) == 1


class TestMapping:
    def test_columns(self, load) -> None:
        row = {
            "question": "Q?",
            "solution": 12,
            "task": "sums",
            "key": "k-7",
            "level": 3,
            "tags": ["a", {"b": None}],
        }
        prompt = only(
            load(
                [row],
                prompt_column="question",
                answer_column="solution",
                source_column="task",
                id_column="key",
            )
        )
        assert (prompt.prompt_id, prompt.answer, prompt.source) == ("rk-7", "12", "sums")
        assert prompt.columns == {"level": 3, "tags": ["a", {"b": None}]}

    def test_unmapped_columns(self, load) -> None:
        prompts = load([GOOD, {**GOOD, "answer": "3"}]).prompts
        assert [prompt.prompt_id for prompt in prompts] == ["r0", "r1"]
        assert prompts[1].answer is None
        assert prompts[1].source == "sums"
        assert prompts[1].columns == {"answer": "3"}
        assert prompts[0].seed != prompts[1].seed

    def test_row_number_is_that_of_the_source(self, load) -> None:
        prompts = load([GOOD, "{", GOOD], on_bad_row="skip").prompts
        assert [prompt.prompt_id for prompt in prompts] == ["r0", "r2"]

    def test_values_that_are_not_plain(self, tmp_path: Path, tokenizer) -> None:
        row = {
            **GOOD,
            "day": datetime.date(2024, 2, 29),
            "price": decimal.Decimal("1.50"),
            "image": b"\x00",
            "parts": [{"raw": b"\x01"}],
        }
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        prompts = load_prompts(DataConfig(path=str(path)), tokenizer, seed=0)
        assert only(prompts).columns == {"day": "2024-02-29", "price": "1.50"}
        assert prompts.left_out_columns == ("image", "parts")
        assert "columns without plain values are left out: image, parts" in prompts.describe()

    @pytest.mark.parametrize("key", ["prompt", "answer", "source", "id"])
    def test_missing_column_names_the_nearest(self, load, key: str) -> None:
        with pytest.raises(DataError) as caught:
            load([{"prompt": "x", "answers": 1}], **{f"{key}_column": "answerz"})
        assert f"data.{key}_column is 'answerz'" in str(caught.value)
        assert "did you mean 'answers'? There are: answers, prompt" in str(caught.value)

    def test_a_column_within_a_column_is_refused(self, load) -> None:
        """As in the files of verl."""
        row = {"prompt": "x", "reward_model": {"ground_truth": "1", "style": "rule"}}
        with pytest.raises(DataError) as caught:
            load([row], answer_column="reward_model.ground_truth")
        assert "nested columns are not read: 'ground_truth' in 'reward_model' has to be a" in (
            str(caught.value)
        )
        assert "There are: prompt, reward_model" in str(caught.value)
        assert only(load([{"prompt": "x", "a.b": "1"}], answer_column="a.b")).answer == "1"

    def test_limit(self, load) -> None:
        assert len(load([GOOD] * 5, limit=2).prompts) == 2


BAD_PROMPTS: list[tuple[Any, str]] = [
    (None, "must be text or a list of messages; it is None"),
    (5, r"must be text or a list of messages; it is 5 \(int\)"),
    ({"role": "user", "content": "x"}, "must be text or a list of messages"),
    ("  \n", "is empty"),
    ([], "is a chat without messages"),
    (["hello"], r"message 1 in column 'prompt' must be an object .* 'hello'"),
    ([{"content": "x"}], "message 1 in column 'prompt' has no 'role', only"),
    ([USER, {"role": "user"}], "message 2 in column 'prompt' has no 'content'"),
    ([{"role": "user", "content": None}], "'content' of message 1 .* must be text; it is None"),
    ([{"role": "user", "content": ["x"]}], "'content' of message 1 .* must be text"),
    ([{"role": "", "content": "x"}], "'role' of message 1 .* is empty"),
    ([USER, {"role": "assistant", "content": "3"}], "ends with a message of the assistant"),
]


class TestBadRows:
    @pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS)
    def test_prompts(self, load, prompt: Any, message: str) -> None:
        rows = [GOOD, {"prompt": prompt}, GOOD]
        with pytest.raises(DataError, match=rf"sums.jsonl line 2: .*{message}"):
            load(rows)
        prompts = load(rows, on_bad_row="skip")
        assert [prompt.prompt_id for prompt in prompts.prompts] == ["r0", "r2"]
        assert [(s.reason, s.count) for s in prompts.skipped] == [("invalid row", 1)]

    @pytest.mark.parametrize("answer", [None, True, ["3"], {"value": 3}])
    def test_answers(self, load, answer: Any) -> None:
        rows = [{**GOOD, "answer": "3"}, {**GOOD, "answer": answer}]
        with pytest.raises(DataError, match="line 2: column 'answer' must be text or a number"):
            load(rows, answer_column="answer")
        assert only(load(rows, answer_column="answer", on_bad_row="skip")).answer == "3"

    def test_column_that_one_row_lacks(self, load) -> None:
        rows = [GOOD, {"question": "x"}]
        with pytest.raises(
            DataError, match=r"line 2: the row has no column 'prompt', only \['question'\]"
        ):
            load(rows)

    def test_two_rows_with_one_id(self, load) -> None:
        rows = [{**GOOD, "id": 1}, {**GOOD, "id": "1"}]
        with pytest.raises(
            DataError, match=r"line 2: the row has the id '1' of sums\.jsonl line 1"
        ):
            load(rows, id_column="id")
        assert only(load(rows, id_column="id", on_bad_row="skip")).prompt_id == "r1"

    def test_broken_line(self, load) -> None:
        with pytest.raises(DataError, match=r"line 2: is not JSON.* data.on_bad_row=skip leaves"):
            load([GOOD, "{"])

    def test_counts_and_first_example(self, load) -> None:
        rows = [GOOD, "{", "[", {"prompt": "x " * 40}, {"prompt": 1}, GOOD]
        prompts = load(rows, on_bad_row="skip", max_prompt_tokens=40)
        assert [prompt.prompt_id for prompt in prompts.prompts] == ["r0", "r5"]
        broken, invalid, too_long = prompts.skipped
        assert (broken.reason, broken.count) == ("broken row", 2)
        assert broken.example.startswith("sums.jsonl line 2: is not JSON")
        assert (invalid.reason, invalid.count) == ("invalid row", 1)
        assert too_long == Skipped(
            reason="prompt too long",
            count=1,
            example="sums.jsonl line 4: the prompt has 82 tokens, limit 40",
        )
        assert "2 prompts of" in prompts.describe()
        assert "skipped, broken row: 2 (first: sums.jsonl line 2" in prompts.describe()

    def test_long_prompt_may_end_the_run(self, load) -> None:
        num_tokens = len(only(load([GOOD])).token_ids)
        assert load([GOOD], max_prompt_tokens=num_tokens, on_long_prompt="error").prompts
        limit = num_tokens - 1
        with pytest.raises(DataError, match=rf"line 1: .* {num_tokens} tokens, and .* is {limit}"):
            load([GOOD], max_prompt_tokens=limit, on_long_prompt="error")

    def test_nothing_left(self, load) -> None:
        with pytest.raises(DataError, match=r"sums.jsonl has no rows$"):
            load([])
        with pytest.raises(DataError, match="has no rows: 1 skipped as broken row"):
            load(["{"], on_bad_row="skip")
        with pytest.raises(DataError, match=r"no prompt of .* is left: 2 skipped as prompt too lo"):
            load([GOOD, GOOD], max_prompt_tokens=1)

    def test_the_error_is_one_of_the_users(self) -> None:
        assert issubclass(DataError, RequestError)
        assert issubclass(RequestError, ValueError)


class TestFingerprint:
    ROWS = ({"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"})

    def test_same_data(self, load) -> None:
        assert load(list(self.ROWS)).fingerprint == load(list(self.ROWS)).fingerprint

    @pytest.mark.parametrize(
        ("rows", "settings"),
        [
            ([ROWS[1], ROWS[0]], {}),
            ([ROWS[0]], {}),
            ([ROWS[0], {"prompt": "b", "answer": "3"}], {}),
            ([ROWS[0], {"prompt": "c", "answer": "2"}], {}),
            (list(ROWS), {"apply_chat_template": False}),
        ],
    )
    def test_other_data(self, load, rows: list[Any], settings: dict[str, Any]) -> None:
        whole = load(list(self.ROWS), answer_column="answer").fingerprint
        assert load(rows, answer_column="answer", **settings).fingerprint != whole

    @pytest.mark.parametrize(
        "change",
        [
            {"unit": "mm"},
            {"extra": None},
            {"cases": [{"in": "1", "out": "3"}]},
            {"prompt": [{**USER, "note": "seen by other templates"}]},
        ],
    )
    def test_what_only_rewards_see(self, load, change: dict[str, Any]) -> None:
        row = {"prompt": [USER], "answer": "1", "unit": "cm", "cases": [{"in": "1", "out": "2"}]}
        before = load([row], answer_column="answer")
        after = load([{**row, **change}], answer_column="answer")
        assert after.fingerprint == before.fingerprint
        assert after.rows_fingerprint != before.rows_fingerprint
        reordered = load([dict(reversed(row.items()))], answer_column="answer")
        assert reordered.rows_fingerprint == before.rows_fingerprint


def test_a_data_file_with_another_name_has_rows_of_another_task(tmp_path, tokenizer) -> None:
    """Rewards, metrics and scales of rewards read the task, so the run is another one."""
    (tmp_path / "sums.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "sums.jsonl")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/sums.jsonl").symlink_to(tmp_path / "sums.jsonl")
    before, renamed, moved = (
        PromptStream(
            load_prompts(DataConfig(path=str(tmp_path / name)), tokenizer, seed=3),
            seed=3,
            shuffle=True,
        )
        for name in ("sums.jsonl", "linked.jsonl", "other/sums.jsonl")
    )
    state = before.state_dict()
    moved.load_state_dict(state)
    words = r"tasks was 'sums' and is 'linked'\. The tasks have other names: .*the old name"
    with pytest.raises(DataError, match=words):
        renamed.load_state_dict(state)
    # A checkpoint of a release that did not keep the tasks.
    del state["tasks"]
    moved.load_state_dict(state)
    with pytest.raises(DataError, match=r"fingerprint was"):
        renamed.load_state_dict(state)


class TestSaid:
    def test_columns_that_only_rewards_read(self, load) -> None:
        row = {**GOOD, "answer": "3", "system": "Be rude", "id": 7}
        said = load([row], answer_column="answer").describe()
        assert "that no prompt shows, and only rewards read: 'system' (1 rows)" in said
        assert "only rewards" not in load([GOOD]).describe()

    def test_decimal_answers(self, tmp_path, tokenizer) -> None:
        answers = [decimal.Decimal("12.50")]
        table = pyarrow.table({"prompt": ["a"], "answer": answers})
        path = tmp_path / "sums.parquet"
        pyarrow.parquet.write_table(table, path)
        data = DataConfig(path=str(path), answer_column="answer")
        assert only(load_prompts(data, tokenizer, seed=3)).answer == "12.50"

    def test_the_digits_of_an_answer_are_those_of_the_file(self, load) -> None:
        row = '{{"prompt": "a", "answer": {}, "id": 1.50, "score": {}}}'
        chosen = {"answer_column": "answer", "id_column": "id"}
        written, plain = (load([row.format("0.10", score)], **chosen) for score in ("2.50", "2.5"))
        assert (only(written).answer, only(written).prompt_id) == ("0.10", "r1.50")
        # How a number is written that only rewards read does not make other rows.
        assert written.rows_fingerprint == plain.rows_fingerprint
        assert written.fingerprint == plain.fingerprint
        other = load([row.format("0.1", "2.5")], **chosen)
        assert other.fingerprint != plain.fingerprint

    def test_fractions_of_arrow_have_no_digits_and_are_counted(self, tmp_path, tokenizer) -> None:
        path = tmp_path / "sums.parquet"
        answers = [0.1, 7.0, -3.0, 2.5, 1e16]
        table = pyarrow.table({"prompt": ["a", "b", "c", "d", "e"], "answer": answers})
        pyarrow.parquet.write_table(table, path)
        data = DataConfig(path=str(path), answer_column="answer")
        said = load_prompts(data, tokenizer, seed=3).describe()
        assert "(0.10 is 0.1 here); store answers as text: 3 rows (first: sums.parquet row 1)" in (
            said
        )

    @pytest.mark.parametrize("suffix", ["jsonl", "json"])
    def test_digits_of_files_in_a_folder(self, tmp_path, tokenizer, suffix, monkeypatch) -> None:
        """Files of JSON lines are read here; `datasets` reads a file of one list."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        row = '{"prompt": "a", "answer": 0.10}'
        folder = tmp_path / "rows"
        folder.mkdir()
        (folder / f"train.{suffix}").write_text(f"[{row}]" if suffix == "json" else row)
        data = DataConfig(path=str(folder), answer_column="answer")
        found = load_prompts(data, tokenizer, seed=3)
        assert only(found).answer == ("0.10" if suffix == "jsonl" else "0.1")
        assert ("store answers as text" in found.describe()) == (suffix == "json")

    def test_missing_answers_of_csv(self, tmp_path, tokenizer) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("prompt,answer\nIs it so?,None\n")
        data = DataConfig(path=str(path), answer_column="answer")
        with pytest.raises(
            DataError, match=r"'answer' must be text or a number; it is null. In CSV"
        ):
            load_prompts(data, tokenizer, seed=3)

    @pytest.mark.parametrize("prompt", ["x" * 300_000, [{**USER, "content": "x" * 300_000}]])
    def test_megabytes_are_not_rendered(self, load, monkeypatch, prompt) -> None:
        monkeypatch.setattr("rlhf_ray.data.prompts.load.render", None)
        with pytest.raises(DataError, match=r"prompt too long .first: .* has 300000 characters"):
            load([{"prompt": prompt}])


def test_the_files_of_a_folder_are_said(tmp_path: Path, tokenizer) -> None:
    for name in ("train_a", "train_b", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}))
    prompts = load_prompts(DataConfig(path=str(tmp_path)), tokenizer, seed=3)
    assert [prompt.messages[0]["content"] for prompt in prompts.prompts] == ["train_a", "train_b"]
    assert (
        "data.path is a folder: split 'train', 2 jsonl files are read: train_a.jsonl, "
        "train_b.jsonl; 1 are left out: test.jsonl"
    ) in prompts.describe().splitlines()


def test_held_out_prompts_that_are_trained_on_are_a_warning(load) -> None:
    rows = [{"prompt": f"Sum of {number} and 2?", "answer": "x"} for number in range(9)]
    trained, other = load(rows[:4]), load(rows[4:])
    # Other answers and another file: the prompts are the same.
    part = load([{**row, "answer": "y"} for row in rows[3:7]])
    (line,) = shared_lines(part, trained)
    assert line.startswith("warning: 1 of the 4 held-out prompts (25%) are trained on too")
    assert shared_lines(other, trained) == []
