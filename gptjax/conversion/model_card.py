"""README.md of an exported model: what it is, how it was trained, how to load it.

The hub shows it as the model's page, and reads the lines between the two `---` at its top. It is
written to be published, so it names files and directories without the places where they lie.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptjax.config import Config, ModelConfig, to_json
from gptjax.conversion.weights import Weights
from gptjax.model.size import parameter_count
from gptjax.tokenizers.gpt1 import GPT1Tokenizer

CARD = "README.md"
_DEFAULT = Config()


@dataclass(frozen=True)
class ModelCard:
    """What is known about a model beside its weights; everything may be missing."""

    origin: str = ""
    """Where the weights come from, in words, without a path."""
    config: Config | None = None
    """The config of its run."""
    step: int | None = None
    """The step of the checkpoint."""
    is_averaged: bool = False
    """Whether the parameters are the running average."""
    data: str = ""
    """The training data, in words."""
    losses: tuple[tuple[str, float], ...] = ()
    """Names of losses, with their values in nats per token."""
    curve: Path | None = None
    """A picture of the losses over the steps, to be copied."""
    command: str = ""
    """The command that wrote the directory."""


def card_text(
    card: ModelCard, weights: Weights, name: str, dtype: str, notes: Sequence[str]
) -> str:
    """The whole card of the model `name`, stored as `dtype`, with notes for whoever serves it."""
    model = weights.model
    origin = f" from {card.origin}" if card.origin else ""
    parts = [
        _header(model),
        f"# {name}",
        f"A {'GPT-2' if model.norm == 'pre' else 'GPT-1'} of {parameter_count(model):,} "
        f"parameters, written by gptjax{origin}.",
        "## Model\n\n" + _table(_model_rows(weights, dtype)),
    ]
    if trained := list(_training_rows(card)):
        parts.append("## Training\n\n" + _table(trained))
    if card.curve:
        parts.append(f"![loss over the steps]({card.curve.name})")
    parts += [
        "## Licence\n\nNot stated yet. Write here, and in the first lines of this file, under "
        "which licence the model may be used; the licence of the training data counts too.",
        "## Use\n\n" + _usage(name),
    ]
    if isinstance(weights.tokenizer, GPT1Tokenizer):
        notes = [*notes, _GPT1_NOTE]
    if notes:
        parts.append("## Limits\n\n" + "\n".join(f"- {note}." for note in notes))
    if card.command:
        parts.append(f"## Made by\n\n```sh\n{card.command}\n```")
    if card.config:
        summary = "<details><summary>The config of its run</summary>"
        parts.append(
            f"{summary}\n\n```json\n{to_json(with_names_only(card.config))}```\n\n</details>"
        )
    return "\n\n".join(parts) + "\n"


_GPT1_NOTE = (
    "the tokenizer here cuts words by regexes where GPT-1's has ftfy and spaCy: rare words, "
    "capital letters that decide and damaged text get other ids than in training"
)


def _header(model: ModelConfig) -> str:
    kind = "gpt2" if model.norm == "pre" else "openai-gpt"
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["license: unknown  # state it before you publish", f"tags: [gptjax, {kind}]"]
    return "\n".join(["---", *lines, "---"])


def _model_rows(weights: Weights, dtype: str) -> Iterator[tuple[str, object]]:
    model, tokenizer = weights.model, weights.tokenizer
    yield "layers, heads, width", f"{model.n_layer}, {model.n_head}, {model.n_embd}"
    yield "context", f"{model.n_ctx:,} tokens"
    yield "tokenizer", f"{tokenizer.name}, {tokenizer.n_vocab:,} ids"
    final = "and a final norm" if model.final_norm else "no final norm"
    where = "before each sub-layer" if model.norm == "pre" else "after each residual sum"
    yield "layer norm", f"{where}, {final}"
    yield "activation", "GELU, tanh form" if model.activation == "gelu_tanh" else "GELU, exact"
    yield "biases", _biases(model)
    yield "head", "tied to the embedding" if model.tied_head else "a matrix of its own"
    yield "dropout", f"{model.embd_pdrop}, {model.attn_pdrop}, {model.resid_pdrop}"
    yield "stored as", dtype


def _biases(model: ModelConfig) -> str:
    if model.bias:
        return "everywhere" if model.qkv_bias else "everywhere but in query, key and value"
    return "in query, key and value only" if model.qkv_bias else "none"


def _training_rows(card: ModelCard) -> Iterator[tuple[str, object]]:
    if card.data:
        yield "data", card.data
    if card.step is not None:
        average = ", running average of the parameters" if card.is_averaged else ""
        yield "checkpoint", f"step {card.step:,}{average}"
    for what, value in card.losses:
        yield what, f"{value:.4f} nats per token"
    if card.config is None or card.step == 0:
        return
    optim, train = card.config.optim, card.config.train
    yield "batch", f"{train.batch_tokens:,} tokens, in windows of {card.config.context:,}"
    yield (
        "optimizer",
        f"{optim.name}, weight decay {optim.weight_decay}, clipped at {optim.clip_norm}",
    )
    rates = f"{optim.peak_lr:g} to {optim.final_lr:g}"
    yield "learning rate", f"{rates}, {optim.schedule}, {optim.warmup_steps:,} steps of warm-up"
    if card.config.task != _DEFAULT.task:
        yield "task", card.config.task


def _usage(name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

```sh
python -m gptjax.generate --run {name}
```"""


def _table(rows: Iterator[tuple[str, object]] | Sequence[tuple[str, object]]) -> str:
    lines = [f"| {what} | {value} |" for what, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def name_of(path: str | os.PathLike[str]) -> str:
    """The last name of a path, as a published file may say it.

    >>> name_of("/home/ada/runs/small@500"), name_of("data/"), name_of("-")
    ('small@500', 'data', '-')
    """
    return os.path.basename(os.path.abspath(path))


def with_names_only(config: Config) -> Config:
    """The config with names in place of all its paths, for a file that will be published."""
    data, train = config.data, config.train
    parts = [part.rpartition("=") for part in data.mixture]  # DIR=WEIGHT
    tests = [test.partition("=") for test in train.evaluate_on]  # NAME=FILE
    data = replace(
        data,
        path=name_of(data.path),
        tokenizer=data.tokenizer and name_of(data.tokenizer),
        inputs=tuple(map(name_of, data.inputs)),
        mixture=tuple(f"{name_of(path)}{equals}{weight}" for path, equals, weight in parts),
    )
    train = replace(
        train,
        init_from=train.init_from and name_of(train.init_from),
        evaluate_on=tuple(f"{test}{equals}{name_of(path)}" for test, equals, path in tests),
    )
    return replace(config, data=data, train=train)


def data_in_words(config: Config) -> str:
    """Where the data of a run come from, as its config says.

    >>> data_in_words(Config())
    'quickstart'
    """
    data = with_names_only(config).data
    if data.mixture:
        return ", ".join(data.mixture)
    source = data.hub or data.source or ", ".join(data.inputs)
    return f"{data.path} ({source})" if source else data.path
