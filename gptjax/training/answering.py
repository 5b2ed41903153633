"""The end of an instruction run: its responses to the test split, as responses.md and as scores."""

import time
from typing import Any

from gptjax.evaluation.response_page import write_responses
from gptjax.evaluation.responses import respond, response_figures
from gptjax.training.finishing import Finished

PAGE = "responses.md"
LINE_SECONDS = 30.0  # between two lines of progress


def answer_test(finished: Finished) -> dict[str, Any] | None:
    """`val_loss`, and the figures of the responses to the test split; None after a stop request.

    Without a test split there is only `val_loss`.
    """
    run, say = finished.run, finished.say
    results: dict[str, Any] = {"val_loss": finished.val_loss}
    conversations = finished.data.test_conversations
    if not conversations:
        return results
    say(f"responding to {len(conversations):,} test examples with the {run.origin} ...")
    responses, next_line = [], time.monotonic() + LINE_SECONDS
    template, dtype = run.config.instruct.template, run.config.model.dtype
    for response in respond(run, template, conversations, dtype, finished.heartbeat):
        responses.append(response)
        if finished.stop:
            return None
        if time.monotonic() >= next_line:
            say(f"{len(responses):,}/{len(conversations):,} responses")
            next_line = time.monotonic() + LINE_SECONDS
    figures = response_figures(responses)
    path = finished.directory / PAGE
    write_responses(path, f"Responses of the {run.origin} to its test split", responses)
    say(
        f"test     exact match {figures['exact_match']:.4f}, ROUGE-L {figures['rouge_l']:.4f}, "
        f"{figures['ended']:,} of {len(responses):,} ended by themselves: {path}"
    )
    return {**results, **figures}
