"""Responses to conversations: the tokens that are read, where they end, their figures, their page.

The model is a random small one; what it should write is found by whole forward passes.
"""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grading import grading
from live_server import SHAPE, TOKENIZER, all_logprobs, random_params
from responding_model import NEW, Letters, a_run, conversation

from gptjax.base.errors import UserError
from gptjax.config import InstructConfig
from gptjax.data.instruct import Instructions
from gptjax.data.keeping import KEPT
from gptjax.data.templates import Message, turn_tokens, turns_of
from gptjax.evaluation.responding import measure_responses
from gptjax.evaluation.response_page import write_responses
from gptjax.evaluation.responses import Response, respond, response_figures, template_of
from gptjax.evaluation.setting import Setting
from gptjax.generation.text_requests import encode_for

ALPACA = InstructConfig(template="alpaca")


def greedy(params, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(all_logprobs(params, tokens)[-1])))
    return tokens[len(prompt) :]


@pytest.mark.slow
def test_a_response_is_greedy_after_the_tokens_of_training():
    params, heard = random_params(), []
    asked = [conversation("hi"), conversation("a longer one"), conversation("b")]
    run = a_run(params)
    found = list(respond(run, "chat", asked, heard=lambda: heard.append(1)))
    assert [response.conversation for response in found] == asked
    assert heard
    for response, pair in zip(found, asked, strict=True):
        prompt, answer = turns_of("chat", pair)
        ids = turn_tokens(run.tokenizer, prompt).tolist()
        assert response.text == TOKENIZER.decode(greedy(params, ids, NEW))
        assert not response.ended
        trained = np.concatenate([ids, turn_tokens(run.tokenizer, answer)])
        assert trained[: len(ids)].tolist() == ids


def test_end_of_text_ends_a_response():
    params = random_params()
    row = params["wte"]["embedding"].at[TOKENIZER.eot_id, 0].set(100)
    (response,) = respond(a_run({**params, "wte": {"embedding": row}}), "chat", [conversation("a")])
    assert response.text == ""
    assert response.ended


@pytest.mark.slow
def test_a_prompt_beyond_the_context_keeps_its_end():
    params = random_params()
    run = a_run(params)
    (response,) = respond(run, "chat", [conversation("word " * 40)])
    ids = turn_tokens(run.tokenizer, turns_of("chat", conversation("word " * 40))[0]).tolist()
    kept = ids[-(SHAPE.n_ctx + 1 - NEW) :]
    assert response.text == TOKENIZER.decode(greedy(params, kept, NEW))


def test_a_run_keeps_its_template_and_others_take_the_files():
    tuned = a_run({})
    assert template_of(tuned.config, "alpaca") == "chat"
    assert template_of(replace(tuned.config, task="pretrain"), "alpaca") == "alpaca"


def test_a_prompt_is_an_instruction_for_a_run_that_follows_them_unless_it_is_raw():
    tuned, letters = replace(a_run({}).config, instruct=ALPACA), Letters()
    (turn,) = turns_of("alpaca", [Message("user", "hi")])
    in_template = turn_tokens(letters, turn).tolist()  # pyright: ignore
    bare = TOKENIZER.encode("hi").tolist()
    assert encode_for(letters, tuned, "hi") == in_template  # pyright: ignore
    assert encode_for(letters, tuned, "hi", raw=True) == bare  # pyright: ignore
    assert encode_for(letters, replace(tuned, task="pretrain"), "hi") == bare  # pyright: ignore


def test_a_loaded_run_answers_below_the_prompt():
    run = a_run(jax.tree.map(jnp.asarray, random_params()))
    ids = encode_for(run.tokenizer, run.config, "hi")
    answer = TOKENIZER.decode(greedy(run.params, ids, NEW))
    assert run.generate("hi", NEW, temperature=0) == f"hi\n\n{answer}"
    bare = TOKENIZER.decode(greedy(run.params, TOKENIZER.encode("hi").tolist(), NEW))
    assert run.generate("hi", NEW, temperature=0, raw=True) == f"hi{bare}"


