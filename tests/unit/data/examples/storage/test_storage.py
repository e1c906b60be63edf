"""Memory of the driver does not grow with the rows, and what is on disk is what was in memory."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.data.examples.storage.packed import PackedTexts, StoredTexts
from rlhf_ray.data.examples.storage.scratch_file import ScratchFile
from rlhf_ray.data.examples.storage.stored import StoredExamples
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens

# Of 180,000 rows: numbers of eight bytes each, of which an index has five. Measured: 16 MiB for
# texts of 60 words, of which the rows and tokens themselves took 850 MiB.
BOUND_MIB = 48
LOAD = """
import random, sys
from pathlib import Path
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples import load_demonstrations, load_texts
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.testing.turns import two_ends_tokenizer

folder, kind = Path(sys.argv[1]), sys.argv[2]
load, row = {
    "texts": (load_texts, '{{"text": "{0} the sum {0} hello user"}}'),
    "demonstrations": (load_demonstrations, '{{"prompt": "{0} sum?", "answer": "hello {0}"}}'),
}[kind]
tokenizer = two_ends_tokenizer()
peaks = []
for num_rows in (20_000, 200_000):
    path = folder / f"{num_rows}.jsonl"
    with path.open("w") as file:
        file.writelines(row.format(number) + "\\n" for number in range(num_rows))
    config = ExamplesConfig(path=str(path), eval_share=0.0, max_tokens=64)
    examples = load(config, tokenizer, seed=0)
    examples.describe()
    count = len(examples.train)
    order = RowOrder("samples", num_rows=count, fingerprint="", seed=0, shuffle=True)
    for _ in range(1000):
        examples.train[order.next().row]
    status = Path("/proc/self/status").read_text()
    peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind", ["texts", pytest.param("demonstrations", marks=pytest.mark.nightly)]
)
def test_ten_times_the_rows_take_no_more_memory(kind, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), kind],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    grown = float(found.stdout.split()[-1])
    print(f"{kind}: {grown:.0f} MiB more for 180,000 rows more")
    assert grown < BOUND_MIB


def sample(*token_ids: int, learnt: int = 1) -> LabelledTokens:
    mask = torch.zeros(len(token_ids), dtype=torch.bool)
    mask[-learnt:] = True
    return LabelledTokens(token_ids=torch.tensor(token_ids), loss_mask=mask)


def same(one: LabelledTokens, other: LabelledTokens) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("token_ids", "loss_mask")
    )


class TestStoredExamples:
    def test_samples_of_any_length_come_back_as_they_were(self, tmp_path):
        samples = [sample(*range(n), learnt=n // 2) for n in (2, 7, 8, 9, 300_000)]
        samples.append(sample(1, 2**31 - 1))
        stored: StoredExamples[LabelledTokens] = StoredExamples(tmp_path)
        for one in samples:
            stored.append(one)
        assert len(stored) == len(samples)
        assert all(same(*pair) for pair in zip(stored, samples, strict=True))
        assert same(stored[-1], samples[-1])
        assert [len(one.token_ids) for one in stored[1:4]] == [7, 8, 9]
        with pytest.raises(IndexError):
            stored[len(samples)]

    def test_a_sample_does_not_hold_the_memory_of_others(self, tmp_path):
        stored: StoredExamples[Ranking] = StoredExamples(tmp_path)
        stored.append(Ranking(answers=(sample(1, 2, 3), sample(1, 4)), margin=None))
        (ranking,) = stored
        sizes = [answer.token_ids.untyped_storage().nbytes() for answer in ranking.answers]
        assert sizes == [3 * 8, 2 * 8]
        ranking.answers[0].token_ids[0] = 9
        assert stored[0].answers[0].token_ids.tolist() == [1, 2, 3]

    @pytest.mark.parametrize("margin", [None, 0.0, 1 / 3])
    def test_a_margin_keeps_every_bit(self, margin, tmp_path):
        stored: StoredExamples[Ranking] = StoredExamples(tmp_path)
        stored.append(Ranking(answers=(sample(1, 2), sample(1, 3), sample(1, 4)), margin=margin))
        assert stored[0].margin == margin
        assert [a.token_ids.tolist() for a in stored[0].answers] == [[1, 2], [1, 3], [1, 4]]

    def test_a_label_is_kept(self, tmp_path):
        stored: StoredExamples[Feedback] = StoredExamples(tmp_path)
        for is_good in (True, False):
            stored.append(Feedback(sample=sample(1, 2), is_good=is_good))
        assert [item.is_good for item in stored] == [True, False]

    def test_what_is_added_after_a_read_is_read_too(self, tmp_path):
        stored: StoredExamples[LabelledTokens] = StoredExamples(tmp_path)
        for number in range(3):
            stored.append(sample(number, number))
            assert [one.token_ids[0].item() for one in stored] == list(range(number + 1))


class TestPackedTexts:
    @pytest.mark.parametrize("seed", [None, 0, 1])
    @pytest.mark.parametrize("max_tokens", [2, 3, 7, 50])
    def test_pieces_are_those_of_one_long_text(self, seed, max_tokens, tmp_path):
        numbers = np.random.default_rng(0)
        texts = [numbers.integers(0, 99, n).tolist() for n in (1, 5, 12, 1, 1, 30, 2, 8)]
        stored = StoredTexts(tmp_path)
        for text in texts:
            stored.append(text)
        packed = PackedTexts(stored, max_tokens=max_tokens, seed=seed)
        pieces = [piece.token_ids.tolist() for piece in packed]
        row = [token for piece in pieces for token in piece]
        assert all(len(piece) == max_tokens for piece in pieces[:-1])
        assert len(row) in (60, 59), "a last piece of one token is left out"
        if seed is None:
            assert row == [token for text in texts for token in text][: len(row)]
        else:
            assert sorted(row)[:50] == sorted(token for text in texts for token in text)[:50]
            assert row != [token for text in texts for token in text][: len(row)]
        assert all(not piece.loss_mask[0] and piece.loss_mask[1:].all() for piece in packed)

    def test_no_text_gives_no_piece(self, tmp_path):
        assert list(PackedTexts(StoredTexts(tmp_path), max_tokens=8, seed=0)) == []


class TestScratchFile:
    def test_it_has_no_name_and_is_gone_with_its_owner(self, tmp_path):
        file = ScratchFile(tmp_path)
        file.append(b"x" * 2**21)
        assert file.read(2**21 - 3, 3) == b"xxx"
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_named(self):
        full = Path("/dev/full")
        file = ScratchFile(None)
        with full.open("wb", buffering=0) as device:
            file._descriptor = device.fileno()  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(
                RunFailed, match=f"cannot write {re.escape(tempfile.gettempdir())}: .* full"
            ):
                file.append(b"x" * 2**21)


@pytest.mark.parametrize("folder", ["missing", "a_file"])
def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path, folder):
    """As a run is that was started from Python, without the checks of the command."""
    (tmp_path / "a_file").touch()
    place = tmp_path / folder
    words = f"examples.scratch_dir is '{place}': the tokens of examples cannot be written there"
    for make in (ScratchFile, StoredTexts, StoredExamples):
        with pytest.raises(RequestError, match=re.escape(words)):
            make(place)
