"""From sources to sets: one pass through every source, then a draw from what is left."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.blend import Draw, blend
from rlhf_ray.data.prepare.cleaning.cleaner import Cleaning
from rlhf_ray.data.prepare.cleaning.lengths import longest
from rlhf_ray.data.prepare.cleaning.steps import Step, apply_steps
from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Content, Removal, Sample, removal_of
from rlhf_ray.data.prepare.conversion.convert import convert, pairs_of
from rlhf_ray.data.prepare.conversion.mapping import BROKEN_CHAT
from rlhf_ray.data.prepare.conversion.reading import read_samples
from rlhf_ray.data.prepare.counts import DatasetTally, SourceTally
from rlhf_ray.data.prepare.output import JsonLines
from rlhf_ray.data.prepare.splitting import EVAL_PART, TRAIN_PART, Route, Router, routes_of
from rlhf_ray.data.prepare.store import Store
from rlhf_ray.data.rows import DataError
from rlhf_ray.data.sources.prepared import EVAL, TRAIN

REMOVED = "removed.jsonl"
BAD_ANSWER = "bad answer"
_MAX_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Everything the report tells.

    Attributes:
        sources: by name. datasets: by folder of the output.
        draws: by folder and source, of the training sets.
        evals: samples of the evaluation sets, by folder and source.
        notes: by source, what was found and not removed.
    """

    sources: dict[str, SourceTally]
    datasets: dict[str, DatasetTally]
    draws: dict[str, dict[str, Draw]]
    evals: dict[str, dict[str, int]]
    notes: dict[str, dict[str, int]]


@dataclass(slots=True, kw_only=True)
class Preparation:
    """One run of the stage inside its work folder.

    Attributes:
        expected: samples by name of source, as the check before the work counted them.
        report: told in a line what is being done.
    """

    prepare: PrepareConfig
    sources: tuple[PreparedSource, ...]
    split: tuple[float, ...]
    cleaning: Cleaning
    expected: dict[str, int]
    seed: int
    report: Callable[[str], None]
    _tallies: dict[str, SourceTally] = field(default_factory=dict)
    _datasets: dict[str, DatasetTally] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, scratch: Path) -> Outcome:
        """Write removed samples and all sets to `folder`.

        Args:
            scratch: of a file for what has to be remembered; the caller removes it.

        Raises:
            DataError: nothing is left for one of the sets, or a source changed meanwhile.
        """
        with Store(scratch, seed=self.seed) as store:
            with JsonLines(folder / REMOVED) as removed:
                for source in self.sources:
                    self._take(source, store, removed)
            draws, evals = self._write_sets(store, folder)
        return Outcome(
            sources=self._tallies,
            datasets=self._datasets,
            draws=draws,
            evals=evals,
            notes={source.name: self.cleaning.notes.of(source.name) for source in self.sources},
        )

    def _take(self, source: PreparedSource, store: Store, removed: JsonLines) -> None:
        """One source, from its rows to the store."""
        self.report(f"{source.name}: cleaning {self.expected[source.name]} samples")
        tally = self._tallies[source.name] = SourceTally()
        steps: dict[str, tuple[Step, ...]] = {}
        for dataset, kind in routes_of(source, self.split):
            self._datasets.setdefault(dataset, DatasetTally(kind=kind))
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
            tally.read += 1
            num_samples += isinstance(item, Sample)
            for result, route in self._results(item, source, router, steps, tally):
                if isinstance(result, Removal):
                    self._remove(result, tally, removed)
                else:
                    self._keep(result, route, store, tally)
        if num_samples != self.expected[source.name]:
            raise DataError(
                f"{source.key}: {source.path} had {self.expected[source.name]} samples when it was "
                f"checked and now has {num_samples}; a source must give the same rows every time"
            )

    def _results(
        self,
        item: Sample | Removal,
        source: PreparedSource,
        router: Router,
        steps: dict[str, tuple[Step, ...]],
        tally: SourceTally,
    ) -> Iterator[tuple[Sample | Removal, Route | None]]:
        """What one item of a source becomes: mended, routed, converted, cleaned."""
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
            detail = "feedback on a bad answer is nothing to imitate"
            yield removal_of(item, BAD_ANSWER, detail), None
            return
        tally.made += len(contents) - 1
        for number, content in enumerate(contents):
            sample_id = item.sample_id if number == 0 else f"{item.sample_id}+{number}"
            sample = dataclasses.replace(item, sample_id=sample_id, content=content)
            yield apply_steps(steps[route.dataset], sample), route

    def _converted(self, content: Content, *kinds: str) -> list[Content]:
        """As what the source gives, then as what the data set holds."""
        contents = [content]
        if self.prepare.rankings == "pairs":
            contents = list(pairs_of(content))
        for kind in kinds:
            contents = [made for one in contents for made in convert(one, kind)]
        return contents

    def _remove(self, removal: Removal, tally: SourceTally, removed: JsonLines) -> None:
        tally.removed[removal.reason] += 1
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

    def _keep(self, sample: Sample, route: Route | None, store: Store, tally: SourceTally) -> None:
        assert route is not None, "only removals have none"
        tally.kept += 1
        dataset = self._datasets[route.dataset]
        dataset.lengths.add(longest(sample))
        dataset.tasks[sample.task] += 1
        store.add(sample, dataset=route.dataset, part=route.part)

    def _write_sets(
        self, store: Store, folder: Path
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
        store: Store,
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
        with JsonLines(folder / dataset / name) as lines:
            for record, epoch in store.placed(dataset, part):
                lines.write_text(_with_epoch(record, epoch))

    def _why(self) -> str:
        reasons = [f"{reason} ({example})" for reason, example in self._examples.items()]
        if not reasons:
            return ": the source has too few for all sets; see prepare.split, prepare.eval_fraction"
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
    """A repetition has an id of its own, because ids are unique in a file."""
    if epoch == 0:
        return record
    content = json.loads(record)
    content["id"] = f"{content['id']}#{epoch + 1}"
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
