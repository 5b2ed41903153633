"""Instructions as rows: which tokens are learnt, what is cut, and what is refused."""

import json
import re

import numpy as np
import pytest
from instructions import config_on, conversations, records
from small_runs import with_values

from gptjax.base.errors import UserError
from gptjax.config.presets import load_config
from gptjax.config.validation import find_problems
from gptjax.data.instruct import Instructions, form_of_instructions
from gptjax.data.packing import PackedRows
from gptjax.data.templates import Message, turns_of
from gptjax.tokenizers.gpt1 import NEWLINE, GPT1Tokenizer
from gptjax.tokenizers.plain import ByteTokenizer

EOT = ByteTokenizer.eot_id


def opened(found: list[dict], directory, **values) -> Instructions:
    return Instructions(config_on(found, directory, **values), None, None)


def learnt(row: dict[str, np.ndarray]) -> list[list[int]]:
    """The stretches of targets with weight in a row."""
    targets, weights = row["tokens"][1:], row["weights"]
    ends = np.flatnonzero(np.diff(weights != 0)) + 1
    parts = zip(np.split(targets, ends), np.split(weights, ends), strict=True)
    return [part.tolist() for part, weight in parts if weight[0]]


def answered(*texts: str) -> list[list[int]]:
    return [[*text.encode(), EOT] for text in texts]


TWO = {
    "messages": [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "Two."},
    ]
}


TAKEN = {"instruction": "Say it.", "input": "", "output": "It."}


@pytest.mark.parametrize("lengths", ["pack", "pad"])
@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("responses", answered("One.", "Two.")), ("last_response", answered("Two."))],
)
def test_responses_and_their_ends_are_learnt(tmp_path, lengths, loss_on, expected):
    values = {"instruct.lengths": lengths, "instruct.loss_on": loss_on, "train.batch_rows": 1}
    data = opened([TWO] * 10, tmp_path, **values)
    assert data.template == "chat"
    found = [part for i in range(len(data.train)) for part in learnt(data.train[i])]
    assert found == expected * 10  # equal prompts stay together


def test_all_tokens_are_learnt_but_the_first(tmp_path):
    values = {"instruct.loss_on": "all", "train.batch_rows": 1}
    data = opened([TWO] * 10, tmp_path, **values)
    text = b"".join(
        turn.text.encode() + b"\0" * turn.is_response
        for turn in turns_of("chat", [Message(**message) for message in TWO["messages"]])
    )
    for i in range(len(data.train)):
        for part in learnt(data.train[i]):
            assert part == [EOT if byte == 0 else byte for byte in text[1:]]


@pytest.mark.parametrize("found", [records(40), conversations(40)])
def test_packed_rows_hold_the_same_as_padded_ones(tmp_path, found):
    packed, padded = (
        opened(found, tmp_path, **{"instruct.lengths": lengths}) for lengths in ("pack", "pad")
    )
    assert isinstance(packed.train, PackedRows)
    assert packed.train.filled > 0.75
    parts = [
        sorted(p for i in range(len(t)) for p in learnt(t[i])) for t in (packed.train, padded.train)
    ]
    assert parts[0] == parts[1]
    assert packed.test_conversations == padded.test_conversations


def test_an_example_that_is_too_long_loses_its_end_and_is_counted(tmp_path):
    long = {"instruction": "Count.", "input": "", "output": "1 " * 300}
    data = opened([*records(9), long], tmp_path, **{"data.val_fraction": 0.0})
    assert any("1 example is longer than 384 tokens" in line for line in data.announcement(0))
    every = [
        s for part in (data.train, data.test) for i in range(len(part)) for s in learnt(part[i])
    ]
    (cut,) = [stretch for stretch in every if bytes(stretch[:2]) == b"1 "]
    assert set(cut) == {*b"1 "}


@pytest.mark.parametrize("loss_on", ["responses", "last_response"])
def test_prompts_that_leave_no_room_are_left_out_and_counted(tmp_path, loss_on):
    values = {"instruct.loss_on": loss_on, "data.test_fraction": 0.0}
    long = [{"instruction": "x" * n, "input": "", "output": "1"} for n in (300, 900, 600, 500)]
    data = opened([*records(9), *long], tmp_path, **values)
    (said,) = [line for line in data.announcement(0) if "left out" in line]
    assert "the context of 384 tokens. The longest, record 11 of " in said
    item = opened([long[1]] * 2, tmp_path, **{**values, "model.n_ctx": 2048}).items[0][0]
    assert f"--train.context {len(item.weights)}," in said
    assert sum(map(len, data.items)) == 9
    counted = [int(part) for part in re.findall(r"(\d+) (?:training|for validation)", said)]
    assert sum(counted) == 4
    with pytest.raises(UserError, match="training examples have no response within the context"):
        opened(long, tmp_path, **values)


def test_a_prompt_without_room_stays_in_the_test(tmp_path):
    long = [{"instruction": c * 400, "input": "", "output": "1"} for c in "abcdefgh"]
    (tmp_path / "test.json").write_text(json.dumps(long))
    values = {"data.test_examples": str(tmp_path / "test.json"), "instruct.test_responses": None}
    data = opened(records(20), tmp_path, **values)
    assert len(data.test_conversations) == 8
    assert not any("left out" in line for line in data.announcement(0))


