"""Responses of a model to the prompts of conversations, beside the references that they have.

The prompt has the tokens that it has in training, decoding is greedy, and a response ends with
end-of-text, after `sample.max_new_tokens`, or when the context is full.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from gptjax.config import Config
from gptjax.config.schema import INSTRUCT
from gptjax.data.conversations import Conversation
from gptjax.data.templates import prompt_tokens
from gptjax.evaluation.choices import share_stderr
from gptjax.evaluation.estimates import Figures, ratio_estimate
from gptjax.evaluation.rouge import is_exact_match, rouge_l
from gptjax.generation.continuing import Continued, continue_texts, whole_texts
from gptjax.generation.engine import Engine
from gptjax.generation.loaded import LoadedRun
from gptjax.generation.requests import GenerationRequest
from gptjax.generation.text_requests import fit_prompt, sample_key

MOST_AT_ONCE = 16  # sequences that are decoded together


class Response(NamedTuple):
    """What a model wrote where the last message of a conversation stands."""

    conversation: Conversation
    text: str
    ended: bool
    """Whether it ended by itself, with end-of-text."""

    @property
    def reference(self) -> str:
        """The response of the conversation."""
        return self.conversation[-1].content

    @property
    def rouge_l(self) -> float:
        """Likeness to the reference, 0 to 1."""
        return rouge_l(self.text, self.reference)

    @property
    def is_exact(self) -> bool:
        """Whether it is the reference, but for blanks."""
        return is_exact_match(self.text, self.reference)


def template_of(config: Config, file_template: str) -> str:
    """The words around instructions that a model knows; of one that knows none, the file's own."""
    is_tuned = config.task == INSTRUCT and config.instruct.template != "auto"
    return config.instruct.template if is_tuned else file_template


def respond(
    run: LoadedRun,
    template: str,
    conversations: Sequence[Conversation],
    dtype: str = "float32",
    heard: Callable[[], None] = lambda: None,
) -> Iterator[Response]:
    """Yield the response to each conversation, in order; `heard` is called when tokens have come.

    A prompt that is longer than the context keeps its end.
    """
    cfg, tokenizer = run.config.model, run.tokenizer
    sample = replace(run.config.sample, temperature=0.0, repetition_penalty=1.0, stop=())
    requests, key = [], sample_key(0)
    for conversation in conversations:
        prompt = prompt_tokens(tokenizer, template, conversation[:-1]).tolist()
        prompt = fit_prompt(prompt, cfg.n_ctx, sample.max_new_tokens)
        requests.append(GenerationRequest(prompt, sample, key, (tokenizer.eot_id,)))
    engine = Engine(cfg, run.params, min(MOST_AT_ONCE, max(1, len(requests))), dtype=dtype)

    def pieces() -> Iterator[Continued]:
        for piece in continue_texts(engine, tokenizer, requests):
            heard()
            yield piece

    for whole in whole_texts(pieces()):
        yield Response(conversations[whole.number], whole.text, whole.finish == "stop")


def response_figures(responses: Sequence[Response]) -> Figures:
    """`exact_match` and `rouge_l` with standard errors, and the number that `ended` by itself."""
    exact = statistics.fmean(response.is_exact for response in responses)
    alike, error = ratio_estimate([r.rouge_l for r in responses], [1] * len(responses))
    return {
        "exact_match": exact,
        "exact_match_stderr": share_stderr(exact, len(responses)),
        "rouge_l": alike,
        "rouge_l_stderr": error,
        "responses": len(responses),
        "ended": sum(response.ended for response in responses),
    }
