"""Where the data of a run comes from, and what a fine-tuning makes of examples."""

from dataclasses import dataclass
from typing import Literal

SPECIAL_IDS = 3  # GPT-1's start, delimiter and extract


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from, and how the text is prepared."""

    path: str = "data/quickstart"
    """Directory of prepared token shards, with their manifest."""
    tokenizer: str | None = None
    """gpt2, gpt1, bytes, chars (those of the corpus), bpe:N (a BPE of N tokens trained on the
    corpus), tiktoken:ENCODING, or a tokenizer's JSON file; None is the tokenizer of `path` (and
    bytes when preparing)."""
    source: Literal["stdlib"] | None = None
    """Text that is on every machine: stdlib is Python's own standard library."""
    inputs: tuple[str, ...] = ()
    """Files, directories and patterns to prepare, or - for standard input: text, JSON (lines or
    arrays), CSV, TSV or Parquet, each also compressed (gzip, zstd)."""
    val_fraction: float = 0.05
    """Share held out for validation (0 to 0.5): of the text, chosen by document hash, or of the
    examples, chosen by split_seed."""
    input_format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    """Format of the inputs; auto recognises each file by its content, json is lines or arrays."""
    text_field: str | None = None
    """Field of JSON, or column of CSV, TSV or Parquet, that holds the text; None means text, or
    else the only field of strings."""
    doc_separator: str | None = None
    r"""Separator between the documents of a text file (\n is a line break); None: one a file."""
    hub: str | None = None
    """Data set of the Hugging Face hub to prepare, in place of inputs and source: OWNER/NAME,
    OWNER/NAME:SUBSET or OWNER/NAME:SUBSET:SPLIT; @REVISION may follow NAME. Ready token files are
    fetched as they are; text is streamed."""
    mixture: tuple[str, ...] = ()
    """Prepared directories to mix in place of `path`, each DIR=WEIGHT, or DIR=WEIGHT:EPOCHS with
    the largest number of epochs allowed. Weight 0 is for a source that a change brings in."""
    mixture_changes: tuple[str, ...] = ()
    """New weights from a given step on, each as STEP=WEIGHT,WEIGHT,... in mixture order. A resumed
    run may change entries that have not taken effect yet."""
    document_mask: bool = False
    """Keep attention inside documents; a window may hold several. GPT-2 did not."""
    verify: Literal["sampled", "full", "off"] = "sampled"
    """Compare the shards with the hashes of their manifest at the start of a run: a sample of them,
    all, or none."""
    examples: str | None = None
    """File of labelled texts or instructions to fine-tune on: TSV, CSV, JSON (lines or an array) or
    Parquet."""
    val_examples: str | None = None
    """File of the validation split, in place of a share of examples."""
    test_examples: str | None = None
    """File of the test split, in place of a share of examples."""
    test_fraction: float = 0.1
    """Share of the examples held out for the test at the end (0 to 0.5)."""
    split_seed: int = 0
    """Seed of the division of examples into training, validation and test."""
    header: bool | None = None
    """Whether the first line of a table of examples names its columns; None recognises it. Without
    a header, columns are called 0, 1, 2, ..."""
    label_field: str | None = None
    """Field or column with the label; None means label, or else the column that is not text."""
    pair_field: str | None = None
    """Field or column with the second text of a pair."""
    choice_fields: tuple[str, ...] = ()
    """Fields or columns with the answers of a multiple choice; the label says which is right."""


@dataclass(frozen=True)
class ClassifyConfig:
    """How examples become the input of a classifier, and its loss."""

    form: Literal["single", "pair", "similarity", "choice"] = "single"
    """GPT-1's input transformation: one text; two texts around a delimiter; both orders of two
    texts, added up; or a text with each of several answers."""
    read: Literal["extract", "last"] = "extract"
    """Position whose state the head reads: GPT-1's extract token after a start token, or the last
    token of the bare text."""
    lm_weight: float = 0.5
    """Weight of the language-model loss beside the classification's; 0 leaves it out."""
    balance: Literal["none", "undersample", "weights"] = "none"
    """Treatment of unequal classes in training: none, as many examples of each class as the rarest
    has, or a weight for each class."""
    labels: tuple[str, ...] = ()
    """Names of the classes in the order of the head's outputs; the data set it."""
    rarer: str = ""
    """The rarer of two classes in training, whose F1 is f1; the data set it."""

    @property
    def special_ids(self) -> int:
        """Ids after the vocabulary: start, delimiter and extract, where the head reads extract."""
        return SPECIAL_IDS if self.read == "extract" else 0

    @property
    def sequences(self) -> int:
        """Sequences of an example; a choice has one for each label, and two before it has any."""
        return {"similarity": 2, "choice": len(self.labels) or 2}.get(self.form, 1)


@dataclass(frozen=True)
class InstructConfig:
    """How instructions become text, and which of its tokens are trained."""

    template: Literal["auto", "alpaca", "chat"] = "auto"
    """Words around instructions and responses: Alpaca's, or turns of a chat; auto goes by the
    file."""
    loss_on: Literal["responses", "last_response", "all"] = "responses"
    """Tokens with weight: those of all responses, of the last response, or all."""
    lengths: Literal["pack", "pad"] = "pack"
    """Fill rows with several examples that do not see each other, or pad each example to the
    longest of its batch."""
    test_responses: int | None = None
    """Most test examples that the run responds to at its end; None responds to all."""
