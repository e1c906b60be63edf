"""One vLLM engine behind plain methods, without Ray: the facade of the files in this folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.completions import CompletionOutcome, CompletionRequest, complete
from rlhf_ray.generation.engine_arguments import engine_arguments, make_vllm_config
from rlhf_ray.generation.errors import RequestFailed, T, answer
from rlhf_ray.generation.llm import EngineSleep, EngineStatistics, import_vllm, start_llm
from rlhf_ray.generation.prompt_tasks import PromptTasks
from rlhf_ray.generation.requirements import check_vllm
from rlhf_ray.generation.results import FinishedSample, UnusableSample, finished_sample, make_group
from rlhf_ray.generation.sampling import (
    num_returned,
    sample_seed,
    sampling_arguments,
    scoring_arguments,
)
from rlhf_ray.publish.bucket import WeightBucket
from rlhf_ray.records import FailureKind, Prompt, RolloutGroup, SampleFailure

if TYPE_CHECKING:
    from rlhf_ray.generation.requests import Submission


class GenerationEngine:
    """Samples and scores sequences, and takes new weights while requests run.

    All methods belong to one event loop. vLLM runs in other processes, one or more per engine.

    Args:
        generation, model: settings; `model.path` is a folder or a hub name.
        engine_index: position among the run's engines, for messages and the choice of CPUs.
        max_sequence_tokens: longest prompt and response together.
        greedy_from: samples of a prompt from this index on are greedy answers.
        request_timeout_s: time for which one request may run; see `prompt_tasks.RunClock`.
        with_text_ends: find where in the response each token ends, for rewards of steps.
        lora: settings of the adapter, if updates bring adapters only; None for whole weights.
        keeps_cache: running requests keep their key-value cache over an update.
        shares_gpus: the GPUs are shared with the learner, so that the engine sleeps at times.
    """

    def __init__(
        self,
        *,
        generation: GenerationConfig,
        model: ModelConfig,
        engine_index: int,
        max_sequence_tokens: int,
        greedy_from: int,
        request_timeout_s: float,
        with_text_ends: bool = False,
        lora: LoraConfig | None = None,
        keeps_cache: bool = False,
        shares_gpus: bool = False,
    ) -> None:
        self._generation = generation
        self._model = model
        self._index = engine_index
        self._max_sequence_tokens = max_sequence_tokens
        self._greedy_from = greedy_from
        self._timeout_s = request_timeout_s
        self._with_text_ends = with_text_ends
        self._lora = lora
        self.statistics = EngineStatistics()
        self._keeps_cache = keeps_cache
        self._sleeps = shares_gpus and generation.num_gpus > 0
        self._started = contextlib.ExitStack()
        self._sampling: PromptTasks[FinishedSample | SampleFailure] = PromptTasks()

    async def start(self) -> None:
        """Check vLLM, start its processes, load the model; the weights are version 0.

        Raises:
            RequestError: vLLM lacks something, or does not know an extra engine argument.
        """
        # vLLM reads the environment when it is imported: nothing may import it before this line.
        import_vllm(self._generation, engine_index=self._index)
        check_vllm()
        from rlhf_ray.data.tokens.turn_ends import engine_ends
        from rlhf_ray.generation.requests import EngineRequests
        from rlhf_ray.generation.weights.adapter_sender import AdapterSender
        from rlhf_ray.generation.weights.bucket_sender import BucketSender
        from rlhf_ray.generation.weights.updates import WeightUpdates
        from rlhf_ray.models.saving.generation_ends import engine_tokenizer

        arguments = engine_arguments(
            self._generation,
            self._model,
            max_sequence_tokens=self._max_sequence_tokens,
            lora=self._lora,
            sleeps=self._sleeps,
        )
        config = make_vllm_config(arguments)
        self._vocab_size = config.model_config.get_vocab_size()
        self._tokenizer = engine_tokenizer(
            arguments["tokenizer"],
            trust_remote_code=self._model.trust_remote_code,
            chat_template=self._model.chat_template,
        )
        self._end_token_ids = engine_ends(self._tokenizer)
        self._llm = start_llm(config, engine_index=self._index, statistics=self.statistics)
        self._sender = AdapterSender(self._llm) if self._lora else BucketSender(self._llm)
        # Two tasks pause the engine: an update of the weights, and the start of held requests. The
        # one that holds this lock resumes it, so that neither resumes the other's pause.
        pause = asyncio.Lock()
        self._requests = EngineRequests(
            self._llm,
            pause=pause,
            engine_index=self._index,
            timeout_s=self._timeout_s,
            keeps_cache=self._keeps_cache,
        )
        self.num_workers = self._generation.num_workers
        self.updates = WeightUpdates(
            self._llm,
            self._sender,
            self._requests,
            pause=pause,
            engine_index=self._index,
            num_workers=self.num_workers,
        )
        self.sleeping = EngineSleep(self._llm, engine_index=self._index, sleeps=self._sleeps)
        self._started.callback(self._stop)
        await self._llm.update_weight_version("0")

    async def close(self) -> None:
        """End vLLM's processes, if they were started."""
        self._started.close()

    def _stop(self) -> None:
        self._llm.shutdown()
        self._sender.close()
        # vLLM's destructor fails with a traceback if it is left to the end of the interpreter.
        del self._llm, self._sender, self._requests, self.updates, self.sleeping

    async def check(self) -> None:
        """Check that the engine process is alive; raises EngineLost if it has ended."""
        await self._answer(self._llm.check_health())

    async def generate(
        self, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> tuple[RolloutGroup, tuple[SampleFailure, ...]]:
        """Sample responses, one request each.

        Args:
            together: number of requests, of these and of other calls, that start in one engine
                step; see `EngineRequests.submit`.

        Returns:
            The group of the samples that finished, and the failures of the others, which are also
            the group's `failures`.

        Raises:
            EngineLost: the engine process has ended.
        """
        submissions = {
            sample_index: self._requests.submit(
                prompt.token_ids,
                sampling_arguments(
                    self._generation,
                    seed=sample_seed(prompt.seed, sample_index),
                    vocab_size=self._vocab_size,
                    greedy=sample_index >= self._greedy_from,
                    end_token_ids=self._end_token_ids,
                ),
                order=(prompt.stream_index, sample_index),
                together=together,
            )
            for sample_index in sample_indices
        }
        outcomes = await self._sampling.run(
            prompt.prompt_id,
            [self._sample(prompt, index, submitted) for index, submitted in submissions.items()],
        )
        samples = [outcome for outcome in outcomes if isinstance(outcome, FinishedSample)]
        failures = tuple(outcome for outcome in outcomes if isinstance(outcome, SampleFailure))
        return make_group(prompt, samples, failures), failures

    async def abort(self, prompt_ids: Sequence[str]) -> None:
        """End the requests of these prompts, held or running; returns when vLLM has dropped them.

        Their `generate` returns with a failure for every sample that had not finished. Prompts that
        are not being sampled are ignored.
        """
        await self._sampling.abort(prompt_ids)

    async def score_sequences(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of every token but the first of each sequence.

        A sequence must be shorter than `max_sequence_tokens`.

        Raises:
            EngineLost: the engine process has ended.
            RunFailed: a sequence was not scored, or not in time.
        """
        submissions = [
            self._requests.submit(tokens, scoring_arguments(), order=(-1, number))
            for number, tokens in enumerate(sequences)
        ]
        return await asyncio.gather(*(self._score(submitted) for submitted in submissions))

    async def complete(
        self, asked: Sequence[CompletionRequest], *, timeout_s: float
    ) -> list[CompletionOutcome]:
        """Continue texts that are not trained on; see `completions.complete`."""
        return await complete(
            self._requests,
            asked,
            decode=self._decode,
            end_token_ids=self._end_token_ids,
            timeout_s=timeout_s,
        )

    async def begin_update(self) -> None:
        """Pause the engine and prepare for new weights. Running requests wait and then go on.

        Without `keeps_cache` their cache is computed again: each token depends on one version.
        """
        await self.updates.begin()

    async def load_bucket(self, bucket: WeightBucket) -> None:
        """Take one bucket; its memory may be reused when this returns.

        Workers may load it later, so that their error is raised by the next call."""
        await self.updates.load(bucket)

    async def finish_update(self, version: int) -> None:
        """Use the new weights, all buckets of which were sent, as `version`; resume the engine."""
        await self.updates.finish(version)

    async def weight_version(self) -> int:
        """Version of the weights in use."""
        return int(await self._answer(self._llm.get_weight_version()))

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        return await answer(self._llm, self._index, call)

    async def _sample(
        self, prompt: Prompt, sample_index: int, submission: Submission
    ) -> FinishedSample | SampleFailure:
        kind, message = FailureKind.GENERATION_ERROR, ""
        try:
            output = await self._requests.result(submission)
            completion = output.outputs[0]
            if completion.finish_reason in ("stop", "length"):
                return finished_sample(
                    sample_index,
                    completion,
                    decode=self._decode,
                    width=1 + num_returned(self._generation.top_k, vocab_size=self._vocab_size),
                    with_text_ends=self._with_text_ends,
                )
            message = f"engine {self._index} ended it with {completion.finish_reason!r}"
        except (RequestFailed, UnusableSample) as error:
            message = str(error)
        except asyncio.CancelledError:
            # Cancelled by `abort`, which wants a failure. If all of `generate` is cancelled, its
            # `gather` is too, and this return value is not used.
            kind = FailureKind.GENERATION_ABORTED
            message = f"engine {self._index} was told to give it up"
        except TimeoutError:
            kind = FailureKind.GENERATION_TIMEOUT
            message = f"engine {self._index} did not finish it within {self._timeout_s:g} s"
        return SampleFailure(
            prompt_id=prompt.prompt_id, sample_index=sample_index, kind=kind, message=message
        )

    async def _score(self, submission: Submission) -> list[float]:
        try:
            output = await self._requests.result(submission)
        except (RequestFailed, TimeoutError) as error:
            raise RunFailed(
                f"generator {self._index}: a sequence of {len(submission.token_ids)} tokens was "
                f"not scored within {self._timeout_s:g} s: {error}"
            ) from None
        return list(output.prompt_logprobs.logprobs)
