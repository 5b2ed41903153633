"""Classification of short messages: pretrained or not, with and without the auxiliary loss.

The model is pretrained on the training messages' text alone. Every side reads the same division of
the file, and every figure is of the test split. Beside them is naive Bayes, in NumPy.
"""

import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figures, Plan, Report, Skipped, Spread, column, plain_environment

SEEDS = (1337, 1, 2)
SPLIT_SEED = 1  # the settings of the configs were chosen on the split of seed 0
SHAPE = ("--model.n-layer", "4", "--model.n-head", "4", "--model.n-embd", "128")
SHAPE += ("--model.n-ctx", "256")
DROPOUT = ("--model.embd-pdrop", "0.1", "--model.attn-pdrop", "0.1", "--model.resid-pdrop", "0.1")
TOY_SHAPE = ("--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "32")
TOY_SHAPE += ("--model.n-ctx", "64", "--model.unroll", "1")
STEPS = 320  # of pretraining: 5 epochs, after which the validation loss rises
PRETRAINING = (
    *("--config", "quickstart", *DROPOUT, "--train.max-steps", str(STEPS)),
    *("--train.eval-every-steps", "80", "--train.save-every-steps", "80"),
    *("--train.sample-every-steps", "0", "--sample.prompt", ""),
)
LIKE_GPT_2 = ("--model.norm", "pre", "--model.final-norm", "--model.scale-residual-init")
ALONE = ("--classify.lm-weight", "0")
# each side: whether it is pretrained, and its flags; without pretraining the shape is the same
SIDES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "spam_classify_gpt1, pretrained": (True, ("--config", "spam_classify_gpt1")),
    "the same without the auxiliary loss": (True, ("--config", "spam_classify_gpt1", *ALONE)),
    "spam_classify_gpt1 with GPT-2's norms, from random weights": (
        False,
        ("--config", "spam_classify_gpt1", *LIKE_GPT_2),
    ),
    "that without the auxiliary loss": (
        False,
        ("--config", "spam_classify_gpt1", *LIKE_GPT_2, *ALONE),
    ),
    "spam_classify, pretrained": (True, ("--config", "spam_classify")),
    "spam_classify, from random weights": (False, ("--config", "spam_classify")),
}
BAYES = "naive Bayes of words and pairs of words"
SMOOTHING = 1.0  # Laplace
WORD = re.compile(r"\w+|[^\w\s]")
TOY = [("spam", f"win {n} pounds now, call {n}{n}") for n in range(40)]
TOY += [("ham", f"see you at {n}, I will call later") for n in range(160)]


def classify(plan: Plan) -> None:
    """A small GPT pretrained on the training messages, then each side with three seeds."""
    report = Report(
        "classify",
        "Spam among short messages: figures of the test split, three seeds",
        ("side", "accuracy, %", "F1 of spam", "seconds"),
    )
    file = plan.scratch / "toy.tsv" if plan.quick else plan.labelled
    if file is None:
        raise Skipped("classify needs its messages: --labelled sms_spam.tsv")
    if plan.quick:
        file.write_text("".join(f"{label}\t{text}\n" for label, text in TOY))
    train, test = _divided(file)
    texts = plan.scratch / "messages.txt"
    texts.write_text("".join(text + "\n" for text, _ in train))
    leaked = {text for text, _ in train} & {text for text, _ in test}
    if leaked:
        raise RuntimeError(f"{len(leaked)} messages of the test are in the training")
    started = time.perf_counter()
    base = _pretrained(plan, texts)
    seconds = time.perf_counter() - started
    report.note(
        f"{len(train):,} messages for training, {len(test):,} for the test; pretrained on the "
        f"former's text for {seconds:.0f} s, with its preparation and compilation"
    )
    bayes = naive_bayes(train, test)
    report.rows.append((BAYES, f"{bayes['accuracy']:.2%}", f"{bayes['f1']:.4f}", ""))
    report.figures[BAYES] = bayes
    sides, seeds = list(SIDES.items()), SEEDS
    if plan.quick:
        sides, seeds = sides[:3:2], SEEDS[:1]
    for side, (is_pretrained, words) in sides:
        start = ["--train.init-from", str(base)] if is_pretrained else _shape(plan)
        if plan.quick and not is_pretrained:
            start += ["--data.tokenizer", "bytes"]  # too little text for a BPE of 1,024
        rounds = [_fine_tuned(plan, file, [*words, *start], seed) for seed in seeds]
        shown = [
            Spread.of(column(rounds, name)).text(pattern)
            for name, pattern in (("accuracy", "{:.2%}"), ("f1", "{:.4f}"), ("seconds", "{:.0f}"))
        ]
        report.rows.append((side, *shown))
        report.figures[side] = {name: column(rounds, name) for name in rounds[0]}
    report.publish(plan.out)


