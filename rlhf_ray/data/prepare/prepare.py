"""Preparation of data sets: one pass over every source, then a draw from the kept samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.blend import Draw, blend
from rlhf_ray.data.prepare.cleaning.lengths import longest_sequence
from rlhf_ray.data.prepare.cleaning.pipeline import Cleaning
from rlhf_ray.data.prepare.cleaning.steps import Step, apply_steps
from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Content, Removal, Sample, removal_of
from rlhf_ray.data.prepare.conversion.convert import convert, has_ties, pairs_of
from rlhf_ray.data.prepare.conversion.mapping import BROKEN_CHAT
from rlhf_ray.data.prepare.counts import DatasetCounts, SourceCounts
from rlhf_ray.data.prepare.output import JsonLines
from rlhf_ray.data.prepare.reading import read_samples
from rlhf_ray.data.prepare.splitting import EVAL_PART, TRAIN_PART, Route, Router, routes_of
from rlhf_ray.data.prepare.store import SampleStore
from rlhf_ray.data.rows import DataError
from rlhf_ray.data.sources.prepared import EVAL, TRAIN

REMOVED = "removed.jsonl"
BAD_ANSWER = "bad answer"
_MAX_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationResult:
    """Counts of a finished preparation, for the report.

    Attributes:
        sources: by name. datasets: by folder of the output.
        draws: of the training sets, by folder and source.
        evals: samples of the evaluation sets, by folder and source.
        notes: findings that removed nothing, by source.
    """

    sources: dict[str, SourceCounts]
    datasets: dict[str, DatasetCounts]
    draws: dict[str, dict[str, Draw]]
    evals: dict[str, dict[str, int]]
    notes: dict[str, dict[str, int]]


@dataclass(slots=True, kw_only=True)
class Preparation:
    """One run of the stage inside its work folder.

    Attributes:
        expected: samples by name of source, counted by the check before the run.
        report: receives one line of progress at a time.
    """

    prepare: PrepareConfig
    sources: tuple[PreparedSource, ...]
    split: tuple[float, ...]
    cleaning: Cleaning
    expected: dict[str, int]
    seed: int
    report: Callable[[str], None]
    _sources: dict[str, SourceCounts] = field(default_factory=dict)
    _datasets: dict[str, DatasetCounts] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, scratch: Path) -> PreparationResult:
        """Write removed samples and all sets to `folder`.

        Args:
            scratch: file for the store; the caller removes it.

        Raises:
            DataError: no sample is left for one of the sets, or a source changed meanwhile.
        """
        with closing(SampleStore(scratch, seed=self.seed)) as store:
            with closing(JsonLines(folder / REMOVED)) as removed:
                for source in self.sources:
                    self._take(source, store, removed)
            draws, evals = self._write_sets(store, folder)
        return PreparationResult(
            sources=self._sources,
            datasets=self._datasets,
            draws=draws,
            evals=evals,
            notes={source.name: self.cleaning.notes.of(source.name) for source in self.sources},
        )

    def _take(self, source: PreparedSource, store: SampleStore, removed: JsonLines) -> None:
        """Read, clean and store one source."""
        self.report(f"{source.name}: cleaning {self.expected[source.name]} samples")
        counts = self._sources[source.name] = SourceCounts()
        steps: dict[str, tuple[Step, ...]] = {}
        for dataset, kind in routes_of(source, self.split):
            self._datasets.setdefault(dataset, DatasetCounts(kind=kind))
            steps[dataset] = (
                *self.cleaning.after_routing,
                *self.cleaning.against_others(store, dataset),
            )
        router = Router(
            split=self.split,
            eval_fraction=self.prepare.eval_fraction,
            seed=self.prepare.split_seed,
        )
        num_samples = 0
        for item in read_samples(source):
            counts.read += 1
            if isinstance(item, Sample):
                num_samples += 1
                for name in item.left_out:
                    self.cleaning.notes.add(source.name, f"column {name!r} not kept")
                for note in item.notes:
                    self.cleaning.notes.add(source.name, note)
            for result, route in self._results(item, source, router, steps, counts):
                if isinstance(result, Removal):
                    self._remove(result, counts, removed)
                else:
                    self._keep(result, route, store, counts)
        if num_samples != self.expected[source.name]:
            raise DataError(
                f"{source.key}: {source.path} had {self.expected[source.name]} samples when it was "
                f"checked and now has {num_samples}; a source must give the same rows every time, "
                "so change nothing in it during a run"
            )

    def _results(
        self,
        item: Sample | Removal,
        source: PreparedSource,
        router: Router,
        steps: dict[str, tuple[Step, ...]],
        counts: SourceCounts,
    ) -> Iterator[tuple[Sample | Removal, Route | None]]:
        """Normalize, route, convert and clean one item of a source."""
        if isinstance(item, Sample):
            item = apply_steps(self.cleaning.before_routing, item)
        if isinstance(item, Removal):
            yield item, None
            return
        route = router.route(item.content, source)
        try:
            contents = self._converted(item.content, source.kind, route.kind)
        except BrokenChat as error:
            yield removal_of(item, BROKEN_CHAT, str(error)), None
            return
        if not contents:
            detail = "feedback on a bad answer cannot become a demonstration"
            yield removal_of(item, BAD_ANSWER, detail), None
            return
        counts.made += len(contents) - 1
        for number, content in enumerate(contents):
            sample_id = item.sample_id if number == 0 else f"{item.sample_id}+{number}"
            sample = dataclasses.replace(item, sample_id=sample_id, content=content)
            yield apply_steps(steps[route.dataset], sample), route

    def _converted(self, content: Content, *kinds: str) -> list[Content]:
        """Convert to the kind that the source gives, then to the kind of the data set."""
        # A list of answers has no place for a tie: what trains on it would learn one of its orders.
        stays = set(kinds) == {content.kind}
        splits = self.prepare.rankings == "pairs" or (stays and has_ties(content))
        contents = list(pairs_of(content)) if splits else [content]
        for kind in kinds:
            contents = [made for one in contents for made in convert(one, kind)]
        return contents

    def _remove(self, removal: Removal, counts: SourceCounts, removed: JsonLines) -> None:
        counts.removed[removal.reason] += 1
        self._examples.setdefault(removal.reason, f"{removal.where}: {removal.detail}")
        removed.write(
            {
                "id": removal.sample_id,
                "source": removal.source,
                "where": removal.where,
                "reason": removal.reason,
                "detail": removal.detail,
            }
        )

    def _keep(
        self, sample: Sample, route: Route | None, store: SampleStore, counts: SourceCounts
    ) -> None:
        assert route is not None, "only removals have no route"
        counts.kept += 1
        dataset = self._datasets[route.dataset]
        dataset.lengths.add(longest_sequence(sample))
        dataset.tasks[sample.task] += 1
        store.add(sample, dataset=route.dataset, part=route.part)

    def _write_sets(
        self, store: SampleStore, folder: Path
    ) -> tuple[dict[str, dict[str, Draw]], dict[str, dict[str, int]]]:
        counts = store.counts()
        draws: dict[str, dict[str, Draw]] = {}
        evals: dict[str, dict[str, int]] = {}
        for dataset in self._datasets:
            self.report(f"{dataset}: writing")
            available = _by_source(counts, dataset, TRAIN_PART, self.sources)
            draws[dataset] = blend(
                available,
                self.sources,
                total=self.prepare.total_samples,
                max_epochs=self.prepare.max_epochs,
            )
            if not any(draw.drawn for draw in draws[dataset].values()):
                raise DataError(f"no sample is left for {dataset}/{TRAIN}{self._why()}")
            evals[dataset] = _by_source(counts, dataset, EVAL_PART, self.sources)
            (folder / dataset).mkdir()
            drawn = {name: draw.drawn for name, draw in draws[dataset].items()}
            self._write(store, folder, dataset, TRAIN_PART, drawn, available)
            self._write(store, folder, dataset, EVAL_PART, evals[dataset], evals[dataset])
        return draws, evals

    def _write(
        self,
        store: SampleStore,
        folder: Path,
        dataset: str,
        part: str,
        drawn: dict[str, int],
        available: dict[str, int],
    ) -> None:
        for source, count in drawn.items():
            store.place(
                dataset=dataset,
                part=part,
                source=source,
                count=count,
                available=available[source],
                shuffle=self.prepare.shuffle,
            )
        name = TRAIN if part == TRAIN_PART else EVAL
        with closing(JsonLines(folder / dataset / name)) as lines:
            for record, epoch in store.placed(dataset, part):
                lines.write_text(_with_epoch(record, epoch))

    def _why(self) -> str:
        reasons = [f"{reason} ({example})" for reason, example in self._examples.items()]
        if not reasons:
            return (
                ": the source has too few samples for all sets; give it more rows, or change "
                "prepare.split or prepare.eval_fraction"
            )
        shown = "; ".join(reasons[:_MAX_EXAMPLES])
        return f". Removed, with the first of each: {shown}"


def _by_source(
    counts: dict[tuple[str, str, str], int],
    dataset: str,
    part: str,
    sources: Sequence[PreparedSource],
) -> dict[str, int]:
    """Counts in the order of the configuration; sources without samples are left out."""
    names = [source.name for source in sources]
    return {name: counts[dataset, part, name] for name in names if (dataset, part, name) in counts}


def _with_epoch(record: str, epoch: int) -> str:
    """Give a repetition its own id, because ids are unique in a file."""
    if epoch == 0:
        return record
    content = json.loads(record)
    content["id"] = f"{content['id']}#{epoch + 1}"
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
