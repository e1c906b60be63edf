"""From a trained policy to an answer over HTTP: evaluate, compress, export, serve, ask.

    python launch/product.py [KEY=VALUE ...]     after `make pipeline`; the keys go to the recipe

Runs the public commands and nothing else, and adds what the endpoint did to summary.json.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.recipes.customer_service import requests
from rlhf_ray.serving.load import LoadReport, measure

OUTPUT = Path("outputs/product")
COMMAND = (sys.executable, "-m", "rlhf_ray.main")
START_S, STOP_S = 240.0, 60.0
NUM_REQUESTS, AT_ONCE = 120, 16
MODEL = "customer-service"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 20}


def main() -> int:
    """Returns the exit status."""
    recipe = ("recipe=product", f"output_dir={OUTPUT}", *sys.argv[1:])
    if status := subprocess.run([*COMMAND, *recipe], check=False).returncode:
        return status
    service = subprocess.Popen(
        [
            *(*COMMAND, "stage=serve", f"output_dir={OUTPUT / 'serve'}", "serve.port=0"),
            *(f"model.path={OUTPUT / 'export' / 'model'}", f"serve.model_name={MODEL}"),
            *("generation=cpu", "generation.kv_cache_gib=0.25"),
            *("generation.max_num_seqs=32", "generation.max_num_batched_tokens=1024"),
        ]
    )
    try:
        found = ask(url_of(service))
        service.send_signal(signal.SIGTERM)
        status = service.wait(timeout=STOP_S)
    finally:
        if service.poll() is None:
            service.kill()
    if status:
        return status
    file = OUTPUT / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) | found
    write_atomically(file, json.dumps(summary, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(f"Result: {file}")
    return 0


def url_of(service: subprocess.Popen[bytes]) -> str:
    """Where the service answers, as soon as it says so."""
    file = OUTPUT / "serve" / "serve.json"
    deadline = time.monotonic() + START_S
    while not file.exists():
        if service.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(
                f"stage=serve did not come up within {START_S:g} s; its output is above"
            )
        time.sleep(0.2)
    return json.loads(file.read_text(encoding="utf-8"))["url"]


def ask(url: str) -> dict[str, Any]:
    """One answer whole, the same as a stream, and many at a time."""
    prompts = [row["prompt"] for row in requests()]
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asked: list[Any] = [{"role": "user", "content": prompts[0]}]
        create = client.chat.completions.create
        answer = create(model=MODEL, messages=asked, **GREEDY).choices[0].message.content
        chunks = create(model=MODEL, messages=asked, stream=True, **GREEDY)
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    if not answer or streamed != answer:
        raise SystemExit(f"the stream said {streamed!r}, the whole answer is {answer!r}")
    load = asyncio.run(_load(url, (prompts * NUM_REQUESTS)[:NUM_REQUESTS]))
    if load.num_failed:
        raise SystemExit(f"{load.num_failed} of {load.num_requests} requests failed")
    return {
        "served_prompt": prompts[0],
        "served_answer": answer,
        "served_requests": load.num_requests,
        "served_tokens_per_s": load.tokens_per_s,
        "served_latency_s": load.latency_s,
    }


async def _load(url: str, prompts: list[str]) -> LoadReport:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        report, _ = await measure(client, model=MODEL, prompts=prompts, at_once=AT_ONCE, **GREEDY)
    return report


if __name__ == "__main__":
    sys.exit(main())
