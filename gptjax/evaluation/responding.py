"""Responses to a file of instructions, scored and perhaps judged: `evaluate --on responses`."""

from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.data.conversations import read_conversations
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.judge import (
    describe_failures,
    judge_figures,
    judge_responses,
    require_client,
)
from gptjax.evaluation.response_page import write_responses
from gptjax.evaluation.responses import respond, response_figures, template_of
from gptjax.evaluation.setting import Setting


def measure_responses(setting: Setting) -> Figures:
    """The figures of `response_figures`, and of `judge_figures` if there is a judge.

    Reads what a run of task `instruct` reads: Alpaca's JSON or chats, the first `limit` of them.
    Raises `UserError` for data it cannot use, and for a judge that cannot answer; the Markdown file
    is written before the judge is asked.
    """
    path, run = Path(setting.data), setting.run
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: expected JSON, an array or lines, with instructions or chats"
        )
    require_fetched(path)
    if setting.judge is not None:
        require_client()  # fails now, not after the responses
    file_template, conversations = read_conversations(path)
    conversations = conversations[: setting.limit]
    template = template_of(run.config, file_template)
    responses = []
    with setting.bar(len(conversations), "responses") as advance:
        for response in respond(run, template, conversations, setting.scorer.cfg.dtype):
            responses.append(response)
            advance(1)
    figures, title = response_figures(responses), f"Responses of {run.origin} to {path}"
    if setting.markdown is not None:
        write_responses(Path(setting.markdown), title, responses)
    if setting.judge is None or setting.judge_model is None:
        return figures
    with setting.bar(len(responses), "grades") as advance:
        verdicts = judge_responses(setting.judge, setting.judge_model, responses, advance)
    if (failures := describe_failures(verdicts)) is not None:
        setting.note(failures)
    if setting.markdown is not None:
        write_responses(Path(setting.markdown), title, responses, list(map(str, verdicts)))
    return {**figures, **judge_figures(verdicts)}
