"""Loading of prompts: rows are mapped, rendered, tokenised and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.data.messages import RenderedPrompt, check_templates, render, uses_template
from rlhf_ray.data.notes import RowNotes, number_note, unread_columns
from rlhf_ray.data.prompts.fingerprint import fingerprint, rows_fingerprint
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.data.rejects import INVALID, Rejects, Skipped, good_rows, skipped_lines
from rlhf_ray.data.rendering.chat import RenderedChat
from rlhf_ray.data.rendering.check import check_rendering
from rlhf_ray.data.rows import BadCell, DataError, Row, check_columns, text_cell, unmapped_columns
from rlhf_ray.data.sources.read import keeps_digits, read_rows, source_name, source_notes
from rlhf_ray.data.tokens.encoding import encode, most_characters
from rlhf_ray.data.tokens.fidelity import TokenTextCheck
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.data.tokens.special_texts import SpecialTextCheck
from rlhf_ray.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "prompt too long"
_TOKENISED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """All prompts of a run.

    Attributes:
        prompts: in the order of the source. They are templates: `prompt_id` is that of the row
            ("r7", or "r" and its id) and `stream_index` is 0; a stream sets both.
        skipped: rows that are left out, by reason.
        left_out_columns: columns without plain values, which rewards do not see.
        fingerprint: hash of ids, tokens, answers and tasks, in order. The task of rows without a
            column for it is the name of the file.
        rows_fingerprint: hash of the other fields that rewards and other models' templates see
            (messages, tools, columns), in order.
        notes: lines about prompts of which the chat template leaves something out, and of special
            tokens.
        already: words on plain prompts that had the tokens of their beginning already.
    """

    prompts: tuple[Prompt, ...]
    skipped: tuple[Skipped, ...]
    left_out_columns: tuple[str, ...]
    fingerprint: str
    rows_fingerprint: str = ""
    notes: tuple[str, ...] = ()
    already: tuple[str, ...] = ()

    def describe(self) -> str:
        """Lines for the screen: number and lengths of prompts, and rows left out."""
        lengths = [len(prompt.token_ids) for prompt in self.prompts]
        lines = [
            f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens "
            f"({sum(lengths) / len(lengths):.0f} on average)"
        ]
        lines += [*self.already, *self.notes, *skipped_lines(self.skipped)]
        if self.left_out_columns:
            names = ", ".join(self.left_out_columns)
            lines.append(f"columns without plain values are left out: {names}")
        return "\n".join(lines)


def load_prompts(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PromptSet:
    """Read, render and tokenise the whole source.

    Args:
        seed: of the run; the seeds of the prompts are derived from it.

    Raises:
        DataError: the source cannot be read, no row has a configured column, no prompt is left,
            or a row is unusable and `data.on_bad_row` is error.
    """
    check_templates(data, tokenizer)
    rejects = Rejects(data)
    rows = list(good_rows(read_rows(data), rejects))
    if not rows:
        raise DataError(f"{data.key('path')}: {data.path} has no rows{rejects.summary()}")
    mapped = {
        "prompt_column": data.prompt_column,
        "answer_column": data.answer_column,
        "source_column": data.source_column,
        "id_column": data.id_column,
    }
    check_columns(data, mapped, rows)
    specials = SpecialTextCheck(data, tokenizer)
    max_characters = most_characters(tokenizer, data.max_prompt_tokens)
    short = _short(rows, data, rejects, max_characters)
    rendered = _unique(_rendered(short, data, tokenizer, rejects, specials), rejects)
    prompts: list[Prompt] = []
    left_out: set[str] = set()
    notes = RowNotes()
    plain = PlainEncoder(tokenizer)
    fidelity = TokenTextCheck(tokenizer)
    fitting = list(_fitting(rendered, data, rejects, max_characters))
    for item, token_ids in _tokenised(fitting, data, tokenizer, plain):
        if isinstance(token_ids, BadCell):
            rejects.bad_row(INVALID, item.row.where, str(token_ids))
            continue
        if len(token_ids) > data.max_prompt_tokens:
            _count_long(rejects, data, item.row, f"{len(token_ids)} tokens")
            continue
        columns, others = unmapped_columns(data, item.row)
        left_out |= others
        notes.add(item.row.where, item.notes)
        fidelity.check_prompt(item.row.where, item.prompt.text, token_ids)
        prompts.append(_prompt(item, token_ids, columns, seed=seed))
    if not prompts:
        raise DataError(f"{data.key('path')}: no prompt of {data.path} is left{rejects.summary()}")
    unread = unread_columns(
        rows,
        (*mapped.values(), data.tools_column),
        what="columns of the rows that no prompt shows, and only rewards read",
    )
    return PromptSet(
        prompts=tuple(prompts),
        skipped=rejects.skipped(),
        left_out_columns=tuple(sorted(left_out)),
        fingerprint=fingerprint(prompts),
        rows_fingerprint=rows_fingerprint(prompts),
        notes=(*source_notes(data), *notes.lines(), *specials.lines(), *fidelity.lines(), *unread),
        already=tuple(plain.lines()),
    )


def _prompt(
    item: _Rendered, token_ids: Sequence[int], columns: dict[str, Any], *, seed: int
) -> Prompt:
    return Prompt(
        prompt_id=item.prompt_id,
        stream_index=0,
        text=item.prompt.text,
        token_ids=tuple(token_ids),
        answer=item.answer,
        source=item.source,
        seed=stable_seed(seed, item.prompt_id),
        columns=columns,
        messages=tuple(item.prompt.messages),
        tools=tuple(item.prompt.tools),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rendered:
    """A row with checked cells and rendered prompt."""

    row: Row
    prompt_id: str
    prompt: RenderedPrompt
    answer: str | None
    source: str
    notes: tuple[str, ...]


def _short(
    rows: Iterable[Row], data: DataConfig, rejects: Rejects, max_characters: int
) -> Iterator[Row]:
    """Leave out rows that are too long without being rendered, which takes minutes for megabytes.

    Earlier answers do not count: a template may leave out their thoughts.
    """
    for row in rows:
        value = row.cells.get(data.prompt_column)
        messages = value if isinstance(value, list) else [{"content": value}]
        texts = (
            message.get("content")
            for message in messages
            if isinstance(message, dict) and message.get("role") != "assistant"
        )
        num_characters = sum(len(text) for text in texts if isinstance(text, str))
        if num_characters > max_characters:
            _count_long(rejects, data, row, f"{num_characters} characters")
        else:
            yield row


def _fitting(
    items: Iterable[_Rendered], data: DataConfig, rejects: Rejects, max_characters: int
) -> Iterator[_Rendered]:
    """Leave out prompts of so many characters that they are too long without being tokenised."""
    for item in items:
        if len(item.prompt.text) > max_characters:
            _count_long(rejects, data, item.row, f"{len(item.prompt.text)} characters")
        else:
            yield item


def _count_long(rejects: Rejects, data: DataConfig, row: Row, length: str) -> None:
    limit = data.max_prompt_tokens
    message = f"{row.where}: the prompt has {length}"
    if data.on_long_prompt == "error":
        raise DataError(
            f"{message}, and data.max_prompt_tokens is {limit}. Raise it, or leave such rows "
            "out with data.on_long_prompt=skip"
        )
    rejects.count(TOO_LONG, f"{message}, limit {limit}")


def _rendered(
    rows: Iterable[Row],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    rejects: Rejects,
    specials: SpecialTextCheck,
) -> Iterator[_Rendered]:
    default_source = source_name(data)
    of_arrow = None if keeps_digits(data) else data.answer_column
    for row in rows:
        try:
            identity = text_cell(row, data.id_column) if data.id_column else str(row.number)
            prompt = render(row, data, tokenizer)
            specials.check(row, row.cells[data.prompt_column])
            yield _Rendered(
                row=row,
                prompt_id=f"r{identity}",
                prompt=prompt,
                answer=_answer(row, data.answer_column) if data.answer_column else None,
                source=text_cell(row, data.source_column) if data.source_column else default_source,
                notes=(*_checked(prompt, data, tokenizer), *number_note(row, of_arrow)),
            )
        except BadCell as error:
            rejects.bad_row(INVALID, row.where, str(error))


def _answer(row: Row, column: str) -> str:
    """The reference answer. An empty one is missing: an empty response would match it."""
    answer = text_cell(row, column)
    if not answer.strip():
        raise BadCell(f"column {column!r} is empty; it must be the reference answer")
    return answer


def _checked(
    prompt: RenderedPrompt, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Notes about a prompt.

    Raises:
        BadCell: the template leaves out a message, a call or a tool.
    """
    if not uses_template(data, tokenizer):
        return ()
    chat = RenderedChat(
        messages=prompt.messages, tools=prompt.tools, text=prompt.text, learnt={}, for_answer=True
    )
    return check_rendering(chat, tokenizer)