def test_a_schedule_that_does_not_fit_says_what_made_it_short(tmp_path):
    config = config_on(records(20), tmp_path, **{"optim.warmup_steps": 10, "train.epochs": 2})
    with pytest.raises(UserError, match=r"2 epochs of \d+ training .* are \d steps: .*warmup"):
        Instructions(config, None, None).resolved(config)


@pytest.mark.parametrize("lengths", ["pack", "pad"])
def test_every_row_has_one_of_the_forms(tmp_path, lengths):
    config = config_on(conversations(60), tmp_path, **{"instruct.lengths": lengths})
    data = Instructions(config, None, None)
    config = data.resolved(config)
    form = form_of_instructions(config)
    forms = data.forms() or [form]
    shapes = [{name: (x.shape, x.dtype) for name, x in each.items()} for each in forms]
    assert {name: (x.shape, x.dtype) for name, x in form.items()} == shapes[-1]
    for i in range(len(data.train)):
        batch = data.train.batch([i], [i])
        assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} in shapes
    said = f"{len(shapes)} programs" if lengths == "pad" else f"rows of {data.longest:,} tokens"
    assert said in "\n".join(data.announcement(0))


def test_rows_of_a_tiny_file_are_short_and_an_epoch_reads_it_once(tmp_path):
    config = config_on(records(20), tmp_path, **{"model.n_ctx": 1024, "train.epochs": 1})
    data = Instructions(config, None, None)
    resolved = data.resolved(config)
    assert resolved.context < 1024
    assert resolved.train.max_steps == 1
    source = data.shuffled(0)
    rows = [source[i] for i in range(8)]
    read = sorted(stretch for row in rows for stretch in learnt(row))
    assert read == sorted(s for i in range(len(data.train)) for s in learnt(data.train[i]))


def prompts(data: Instructions) -> list[set[tuple[int, ...]]]:
    """The tokens before the first response of every example, split by split."""
    return [
        {tuple(item.tokens[: int(np.argmax(item.weights != 0)) + 1]) for item in part}
        for part in data.items
    ]


def test_equal_prompts_are_in_one_split_and_are_counted(tmp_path):
    found = records(60) + [{**record, "output": "Other."} for record in records(60)[:30]]
    data = opened(found, tmp_path)
    train, validation, test = prompts(data)
    assert not train & validation
    assert not (train | validation) & test
    assert len(test) > 2
    repeated = len(found) - len(train | validation | test)
    assert f"         {repeated} examples repeat the prompt of another" in "\n".join(
        data.announcement(0)
    )


def test_files_that_are_given_are_the_splits(tmp_path):
    for name, part in (("val", records(4, seed=1)), ("test", [*records(5, seed=2), TAKEN])):
        (tmp_path / name).write_text(json.dumps(part))
    given = {
        "data.val_examples": str(tmp_path / "val"),
        "data.test_examples": str(tmp_path / "test"),
        "instruct.test_responses": None,
    }
    data = opened([*records(30), TAKEN], tmp_path, **given)
    train, validation, test = prompts(data)
    assert (len(data.items[1]), len(data.items[2])) == (4, 6)
    assert not train & (validation | test)
    assert data.test_conversations[-1][0].content == TAKEN["instruction"]
    assert any("left out" in line for line in data.announcement(0))


def test_a_run_that_has_begun_needs_no_file(tmp_path):
    config = config_on(records(40), tmp_path)
    first = Instructions(config, None, None)
    first.keep(tmp_path)
    (tmp_path / "instructions.json").unlink()
    again = Instructions(config, first.tokenizer, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.template == "alpaca"
    assert again.test_conversations == first.test_conversations
    for i in range(len(first.train)):
        for name, x in first.train[i].items():
            np.testing.assert_array_equal(again.train[i][name], x)


def test_the_fingerprint_follows_template_tokens_and_weights(tmp_path):
    prints = {
        opened(records(20), tmp_path, **values).fingerprint
        for values in (
            {},
            {"instruct.template": "chat"},
            {"instruct.loss_on": "all"},
            {"data.split_seed": 1},
        )
    }
    assert len(prints) == 4


def test_unknown_characters_of_gpt1_do_not_end_a_response(tmp_path):
    """Its id 0 is both."""
    letters = list("abcdefghijklmnopqrstuvwxyz#:.,")
    tokens = ["<unk>", NEWLINE, *letters, *(f"{c}</w>" for c in letters)]
    given = GPT1Tokenizer(tokens, [])
    record = {"instruction": "say", "input": "", "output": "a é b"}
    data = Instructions(config_on([record] * 10, tmp_path), given, None)
    a, b = given.encode("a b").tolist()
    assert learnt(data.train[0])[:2] == [[a], [b, 0]]


def test_cudnn_and_packing_do_not_go_together():
    cudnn = {"model.attention": "cudnn", "model.dtype": "bfloat16"}
    names = {
        lengths: {name for problem in find_problems(config) for name in problem.fields}
        for lengths in ("pack", "pad")
        for config in [
            with_values(load_config("instruct_alpaca"), cudnn | {"instruct.lengths": lengths})
        ]
    }
    assert "instruct.lengths" in names["pack"]
    assert "instruct.lengths" not in names["pad"]
