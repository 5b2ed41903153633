"""One request from its parsed body to its answer, whole or as a stream of events."""

import asyncio
import codecs
import json
import math
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from gptjax.base.errors import UserError
from gptjax.generation.requests import Token
from gptjax.serving.jobs import Job, News, PromptScores
from gptjax.serving.protocol import CompletionRequest, Prompt
from gptjax.serving.refusals import Refusal, invalid
from gptjax.serving.responses import Envelope, Said, usage
from gptjax.serving.scheduler import Scheduler
from gptjax.serving.transcript import Spoken, Transcript
from gptjax.tokenizers.plain import Tokenizer

DONE = b"data: [DONE]\n\n"


def encoded(tokenizer: Tokenizer, prompt: Prompt, context: int) -> tuple[int, ...]:
    """The ids of a prompt; none for the empty text. Raises `Refusal` if they do not fit."""
    if isinstance(prompt, str):
        try:
            ids = tuple(tokenizer.encode(prompt).tolist())
        except (UserError, ValueError) as error:  # tiktoken gives up on very long runs of blanks
            raise invalid("prompt", f"the tokenizer cannot encode the prompt: {error}") from None
    else:
        ids = prompt
    if len(ids) > context:
        message = f"the prompt has {len(ids)} tokens, and the context of this server is {context}"
        raise invalid("prompt", f"{message}: shorten the prompt", "context_length_exceeded")
    return ids


class Completion:
    """A request that runs; it must be entered, so that whatever happens its slots are freed.

    `prompts` are the ids of the request's prompts, in their order.
    """

    def __init__(
        self,
        request: CompletionRequest,
        prompts: list[tuple[int, ...]],
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        envelope: Envelope,
    ):
        self._request, self._prompts, self._scheduler = request, prompts, scheduler
        self._tokenizer, self._envelope = tokenizer, envelope
        self.is_stream, self.timeout = request.stream, scheduler.timeout
        loop, self._news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, News]]()
        seed = secrets.randbits(32) if request.seed is None else request.seed

        def listen(index: int, news: News) -> None:
            loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

        self._jobs = [
            Job(
                ids or (tokenizer.eot_id,),
                request.sample,
                request.max_tokens,
                seed,
                number,
                Transcript(tokenizer, request.sample.stop),
                partial(listen, place * request.n + number),
                wants_top=bool(request.logprobs),
                wants_scores=request.echo and request.logprobs is not None and len(ids) > 1,
            )
            for place, ids in enumerate(prompts)
            for number in range(request.n)
        ]
        places = range(len(prompts))
        self._echoes = [self._echo(place) if request.echo else ("", []) for place in places]

    def __enter__(self) -> "Completion":
        self._scheduler.submit(self._jobs)
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.cancel(self._jobs)

    async def whole(self) -> dict[str, Any]:
        """Wait for all choices; raises `Refusal` as soon as one of them cannot be finished."""
        texts = [""] * len(self._jobs)
        spoken: list[list[Spoken]] = [[] for _ in self._jobs]
        finishes: list[str | None] = [None] * len(self._jobs)
        async for index, text, new, finish in self._pieces():
            texts[index] += text
            spoken[index] += new
            finishes[index] = finish
        said = map(Said, range(len(self._jobs)), texts, spoken, finishes)
        return self._envelope.whole(said, self._usage())

    async def events(self) -> AsyncIterator[bytes]:
        """Yield server-sent events; raises `Refusal` as soon as a choice cannot be finished."""
        more: dict[str, Any] = {"usage": None} if self._request.include_usage else {}
        async for said in self._pieces():
            for piece in self._envelope.pieces(said, **more):
                yield event(piece)
        if self._request.include_usage:
            yield event(self._envelope.last(self._usage()))

    async def _pieces(self) -> AsyncIterator[Said]:
        """Yield what the choices say next, until all end."""
        running = len(self._jobs)
        waits_for_scores = [job.wants_scores for job in self._jobs]
        if self._request.echo:
            for index, waits in enumerate(waits_for_scores):
                if not waits:
                    text, spoken = self._echoes[index // self._request.n]
                    yield Said(index, text, spoken, None)
        while running:
            index, news = await self._news.get()
            if isinstance(news, Refusal):
                raise news
            text, spoken = self._echoes[index // self._request.n]
            if isinstance(news, PromptScores):
                scored = [spoken[0].token, *news.tokens]
                places = [place for _, place in spoken]
                yield Said(index, text, list(map(Spoken, scored, places)), None)
                continue
            moved = [Spoken(token, len(text) + place) for token, place in news.tokens]
            running -= news.finish is not None
            yield Said(index, news.text, moved, news.finish)

    def _echo(self, place: int) -> tuple[str, list[Spoken]]:
        """The text of a prompt, and its tokens without their log-probabilities."""
        prompt, decoder = self._request.prompts[place], codecs.getincrementaldecoder("utf-8")
        decode, length, texts, spoken = decoder("replace").decode, 0, [], []
        for token in self._prompts[place]:
            spoken.append(Spoken(Token(token, math.nan, ()), length))
            texts.append(decode(self._tokenizer.token_bytes(token)))
            length += len(texts[-1])
        texts.append(decode(b"", final=True))
        return prompt if isinstance(prompt, str) else "".join(texts), spoken

    def _usage(self) -> dict[str, int]:
        drawn = sum(job.transcript.drawn for job in self._jobs)
        return usage(sum(map(len, self._prompts)), drawn)


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
