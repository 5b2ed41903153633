"""Instructions as rows: which tokens are learnt, what is cut, and what is refused."""

import numpy as np
import pytest
from instructions import config_on, conversations, records
from small_runs import with_values

from gptjax.base.errors import UserError
from gptjax.config.presets import load_config
from gptjax.config.validation import find_problems
from gptjax.data.instruct import Instructions, form_of_instructions
from gptjax.data.packing import PackedRows
from gptjax.data.padding import padded_lengths
from gptjax.data.templates import turns_of
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
    assert found == expected * 8


def test_all_tokens_are_learnt_but_the_first(tmp_path):
    values = {"instruct.loss_on": "all", "train.batch_rows": 1}
    data = opened([TWO] * 10, tmp_path, **values)
    text = b"".join(
        turn.text.encode() + b"\0" * turn.is_response
        for turn in turns_of("chat", data.test_conversations[0])
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
    assert packed.train.filled > 0.8
    parts = [
        sorted(p for i in range(len(t)) for p in learnt(t[i])) for t in (packed.train, padded.train)
    ]
    assert parts[0] == parts[1]
    assert packed.test_conversations == padded.test_conversations


def test_an_example_that_is_too_long_loses_its_end_and_is_counted(tmp_path):
    long = {"instruction": "Count.", "input": "", "output": "1 " * 300}
    data = opened([*records(9), long], tmp_path, **{"data.val_fraction": 0.0})
    assert data.n_cut == 1
    assert any("1 are longer than the context" in line for line in data.announcement(0))
    every = [
        s for part in (data.train, data.test) for i in range(len(part)) for s in learnt(part[i])
    ]
    (cut,) = [stretch for stretch in every if bytes(stretch[:2]) == b"1 "]
    assert set(cut) == {*b"1 "}


@pytest.mark.parametrize("loss_on", ["responses", "last_response"])
def test_a_prompt_that_leaves_no_room_is_refused(tmp_path, loss_on):
    long = {"instruction": "x" * 400, "input": "", "output": "1"}
    with pytest.raises(UserError) as caught:
        opened([*records(9), long], tmp_path, **{"instruct.loss_on": loss_on})
    assert "1 of the examples have no response left within the context of 384" in str(caught.value)


@pytest.mark.parametrize("lengths", ["pack", "pad"])
def test_every_row_has_one_of_the_forms(tmp_path, lengths):
    config = config_on(records(60), tmp_path, **{"instruct.lengths": lengths})
    data = Instructions(config, None, None)
    config = data.resolved(config)
    form = form_of_instructions(config)
    forms = data.forms() or [form]
    shapes = [{name: (x.shape, x.dtype) for name, x in each.items()} for each in forms]
    assert {name: (x.shape, x.dtype) for name, x in form.items()} == shapes[-1]
    for part in (data.train, data.validation, data.test):
        for i in range(len(part)):
            batch = part.batch([i], [i])
            assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} in shapes
    lines = "\n".join(data.announcement(0))
    expected = padded_lengths(data.longest)[0] if lengths == "pad" else f"{data.longest:,} tokens"
    assert str(expected) in lines


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