def _divided(file: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Text and label of the training and of the test, divided as both configs divide them."""
    from gptjax.config.presets import load_config
    from gptjax.data.classify import divided_rows

    config = load_config("spam_classify_gpt1")
    data = replace(config.data, examples=str(file), split_seed=SPLIT_SEED)
    if load_config("spam_classify").data != config.data:
        raise RuntimeError("the two configs divide the messages differently")
    (train, _, test), _ = divided_rows(replace(config, data=data))
    return [(r.texts[0], r.label) for r in train], [(r.texts[0], r.label) for r in test]


def _gptjax(plan: Plan, verb: str, words: Sequence[object]) -> None:
    """Run a command of this checkout; raises `RuntimeError` with its last words if it fails."""
    command = [sys.executable, "-m", f"gptjax.{verb}", *map(str, words)]
    environment = {**plain_environment(), "XDG_CACHE_HOME": str(plan.scratch / "cache")}
    done = subprocess.run(
        command, cwd=plan.scratch, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-2000:]}")


def _pretrained(plan: Plan, texts: Path) -> Path:
    """A run that has learned the language of the messages, one document each."""
    data, run = plan.scratch / "data", plan.scratch / "pretrained"
    size = 300 if plan.quick else 1024
    words = ["--input", texts, "--format", "text", "--doc-separator", r"\n"]
    _gptjax(plan, "prepare", [*words, "--tokenizer", f"bpe:{size}", "--out", data])
    few = ["--train.max-steps", "50", "--train.eval-every-steps", "0"] if plan.quick else []
    few += _shape(plan)
    there = ["--data.path", data, "--data.source", "None", "--data.tokenizer", "None"]
    _gptjax(plan, "train", [*PRETRAINING, *there, *few, "--run-dir", run])
    return run


def _shape(plan: Plan) -> list[str]:
    """The shape of every side, in flags."""
    return list(TOY_SHAPE if plan.quick else SHAPE)


def _fine_tuned(plan: Plan, file: Path, words: Sequence[str], seed: int) -> Figures:
    """Fine-tune in one command; what its results.json says, and how long it took."""
    run = plan.scratch / "run"
    few = ["--train.epochs", "1"] if plan.quick else []
    own = ["--data.examples", file, "--data.split-seed", SPLIT_SEED, "--train.seed", seed]
    own += ["--run-dir", run, "--fresh", *few]
    started = time.perf_counter()
    _gptjax(plan, "train", [*words, *own])
    seconds = time.perf_counter() - started
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return {"accuracy": found["test_accuracy"], "f1": found["test_f1"], "seconds": seconds}


def naive_bayes(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> Figures:
    """Multinomial naive Bayes of words and pairs of words, in lower case, smoothed by Laplace.

    Words that the training has not seen are left out. `f1` is that of the rarer class.
    """
    labels = sorted({label for _, label in train})
    vocabulary: dict[str, int] = {}
    for text, _ in train:
        for term in _terms(text):
            vocabulary.setdefault(term, len(vocabulary))
    counts = np.full((len(labels), len(vocabulary)), SMOOTHING)
    for text, label in train:
        for term, n in Counter(_terms(text)).items():
            counts[labels.index(label), vocabulary[term]] += n
    prior = np.log([sum(own == label for _, own in train) / len(train) for label in labels])
    weights = np.log(counts / counts.sum(1, keepdims=True))
    confusion = np.zeros((len(labels), len(labels)))
    for text, label in test:
        known = [vocabulary[term] for term in _terms(text) if term in vocabulary]
        guess = int((prior + weights[:, known].sum(1)).argmax())
        confusion[labels.index(label), guess] += 1
    rarer = int(confusion.sum(1).argmin())
    right = confusion[rarer, rarer]
    either = confusion[rarer].sum() + confusion[:, rarer].sum()
    return {"accuracy": np.trace(confusion) / confusion.sum(), "f1": float(2 * right / either)}


def _terms(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
