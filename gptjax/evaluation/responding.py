"""Responses to a file of instructions, scored and perhaps judged: `evaluate --on responses`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.config.schema import INSTRUCT
from gptjax.data.conversations import Conversation, read_conversations
from gptjax.data.instruct import Instructions, held_out_conversations
from gptjax.data.keeping import KEPT, read_kept
from gptjax.data.packing import Item
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

    Reads what a run of task `instruct` reads: Alpaca's JSON or chats, the first `limit` of them, or
    of the test split that the run made of the same file.
    Raises `UserError` for data it cannot use, and for a judge that cannot answer; the Markdown file
    is written before the judge is asked.
    """
    run = setting.run
    if setting.judge is not None:
        require_client()  # fails now, not after the responses
    template, conversations = _conversations(setting)
    responses = []
    with setting.bar(len(conversations), "responses") as advance:
        for response in respond(run, template, conversations, setting.scorer.cfg.dtype):
            responses.append(response)
            advance(1)
    figures, title = response_figures(responses), f"Responses of {run.origin} to {setting.data}"
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


def _conversations(setting: Setting) -> tuple[str, Sequence[Conversation]]:
    """The template to use, and what to respond to."""
    path, config = Path(setting.data), setting.run.config
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: expected JSON, an array or lines, with instructions or chats"
        )
    require_fetched(path)
    if setting.split is None:
        file_template, conversations = read_conversations(path)
        return template_of(config, file_template), conversations[: setting.limit]
    if setting.split != "test" or config.task != INSTRUCT:
        raise UserError(
            f"--split {setting.split}: --on responses knows only the split test, of a run that "
            f"follows instructions, and {setting.run.origin} has the task {config.task}. Leave "
            "--split out to respond to the whole file"
        )
    template, conversations = _held_out(setting)
    if not conversations:
        raise UserError(f"the test split of this run has no examples in {path}: leave --split out")
    return template, conversations[: setting.limit]


def _held_out(setting: Setting) -> tuple[str, Sequence[Conversation]]:
    """The template of a run and its whole test split, as it keeps it or else divided again."""
    run, config = setting.run, setting.run.config
    kept = None if run.directory is None else read_kept(run.directory, Item)
    if kept is not None:
        setting.require_file_of(kept)
        facts = kept.examples.facts  # the files themselves may have changed since
        return facts["template"], held_out_conversations(facts)
    if config.data.test_examples is not None:
        raise UserError(
            f"--split test: the test examples of {run.origin} had a file of their own, "
            f"{config.data.test_examples}, and there is no {KEPT} to compare it with: leave "
            "--split out, and give that file as --data"
        )
    instruct = replace(config.instruct, test_responses=None)
    config = replace(config, data=replace(config.data, examples=setting.data), instruct=instruct)
    data = Instructions(config, run.tokenizer, None)
    return data.template, data.test_conversations