def _unique(items: Iterable[_Rendered], rejects: Rejects) -> Iterator[_Rendered]:
    """Reject rows whose id an earlier row has: ids must distinguish prompts."""
    first: dict[str, Row] = {}
    for item in items:
        other = first.setdefault(item.prompt_id, item.row)
        if other is item.row:
            yield item
        else:
            problem = (
                f"the row has the id {item.prompt_id[1:]!r} of {other.where}; ids must be unique"
            )
            rejects.bad_row(INVALID, item.row.where, problem)


def _tokenised(
    items: Sequence[_Rendered],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    plain: PlainEncoder,
) -> Iterator[tuple[_Rendered, list[int] | BadCell]]:
    """Tokenise in chunks: tokenizers are fast on many texts at once.

    A template writes its own special tokens; plain text gets those that the tokenizer puts before
    it, unless it has them already.
    """
    is_rendered = uses_template(data, tokenizer)
    for start in range(0, len(items), _TOKENISED_AT_ONCE):
        chunk = items[start : start + _TOKENISED_AT_ONCE]
        texts = [item.prompt.text for item in chunk]
        if is_rendered:
            encoded = encode(texts, tokenizer, add_special_tokens=False)
        else:
            encoded = plain.encode(texts)
        yield from zip(chunk, encoded, strict=True)
