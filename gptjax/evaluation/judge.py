"""A judge of responses: another model, at any endpoint with OpenAI's chat completions.

It is asked for a whole number from 0 to 100, as in the exercise of Raschka's book (2024, chapter
7). A reply counts if it holds one number and that is in the range. Nothing is sent but by these
functions, and they are called only with --judge.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.data.templates import Message
from gptjax.evaluation.estimates import Figures, ratio_estimate
from gptjax.evaluation.responses import Response

TIMEOUT = 120.0  # seconds for one reply: a large model on a small machine takes a while
RETRIES = 2  # after a timeout, a broken connection, or a server that is busy or fails
SHOWN_FAILURES = 8
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TASK = """\
Grade how well a response does what was asked. Compare it with the reference response, which earns \
100. A response that is useless or wrong earns 0.

{asked}

Reference response:
{reference}

Response to grade:
{response}

Reply with one whole number from 0 to 100 and with nothing else."""


class Verdict(NamedTuple):
    """What became of one question to the judge."""

    score: int | None
    """0 to 100; None if there was no score."""
    failure: str = ""
    """Why there is none."""

    def __str__(self) -> str:
        return f"judge: {self.failure if self.score is None else self.score}"


def require_client() -> Any:
    """The package openai; raises `UserError` without it."""
    try:
        import openai
    except ImportError as error:
        raise UserError("--judge needs the package openai: pip install -e '.[judge]'") from error
    return openai


def judge_responses(
    url: str, model: str, responses: Sequence[Response], advance: Callable[[int], None]
) -> list[Verdict]:
    """Ask for the score of each response; `advance` is called with 1 after each.

    The key is that of the environment variable OPENAI_API_KEY, if it is set. Replies without a
    score, and errors that may pass, become failures. Raises `UserError` for what would fail every
    time: nobody at the address, a key that is refused, an unknown model.
    """
    openai = require_client()
    # the client insists on a key; servers without keys read none
    key = os.environ.get("OPENAI_API_KEY") or "none"
    verdicts: list[Verdict] = []
    with openai.OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=RETRIES) as client:
        for response in responses:
            try:
                verdicts.append(_ask(client, model, response))
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise UserError(f"the judge at {url} refuses: {error}") from error
                verdicts.append(Verdict(None, f"HTTP status {error.status_code}"))
            except openai.APIConnectionError as error:
                if not verdicts and not isinstance(error, openai.APITimeoutError):
                    raise UserError(
                        f"no judge answers at {url}: expected the address of an API such as "
                        "http://127.0.0.1:11434/v1"
                    ) from error
                verdicts.append(Verdict(None, "no answer"))
            except openai.OpenAIError as error:
                verdicts.append(Verdict(None, f"no answer of the API: {error}"[:200]))
            advance(1)
    return verdicts


def judge_figures(verdicts: Sequence[Verdict]) -> Figures:
    """The mean `judge_score`, 0 to 100, with its standard error, and counts."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    mean, error = ratio_estimate(scores, [1] * len(scores)) if scores else (None, None)
    return {
        "judge_score": mean,
        "judge_score_stderr": error,
        "judged": len(scores),
        "judge_failures": len(verdicts) - len(scores),
    }


def describe_failures(verdicts: Sequence[Verdict]) -> str | None:
    """One note on the responses without a score; None if there are none."""
    failed = [f"{n}: {v.failure}" for n, v in enumerate(verdicts, 1) if v.score is None]
    if not failed:
        return None
    more = f" ... and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    shown = "; ".join(failed[:SHOWN_FAILURES])
    return f"{len(failed)} of {len(verdicts)} responses have no score: {shown}{more}"


def read_score(reply: str) -> int:
    """The one number in a reply; raises `ValueError` without one from 0 to 100.

    >>> read_score("Score: 85."), read_score("100")
    (85, 100)
    """
    found = _NUMBER.findall(reply)
    if len(found) != 1 or not found[0].isdecimal() or not 0 <= int(found[0]) <= 100:
        raise ValueError(f"expected one whole number from 0 to 100, not {reply[:60]!r}")
    return int(found[0])


def _ask(client: Any, model: str, response: Response) -> Verdict:
    asked = "\n\n".join(map(_shown, response.conversation[:-1]))
    question = _TASK.format(asked=asked, reference=response.reference, response=response.text)
    try:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}]
        )
        reply = answer.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError, ValueError):  # ValueError: it is not JSON
        return Verdict(None, "an answer that is no chat completion")
    try:
        return Verdict(read_score(reply))
    except ValueError as error:
        return Verdict(None, str(error))


def _shown(message: Message) -> str:
    about = f"\n\nInput:\n{message.input}" if message.input else ""
    return f"Message of the {message.role}:\n{message.content}{about}"
