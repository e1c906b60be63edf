"""vLLM alone: the rollouts of the work, all in one call.

    python -m benchmarks.raw_generate MODEL REPEATS RESULT

Engine arguments and environment are those of this project's engine, where vLLM runs inside the
process too.
"""

from __future__ import annotations

import os
import time

from benchmarks.work import (
    RESPONSE_TOKENS,
    SAMPLES_PER_PROMPT,
    arguments,
    work_config,
    work_prompts,
    write_result,
)
from rlhf_ray.generation.environment import engine_environment


def main() -> None:
    model, repeats, result = arguments()
    config = work_config(model)
    generation = config.generation
    prompts = [list(prompt.token_ids) for prompt in work_prompts(config)]
    # vLLM reads its environment when it is imported.
    os.environ |= engine_environment(
        generation, engine_index=0, cpu_ids=sorted(os.sched_getaffinity(0))
    )
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    assert generation.kv_cache_gib is not None, "the CPU recipes set it"
    llm = LLM(
        model=model,
        dtype=generation.dtype,
        max_model_len=config.max_sequence_tokens,
        max_num_seqs=generation.max_num_seqs,
        max_num_batched_tokens=generation.max_num_batched_tokens,
        enforce_eager=generation.enforce_eager,
        enable_prefix_caching=generation.enable_prefix_caching,
        kv_cache_memory_bytes=int(generation.kv_cache_gib * 1024**3),
        disable_log_stats=True,
    )

    def generate(num_tokens: int) -> int:
        sampling = SamplingParams(
            n=SAMPLES_PER_PROMPT,
            temperature=generation.temperature,
            max_tokens=num_tokens,
            ignore_eos=True,
            logprobs=0,
        )
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False
        )
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    generate(4)
    seconds = []
    for _ in range(repeats):
        # As after new weights: nothing is cached.
        llm.reset_prefix_cache()
        start = time.perf_counter()
        num_tokens = generate(RESPONSE_TOKENS)
        seconds.append(time.perf_counter() - start)
        expected = len(prompts) * SAMPLES_PER_PROMPT * RESPONSE_TOKENS
        assert num_tokens == expected, f"{num_tokens} tokens, not {expected}"
    write_result(result, {"raw_generate_s": seconds})


if __name__ == "__main__":
    main()