def test_the_figures_are_means_over_responses():
    texts = [("one two", True), ("three  four\n", True), ("five", False)]
    references = ["one three", "three four", "six"]
    responses = [
        Response(conversation("q", reference), text, ended)
        for (text, ended), reference in zip(texts, references, strict=True)
    ]
    figures = response_figures(responses)
    assert figures["exact_match"] == pytest.approx(1 / 3)
    assert figures["rouge_l"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["rouge_l_stderr"] == pytest.approx(np.std([0.5, 1, 0], ddof=1) / 3**0.5)
    assert (figures["responses"], figures["ended"]) == (3, 2)


def test_the_page_holds_any_text_as_it_is(tmp_path):
    texts = ["a\n~~~\nb", "~~~~~~", "# no heading\n**x**", "", "```", "half \ud800", "<script>"]
    asked = Message("user", texts[0], texts[1])
    before = (Message("system", "be brief"), asked, Message("assistant", texts[2]))
    responses = [Response((*before, *conversation(text, text[::-1])), text, True) for text in texts]
    path = tmp_path / "page.md"
    write_responses(path, "Title", responses, [f"judge: {n}" for n in range(len(texts))])
    written = path.read_text("utf-8")
    # a reader of CommonMark: a fence is closed by one that is at least as long
    blocks, outside, fence = [], [], ""
    for line in written.split("\n"):
        match = re.fullmatch(r"(~{3,})(text)?", line)
        if not fence and match:
            fence = match[1]
            blocks.append([])
        elif fence and match and not match[2] and len(match[1]) >= len(fence):
            fence = ""
        elif fence:
            blocks[-1].append(line)
        else:
            outside.append(line)
    assert not fence
    found = ["\n".join(block) for block in blocks]
    expected = [
        text.encode("utf-8", "replace").decode()
        for r in responses
        for text in ("be brief", *texts[:3], r.text, r.reference, r.text)
    ]
    assert found == expected
    headings = [line for line in outside if line.startswith("#")]
    assert headings == ["# Title", *(f"## {n}" for n in range(1, len(texts) + 1))]
    assert "judge: 6" in written


@pytest.fixture
def setting(tmp_path) -> Setting:
    """Two of ten instructions of a file, for the small model."""
    rows = [{"instruction": f"say {word}", "output": word} for word in "abcdefghij"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    scorer = SimpleNamespace(cfg=SHAPE)
    return Setting(a_run(random_params()), scorer, str(path), limit=2)  # pyright: ignore


def test_a_file_is_answered_and_nothing_is_sent(setting, tmp_path):
    page = tmp_path / "page.md"
    figures = measure_responses(replace(setting, markdown=str(page)))
    assert figures["responses"] == 2
    assert "judge_score" not in figures
    assert "say b" in page.read_text()
    assert "say c" not in page.read_text()


def test_a_judge_grades_what_was_answered(setting, tmp_path):
    pytest.importorskip("openai")
    page, notes = tmp_path / "page.md", []
    with grading("40", "no idea") as grader:
        asked = replace(setting, judge=grader.url, judge_model="big", markdown=str(page))
        figures = measure_responses(replace(asked, note=notes.append))
    assert (figures["judge_score"], figures["judge_failures"]) == (40.0, 1)
    assert len(grader.bodies) == 2
    assert "judge: 40" in page.read_text()
    assert len(notes) == 1


@pytest.mark.slow
def test_the_responses_are_kept_if_no_judge_is_there(setting, tmp_path):
    pytest.importorskip("openai")
    page = tmp_path / "page.md"
    with grading() as grader:
        pass
    with pytest.raises(UserError, match=grader.url):
        measure_responses(replace(setting, judge=grader.url, judge_model="big", markdown=str(page)))
    assert "say a" in page.read_text()


def test_the_test_split_of_a_run_is_answered(setting, tmp_path):
    run, page = setting.run, tmp_path / "page.md"
    shares = replace(run.config.data, val_fraction=0.2, test_fraction=0.3)
    run = replace(run, config=replace(run.config, data=shares))
    figures = measure_responses(
        replace(setting, run=run, split="test", limit=None, markdown=str(page))
    )
    assert figures["responses"] == 3
    same = replace(run.config, data=replace(shares, examples=setting.data))
    held_out = Instructions(same, run.tokenizer, None).test_conversations
    assert all(f"\n{chat[0].content}\n" in page.read_text() for chat in held_out)
    with pytest.raises(UserError, match="only the split test"):
        measure_responses(replace(setting, split="train"))


@pytest.fixture
def divided(setting, tmp_path) -> Setting:
    """The test split of a run that has kept its examples; the test has a file of its own."""
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(json.dumps({"instruction": f"hear {x}", "output": x}) for x in "klm"))
    examples = {"examples": setting.data, "test_examples": str(held), "val_fraction": 0.2}
    config = replace(setting.run.config, data=replace(setting.run.config.data, **examples))
    run = replace(setting.run, config=config, directory=tmp_path)
    Instructions(config, run.tokenizer, None).keep(tmp_path)
    return replace(setting, run=run, split="test", limit=None, markdown=str(tmp_path / "page.md"))


@pytest.mark.parametrize("given", ["rows.jsonl", "held.jsonl"])
def test_a_test_split_of_its_own_file_is_answered(given, divided, tmp_path):
    assert measure_responses(replace(divided, data=str(tmp_path / given)))["responses"] == 3
    page = (tmp_path / "page.md").read_text()
    assert "hear k" in page
    assert "say" not in page
    assert measure_responses(replace(divided, limit=1))["responses"] == 1


def test_a_test_file_that_has_changed_is_not_read_again(divided, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(held.read_text().replace("hear", "forget"))
    assert measure_responses(divided)["responses"] == 3
    assert "forget" not in (tmp_path / "page.md").read_text()
    with pytest.raises(UserError, match="not the file that a run was trained on"):
        measure_responses(replace(divided, data=str(held)))
    (tmp_path / KEPT).unlink()
    with pytest.raises(UserError, match=r"had a file of their own, .*held\.jsonl"):
        measure_responses(divided)
