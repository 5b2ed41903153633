"""The samples of a command: every prompt so many times, together, by one model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from gptjax.base.errors import UserError
from gptjax.generation.continuing import FOR_READERS, Continued, continue_texts, in_order
from gptjax.generation.engine import Engine
from gptjax.generation.loaded import LoadedRun
from gptjax.generation.options import GenerateCommand
from gptjax.generation.prompts import Prompt
from gptjax.generation.requests import GenerationRequest
from gptjax.generation.text_requests import encode_for, fit_prompt, sample_key


class Samples(NamedTuple):
    """What is to be drawn, in order: all samples of the first prompt, then those of the next."""

    requests: list[GenerationRequest]
    cut: list[str]
    """Places of the prompts that are longer than the context."""


def plan_samples(run: LoadedRun, command: GenerateCommand, prompts: Sequence[Prompt]) -> Samples:
    """Encode all prompts. Raises a `UserError` that names the place of one that cannot be encoded.

    The key of a sample depends on the seed and on its number among those of its prompt, not on the
    prompt's line: a line gives the same text in every file.
    """
    context, stops = run.config.model.n_ctx, (run.tokenizer.eot_id,)
    keys = [sample_key(command.seed, number) for number in range(command.num_samples)]
    requests: list[GenerationRequest] = []
    cut: list[str] = []
    for prompt in prompts:
        try:
            ids = encode_for(run.tokenizer, run.config, prompt.text, command.raw)
        except UserError as error:
            raise UserError(f"{prompt.place}: {error}") from error
        if len(ids) > context:
            cut.append(prompt.place)
        ids = fit_prompt(ids, context, command.max_new_tokens)
        sample = replace(command.sample, prompt=prompt.text)
        requests += [GenerationRequest(ids, sample, key, stops) for key in keys]
    return Samples(requests, cut)


def draw_samples(
    run: LoadedRun, command: GenerateCommand, requests: Sequence[GenerationRequest]
) -> Iterator[Continued]:
    """The texts, sample by sample; those of the first unfinished sample come as they are drawn.

    Takes the run's parameters: they are deleted while the engine copies them.
    """
    capacity = min(command.max_batch, 1 << (len(requests) - 1).bit_length())  # few are compiled
    engine = Engine(run.config.model, run.params, capacity, dtype=command.dtype, donate=True)
    is_read = command.prompts is None and command.compare is None
    how = (command.slide, command.logprobs, FOR_READERS if is_read else None)
    return in_order(continue_texts(engine, run.tokenizer, requests, *how))


def fills_context(sample: Continued, wanted: int) -> bool:
    """Whether a whole sample ended because the context was full."""
    return sample.finish == "length" and len(sample.tokens) < wanted
