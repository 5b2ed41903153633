"""Labelled texts become GPT-1's inputs; what is unclear or wrong in a file is refused."""

from collections import Counter

import numpy as np
import pytest
from labelled_files import STORY, as_lines, as_tsv, config_for, messages, opened, texts_of

from gptjax.base.errors import UserError
from gptjax.config.validation import find_problems
from gptjax.data.classify import form_of_labelled
from gptjax.data.transformations import fitted_lengths

START, DELIMITER, EXTRACT = 257, 258, 259  # after the bytes and their end-of-text


@pytest.fixture
def spam(tmp_path):
    path = tmp_path / "spam.tsv"
    path.write_text(as_tsv(messages()))
    return path


def written(tmp_path, rows, name="a.jsonl"):
    path = tmp_path / name
    path.write_text(as_lines(rows))
    return path


def all_examples(data):
    splits = data.train, data.validation, data.test
    return [split[i] for split in splits for i in range(len(split))]


def inputs(data) -> list[list[list[int]]]:
    """The sequences of every example without padding, sorted."""
    return sorted(
        [t[:n].tolist() for t, n in zip(e["tokens"], e["lengths"], strict=True)]
        for e in all_examples(data)
    )


def test_the_splits_together_are_the_file_with_its_labels(spam):
    data = opened(spam)
    texts = [text for split in ("train", "validation", "test") for text in texts_of(data, split)]
    labels = [data.labels[int(e["label"])] for e in all_examples(data)]
    assert sorted(zip(labels, texts, strict=True)) == sorted(messages())
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 12, 12]
    assert (data.labels, data.counts) == (("ham", "spam"), Counter(ham=24, spam=12))


def test_a_single_text_stands_between_start_and_extract(spam):
    assert inputs(opened(spam)) == sorted(
        [[START, *text.encode(), EXTRACT]] for _, text in messages()
    )
    assert inputs(opened(spam, read="last")) == sorted([list(t.encode())] for _, t in messages())


def test_a_pair_has_a_delimiter_and_similar_texts_come_in_both_orders(tmp_path):
    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "label": n % 3} for n in range(12)]
    path = written(tmp_path, rows)
    pairs = [(r["premise"].encode(), r["hypothesis"].encode()) for r in rows]
    one = [[START, *a, DELIMITER, *b, EXTRACT] for a, b in pairs]
    other = [[START, *b, DELIMITER, *a, EXTRACT] for a, b in pairs]
    assert inputs(opened(path, form="pair")) == sorted([a] for a in one)
    similar = opened(path, form="similarity")
    assert inputs(similar) == sorted(map(list, zip(one, other, strict=True)))
    assert similar.labels == ("0", "1", "2")
    shapes = {e["tokens"].shape[0] for e in all_examples(similar)}
    assert shapes == {form_of_labelled(similar.resolved(config_for(path, form="similarity")))[
        "tokens"].shape[0]}  # fmt: skip


def test_a_story_is_read_from_its_own_columns_without_flags(tmp_path):
    rows = [STORY | {"InputSentence1": f"Ann {n}.", "AnswerRightEnding": 1 + n % 2}
            for n in range(10)]  # fmt: skip
    names = list(STORY)
    path = tmp_path / "stories.csv"
    lines = [",".join(names), *(",".join(str(row[n]) for n in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    data = opened(path, form="choice", context=64)
    context = " ".join(str(rows[3][f"InputSentence{n}"]) for n in range(1, 5)).encode()
    room = 64 - 3
    expected = []
    for ending in ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"):
        answer = STORY[ending].encode()
        expected.append([START, *context[: room - len(answer)], DELIMITER, *answer, EXTRACT])
    assert expected in inputs(data)
    assert Counter(int(e["label"]) for e in all_examples(data)) == {0: 5, 1: 5}
    assert data.resolved(config_for(path, form="choice")).model.n_classes == 1


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 3], ["one", "two", "three"]])
def test_the_right_answer_is_a_number_from_0_or_1_or_its_text(labels, tmp_path):
    rows = [{"q": f"what is {n}?", "a": "one", "b": "two", "c": "three", "label": labels[n % 3]}
            for n in range(12)]  # fmt: skip
    path = written(tmp_path, rows)
    data = opened(path, form="choice", text_field="q", choice_fields=("a", "b", "c"))
    found = {}
    for example in all_examples(data):
        text = bytes(t for t in example["tokens"][0].tolist() if 0 < t < 256).decode()
        found[text.split("?")[0]] = int(example["label"])
    assert found == {f"what is {n}": n % 3 for n in range(12)}


