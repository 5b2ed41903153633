"""`POST /v1/chat/completions`, for models that are tuned on turns: its body and its answers.

The fields are those of OpenAI's API, with the samplers of `/v1/completions`. The prompt is made by
the template of the model's training, so it has the tokens that it had there. A conversation that
does not fit the context is refused, as OpenAI does: only the client knows which turns matter.
"""

import asyncio
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptjax.base.errors import UserError
from gptjax.data.templates import USER, Message, conversation_problem, prompt_tokens
from gptjax.serving.completion import Completion
from gptjax.serving.fields import Fields, shown
from gptjax.serving.protocol import (
    MAX_LOGPROBS,
    CompletionRequest,
    Limits,
    parse_delivery,
    parse_sample,
)
from gptjax.serving.refusals import Refusal, invalid
from gptjax.serving.responses import Envelope, Said, TokenTexts, finite
from gptjax.serving.service import ServedModel
from gptjax.serving.transcript import Spoken

ROLE_NAMES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
WHOLE, PIECE = "chat.completion", "chat.completion.chunk"


async def begin_chat(model: ServedModel, body: dict[str, Any]) -> Completion:
    """The completion that a body asks for; raises `Refusal`."""
    if model.template is None:
        message = f"{model.name} is not tuned on turns of a chat: use /v1/completions"
        raise Refusal(404, message, code="no_chat_model")
    messages, request = parse_chat(body, model.limits)
    prompt = await asyncio.to_thread(_encoded, model, model.template, messages)
    texts = TokenTexts(model.tokenizer)
    envelope = ChatEnvelope(model.name, texts, request.logprobs, request.token_ids)
    return Completion(request, [prompt], model.tokenizer, model.scheduler, envelope)


def _encoded(model: ServedModel, template: str, messages: list[Message]) -> tuple[int, ...]:
    try:
        ids = prompt_tokens(model.tokenizer, template, messages).tolist()
    except (UserError, ValueError) as error:  # tiktoken gives up on very long runs of blanks
        raise invalid("messages", f"the tokenizer cannot encode the messages: {error}") from None
    if len(ids) > model.context:
        message = (
            f"This model's maximum context length is {model.context} tokens. However, your "
            f"messages resulted in {len(ids)} tokens. Please reduce the length of the messages."
        )
        raise invalid("messages", message, "context_length_exceeded")
    return tuple(ids)


def parse_chat(body: Mapping[str, Any], limits: Limits) -> tuple[list[Message], CompletionRequest]:
    """Check a body: its messages, and the rest as a request whose prompt they will be.

    Raises `Refusal` with the first wrong field.
    """
    fields = Fields(body)
    messages = _messages(fields.take("messages"))
    n = fields.integer("n", 1, 1, limits.max_sequences)
    for name, value in (("tools", []), ("functions", []), ("response_format", {"type": "text"})):
        fields.neutral(name, value)
    longest = limits.max_tokens
    # the older name and the newer one
    older = fields.integer("max_tokens", longest, 1, longest)
    max_tokens = fields.integer("max_completion_tokens", older, 1, longest)
    sample = parse_sample(fields, max_tokens)
    stream, include_usage, seed = parse_delivery(fields)
    has_logprobs = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, 0, MAX_LOGPROBS)
    if top and not has_logprobs:
        raise invalid("top_logprobs", "top_logprobs are only for logprobs=true")
    token_ids = fields.flag("return_token_ids")
    fields.refuse_others()
    request = CompletionRequest(
        ("",), sample, max_tokens, n, seed, top if has_logprobs else None, echo=False,
        stream=stream, token_ids=token_ids, include_usage=include_usage,
    )  # fmt: skip
    return messages, request


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise invalid("messages", f"messages must be a list of messages, not {shown(value)}")
    messages = [_message(f"messages.[{place}]", given) for place, given in enumerate(value)]
    if problem := conversation_problem(messages, last=USER):
        raise invalid("messages", f"the conversation cannot be answered: {problem}")
    return messages


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise invalid(where, f"{where} must be an object with role and content, not {shown(value)}")
    fields = Fields(value)
    role, content = fields.take("role"), fields.take("content")
    if not isinstance(role, str) or role not in ROLE_NAMES:
        expected = "system, user or assistant"
        raise invalid(f"{where}.role", f"{where}.role must be {expected}, not {shown(role)}")
    fields.text("name")  # of a participant; templates have no place for it
    fields.neutral("refusal", "")
    fields.neutral("tool_calls", [])
    fields.refuse_others()
    return Message(ROLE_NAMES[role], _content(f"{where}.content", content))


def _content(where: str, value: Any) -> str:
    """A text, or the texts of a list of parts one after the other."""
    if isinstance(value, str):
        return value
    is_list = isinstance(value, list) and bool(value)
    if not is_list or not all(isinstance(part, dict) for part in value):
        expected = "a text or a list of parts of type text"
        raise invalid(where, f"{where} must be {expected}, not {shown(value)}")
    for part in value:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = shown(part.get("type"))
            message = f'{where} may only have parts {{"type": "text", "text": ...}}, not of {kind}'
            raise invalid(where, message)
    return "".join(part["text"] for part in value)


@dataclass(frozen=True)
class ChatEnvelope(Envelope):
    """Puts what is said into a `chat.completion`, or into the chunks of a stream."""

    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    _begun: set[int] = field(default_factory=set, init=False, repr=False)

    def whole(self, said: Iterable[Said], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [
            self._spoken(one, "message", {"role": "assistant", "content": one.text}, one.finish)
            for one in said
        ]
        return self._around(WHOLE, choices, usage=usage)

    def pieces(self, said: Said, **more: Any) -> Iterator[dict[str, Any]]:
        """The role before the first piece of a choice, the text, and why it ends in the end."""
        silent = said._replace(text="", spoken=())
        if said.index not in self._begun:
            self._begun.add(said.index)
            delta = {"role": "assistant", "content": ""}
            yield self._around(PIECE, [self._spoken(silent, "delta", delta)], **more)
        if said.text or said.spoken:
            delta = {"content": said.text}
            yield self._around(PIECE, [self._spoken(said, "delta", delta)], **more)
        if said.finish:
            yield self._around(PIECE, [self._spoken(silent, "delta", {}, said.finish)], **more)

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk that ends a stream with the usage."""
        return self._around(PIECE, [], usage=usage)

    def _spoken(
        self, said: Said, name: str, text: dict[str, str], finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if self.logprobs is not None and (said.spoken or name == "message"):
            content = [self._token(spoken, self.logprobs) for spoken in said.spoken]
            logprobs = {"content": content, "refusal": None}
        made = {"index": said.index, name: text, "logprobs": logprobs, "finish_reason": finish}
        return made | self._ids(said)

    def _token(self, spoken: Spoken, count: int) -> dict[str, Any]:
        token = spoken.token
        top = [self._one(i, logprob) for i, logprob in token.top[:count]]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.texts(token), self.texts.raw(token)
        return {"token": text, "logprob": finite(logprob), "bytes": raw}
