"""Fake of vLLM's OpenAI server: `python fake_upstream.py SOCKET NOTES [damaged]`.

It says again what it is told, one word at a time. Some words make it misbehave. What it has begun
and what was taken from it goes to the file NOTES, one line each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web

WORD_S = 0.01
CONTEXT_TOKENS = 200


class Upstream:
    """See above."""

    def __init__(self, notes: Path, *, is_damaged: bool) -> None:
        self._notes = notes
        self._is_damaged = is_damaged
        self._num_garbage = 0
        self._steps = 0
        self._is_healthy = True

    def note(self, line: str) -> None:
        with self._notes.open("a") as file:
            file.write(line + "\n")

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._is_healthy else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        lines = (
            "# HELP vllm:iteration_tokens_total Tokens per step.",
            "# TYPE vllm:iteration_tokens_total histogram",
            'vllm:iteration_tokens_total_bucket{engine="0",le="+Inf"} ' + str(self._steps),
            'vllm:iteration_tokens_total_sum{engine="0"} 7.0',
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self._steps}',
            f'vllm:corrupted_requests_total{{engine="0"}} {float(self._num_garbage)}',
            "# HELP vllm:prompt_tokens_total Tokens.",
            "# TYPE vllm:prompt_tokens_total counter",
            'vllm:prompt_tokens_total{engine="0"} 3.0',
            "# TYPE process_open_fds gauge",
            "process_open_fds 12",
        )
        return web.Response(text="\n".join(lines) + "\n")

    async def models(self, _: web.Request) -> web.Response:
        model = {"id": "m", "object": "model", "max_model_len": CONTEXT_TOKENS}
        return web.json_response({"object": "list", "data": [model]})

    async def complete(self, _: web.Request) -> web.Response:
        self._num_garbage += self._is_damaged
        return web.json_response({"choices": [{"index": 0, "text": "!"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        self.note(f"tokenized {len((await request.json())['prompt'])}")
        return web.json_response({"tokens": [], "count": 0})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        fields = await request.json()
        text = fields["messages"][-1]["content"]
        if text == "too long":
            message = "This model's maximum context length is 8 tokens."
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        if text == "break":
            self._is_healthy = False
            return web.json_response({"error": {"message": "engine is dead"}}, status=500)
        if text == "no grammar":
            message = "Internal server error"  # In these words, of a grammar that does not compile.
            return web.json_response({"error": {"message": message}}, status=500)
        self._num_garbage += text == "overflow"
        self.note(f"begun {text}")
        try:
            if text == "stall":
                await asyncio.sleep(3600)
            return await self._speak(request, text, is_stream=bool(fields.get("stream")))
        except asyncio.CancelledError:
            self.note(f"taken {text}")
            raise

    async def _speak(
        self, request: web.Request, text: str, *, is_stream: bool
    ) -> web.StreamResponse:
        words = ["word"] * 10_000 if text == "endless" else text.split()
        if not is_stream:
            for _ in words:
                await self._step()
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            return web.json_response({"id": "c", "choices": [choice], "model": "m"})
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for index, word in enumerate(words):
            if index == 1:
                self.note(f"spoken {text}")
            await self._step()
            chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": word + " "}}]}
            event = f"data: {json.dumps(chunk)}\n\n".encode()
            if word == "die":
                await reply.write(event[: len(event) // 2])
                await asyncio.sleep(0.1)
                os._exit(3)
            if word in ("no-grammar", "bad-request"):
                code = 500 if word == "no-grammar" else 400
                error = {"error": {"message": "Internal server error", "code": code}}
                await reply.write(f"data: {json.dumps(error)}\n\n".encode())
                break
            if word == "stop-early":
                return reply
            await reply.write(event)
        await reply.write(b"data: [DONE]\n\n")
        if text == "linger":
            await asyncio.sleep(3600)
        return reply

    async def _step(self) -> None:
        self._steps += 1
        await asyncio.sleep(WORD_S)


def main() -> None:
    upstream = Upstream(Path(sys.argv[2]), is_damaged="damaged" in sys.argv[3:])
    app = web.Application()
    app.router.add_get("/health", upstream.health)
    app.router.add_get("/metrics", upstream.metrics)
    app.router.add_get("/v1/models", upstream.models)
    app.router.add_post("/tokenize", upstream.tokenize)
    app.router.add_post("/v1/completions", upstream.complete)
    app.router.add_post("/v1/chat/completions", upstream.chat)
    # aiohttp cancels a handler whose client went away only when told to.
    web.run_app(app, path=sys.argv[1], print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