def test_a_long_text_keeps_its_beginning_and_both_of_a_pair_keep_room():
    for lengths, room in [((9, 3), 8), ((3, 9), 8), ((9, 9), 8), ((9, 9), 7), ((1, 9), 2)]:
        kept = fitted_lengths(lengths, room)
        assert sum(kept) == room
        assert all(0 < k <= n for k, n in zip(kept, lengths, strict=True))
        assert all(k == n or k >= room // 2 for k, n in zip(kept, lengths, strict=True))
    assert (fitted_lengths([5], 4), fitted_lengths([2, 2], 9)) == ([4], [2, 2])


def test_too_long_examples_are_cut_and_counted(tmp_path):
    rows = [{"text": f"{n} " + "x" * (20 * (n % 2)), "label": n % 4 // 2} for n in range(16)]
    data = opened(written(tmp_path, rows), context=16)
    assert sum(example["lengths"][0] == 16 for example in all_examples(data)) == 8
    assert data.longest == 16
    for example in all_examples(data):
        n = int(example["lengths"][0])
        assert example["tokens"][0, [0, n - 1]].tolist() == [START, EXTRACT]
    assert any("8 examples are longer than 16 tokens" in line for line in data.announcement(0))


def test_equal_texts_are_in_one_split_and_counted(tmp_path):
    rows = messages(40) + messages(40)[:15] + [("ham", messages(40)[0][1])]
    path = tmp_path / "a.tsv"
    path.write_text(as_tsv(rows))
    data = opened(path)
    splits = [set(texts_of(data, name)) for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    said = " ".join(data.announcement(0))
    assert "16 examples repeat" in said
    assert "1 example repeats a text with another label" in said


def test_texts_with_two_labels_are_counted_by_their_rarer_one(tmp_path):
    rows = [("ham", "a"), ("spam", "a")] * 20 + messages(30)
    path = tmp_path / "a.tsv"
    path.write_text(as_tsv(rows))
    assert "20 examples repeat a text with another label" in " ".join(opened(path).announcement(0))


def test_numbers_are_one_class_however_written_and_capitals_are_told(tmp_path):
    names = ["0.0", "0", "Ham", "ham", "1.5", "9" * 5000]
    rows = [(names[n % 6], f"text {n}") for n in range(60)]
    path = tmp_path / "a.tsv"
    path.write_text(as_tsv(rows))
    data = opened(path, label_field="0", text_field="1")
    assert sorted(data.labels) == ["0", "1.5", names[5], "Ham", "ham"]
    assert "the classes 'Ham', 'ham' differ only by capital letters" in " ".join(
        data.announcement(0)
    )


def test_half_a_surrogate_pair_is_a_question_mark(tmp_path):
    rows = [{"text": f"some words \ud800 {n}", "label": f"{n % 2}\udfff"} for n in range(20)]
    data = opened(written(tmp_path, rows), tokenizer="bpe:260")
    assert data.labels == ("0?", "1?")


@pytest.mark.parametrize("header", [None, True, False])
def test_a_first_line_with_a_class_of_its_own_is_asked_about(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_text("kind,words\n" + "".join(f"{'ab'[n % 2]},text {n}\n" for n in range(6)))
    if header is None:
        with pytest.raises(UserError, match=r"line 1, .*'kind'.*is it a header\?.*header True"):
            opened(path)
        assert len(opened(path, labels=("kind", "a", "b"), test_fraction=0.0).labels) == 3
    else:
        assert len(opened(path, header=header).labels) == 3 - header


def test_a_pair_and_its_turned_pair_are_the_same_if_order_means_nothing(tmp_path):
    pairs = [(f"a {n}", f"b {n}") for n in range(20)]
    rows = [
        {"sentence1": a, "sentence2": b, "label": n % 2}
        for n, pair in enumerate(pairs)
        for a, b in (pair, pair[::-1])
    ]
    path = written(tmp_path, rows)
    similar = opened(path, form="similarity")
    assert "20 examples repeat" in " ".join(similar.announcement(0))
    parts = [set(texts_of(similar, name)) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert "repeat" not in " ".join(opened(path, form="pair").announcement(0))


def test_a_column_of_words_that_come_again_is_not_the_text(tmp_path):
    rows = [{"label": n % 2, "topic": "xy"[n // 2 % 2], "body": f"t {n}"} for n in range(12)]
    assert sorted(texts_of(opened(written(tmp_path, rows)), "train"))[0].startswith("t ")


def test_a_given_file_is_its_split_and_its_texts_are_nowhere_else(tmp_path, spam):
    held = tmp_path / "held.tsv"
    held.write_text(as_tsv([*messages()[:5], ("ham", "only here")]))
    data = opened(spam, test_examples=str(held))
    assert sorted(texts_of(data, "test")) == sorted([*(t for _, t in messages()[:5]), "only here"])
    rest = texts_of(data, "train") + texts_of(data, "validation")
    assert sorted(rest) == sorted(t for _, t in messages()[5:])
    assert len(data.validation) == 11
    both = opened(spam, test_examples=str(held), val_examples=str(held))
    assert len(both.test) == 6
    assert len(both.validation) == 0


def test_labels_are_numbers_or_words_and_their_column_is_found(tmp_path):
    rows = [{"id": n, "text": f"t {n}", "other": "a" * (n % 2), "label": 10 - n % 3} for n in
            range(12)]  # fmt: skip
    assert opened(written(tmp_path, rows)).labels == ("8", "9", "10")
    renamed = [{"id": r["id"], "body": r["text"], "kind": float(r["label"])} for r in rows]
    assert opened(written(tmp_path, renamed)).labels == ("8", "9", "10")
    turned = opened(written(tmp_path, renamed), labels=("10", "8", "9"))
    assert turned.labels == ("10", "8", "9")


def test_classes_are_balanced_in_training_only(spam):
    plain, less = opened(spam), opened(spam, balance="undersample")
    assert less.counts == Counter(ham=12, spam=12)
    assert set(texts_of(less, "train")) < set(texts_of(plain, "train"))
    assert texts_of(less, "test") == texts_of(plain, "test")
    weighted = opened(spam, balance="weights")
    found = {int(e["label"]): float(e["class_weight"]) for e in all_examples(weighted)}
    assert found == pytest.approx({0: 36 / (2 * 24), 1: 36 / (2 * 12)})


def test_the_run_gets_its_shape_and_its_length_from_the_data(spam):
    config = config_for(spam)
    data = opened(spam)
    found = data.resolved(config)
    assert (found.model.n_vocab, found.model.n_special, found.model.n_classes) == (257, 3, 2)
    assert found.classify.labels == ("ham", "spam")
    assert (found.context, found.train.max_steps, found.batch_rows) == (data.longest, 10, 8)
    assert data.epochs(5) == 1.0
    lengths = [form["tokens"].shape[1] for form in data.forms()]
    assert f"lengths  {', '.join(map(str, lengths))} tokens" in " ".join(data.announcement(0))


def test_validation_is_asked_for_only_if_there_is_some(spam):
    with pytest.raises(UserError, match="no example for validation"):
        opened(spam, val_fraction=0.0).validation_sets()
    [validation] = opened(spam).validation_sets()
    assert len(validation.examples) == 12


GOOD = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(8)]
REFUSED = {
    "no text": ([*GOOD, {"text": " ", "label": "a"}], {}, ["line 9", "text"]),
    "no label": ([*GOOD, {"text": "x"}], {}, ["line 9", "label"]),
    "NaN in place of a label": ([*GOOD, {"text": "x", "label": float("nan")}], {},
                                ["line 9", "label"]),
    "infinity in place of a label": ([*GOOD, {"text": "x", "label": float("-inf")}], {},
                                     ["line 9", "label"]),
    "NaN in place of a text": ([*GOOD, {"text": float("nan"), "label": "a"}], {},
                               ["line 9", "text"]),
    "text and label in one column": (GOOD, {"text_field": "label", "label_field": "label"},
                                     ["'label'", "two parts"]),
    "a pair of one column": (GOOD, {"form": "pair", "text_field": "text", "pair_field": "text"},
                             ["'text'", "two parts"]),
    "an answer twice": (GOOD, {"form": "choice", "choice_fields": ("text", "text"),
                               "label_field": "label", "text_field": "label"}, ["two parts"]),
    "a label without a column": (GOOD, {"label_field": "kind"}, ["'kind'", "text, label"]),
    "one class": ([r | {"label": "a"} for r in GOOD], {}, ["two classes", "8 a"]),
    "two columns of labels": (
        [r | {"label_fine": str(n // 2)} for n, r in enumerate(GOOD)], {},
        ["label_fine", "4 classes", "2 classes: 4 a, 4 b", "--data.label-field"],
    ),
    "two labels": (
        [r | {"label": ["a", "b"] if n < 3 else ["a"]} for n, r in enumerate(GOOD)], {},
        ["3 with 2 labels", "5 with 1 label"],
    ),
    "two texts": ([r | {"title": f"u {n}"} | {"body": r["text"]} for n, r in enumerate(GOOD)],
                  {"text_field": "words"}, ["'words'", "title, body"]),
    "an empty class": (GOOD, {"labels": ("a", "b", "c")}, ["'c'", "no training example"]),
    "numbers of all sizes": ([{"text": f"t {n}", "label": n / 7} for n in range(20)], {},
                             ["20 classes", "--data.label-field"]),
    "no second text": (GOOD, {"form": "pair"}, ["--data.pair-field"]),
    "no story": (GOOD, {"form": "choice"}, ["ROCStories", "--data.choice-fields"]),
    "an answer out of range": (
        [{"text": f"t {n}", "x": f"x {n}", "y": f"y {n}", "label": n % 4} for n in range(8)],
        {"form": "choice", "choice_fields": ("x", "y")}, ["line 3", "'2'"],
    ),
    "answers that count from 0 or 1": (
        [{"text": f"t {n}", "x": f"x {n}", "y": f"y {n}", "z": "z", "label": 1 + n % 2}
         for n in range(8)],
        {"form": "choice", "choice_fields": ("x", "y", "z")}, ["from 0 or from 1"],
    ),
    "no room": (GOOD, {"context": 2}, ["context of 2"]),
    "nothing to train on": (GOOD, {"test_examples": "a.jsonl"}, ["held-out file too"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_makes_no_classification_is_refused(name, tmp_path, monkeypatch):
    rows, fields, hints = REFUSED[name]
    fields = {"val_fraction": 0.0, "test_fraction": 0.0, **fields}
    path = written(tmp_path, rows)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        opened(path, **fields)
    assert [hint for hint in hints if hint not in str(caught.value)] == []


def test_a_held_out_label_must_be_one_of_training(tmp_path, spam):
    held = tmp_path / "held.tsv"
    held.write_text(as_tsv([("ham", "a"), ("eggs", "b")]))
    with pytest.raises(UserError, match=r"held\.tsv, line 2, has the label 'eggs'.*40 ham"):
        opened(spam, val_examples=str(held), test_fraction=0.0)


def test_characters_that_training_does_not_have_are_refused_with_their_place(tmp_path, spam):
    held = tmp_path / "held.tsv"
    held.write_text(as_tsv([("ham", "lunch"), ("spam", "\u00e9")]))
    with pytest.raises(UserError, match=r"held\.tsv, line 2: '\u00e9'"):
        opened(spam, val_examples=str(held), tokenizer="chars")


def test_examples_are_needed():
    with pytest.raises(UserError, match=r"--data\.examples FILE"):
        opened(None)


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"form": "pair", "read": "last"}, "classify.read"),
        ({"pair_field": "b"}, "data.pair_field"),
        ({"choice_fields": ("a", "b")}, "data.choice_fields"),
        ({"form": "choice", "choice_fields": ("a",)}, "data.choice_fields"),
        ({"form": "choice", "balance": "weights"}, "classify.balance"),
        ({"labels": ("a", "b", "a")}, "classify.labels"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "data.val_fraction"),
        ({"input_format": "text"}, "data.input_format"),
        ({"test_examples": ""}, "data.test_examples"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, broken, tmp_path):
    [problem] = find_problems(config_for(tmp_path / "a.tsv", **fields))
    assert problem.fields[0] == broken


def test_the_messages_are_divided_as_announced(test_data):
    data = opened(test_data / "sms_spam.tsv", val_fraction=0.1, test_fraction=0.2, context=None)
    assert [len(data.train), len(data.validation), len(data.test)] == [3902, 557, 1115]
    shares = [
        np.mean([split[i]["label"] for i in range(len(split))])
        for split in (data.train, data.validation, data.test)
    ]
    np.testing.assert_allclose(shares, 747 / 5574, atol=1 / 557)
    assert "403 examples repeat" in " ".join(data.announcement(0))
