"""A tokenizer goes to Hugging Face's files and comes back, and transformers gives its ids."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjax.base.errors import UserError
from gptjax.conversion.tokenizer_files import TOKENIZER, read_tokenizer_files
from gptjax.conversion.tokenizer_writing import write_tokenizer_files
from gptjax.tokenizers.bpe import EOT, BPETokenizer, gpt2, train_bpe
from gptjax.tokenizers.gpt1 import GPT1Tokenizer, gpt1
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer, Tokenizer
from gptjax.tokenizers.registry import fingerprint

pytest.importorskip("tokenizers")

CORPUS = "She sells sea-shells on the sea-shore; we'll see 漢字, déjà vu, 1234.\n\n" * 9
ALPHABET = "zyxabc é漢🙂\n\"\\</>|'"
WORDS = GPT1Tokenizer(
    ["<unk>", *"abcdlo", *(f"{c}</w>" for c in "abcdlo.'\n"), "ab", "ab</w>", "abc</w>"],
    ["a b", "a b</w>", "ab c</w>"],
)


def trained() -> BPETokenizer:
    return train_bpe([CORPUS], 290)


def cut_otherwise() -> BPETokenizer:
    """With its end before its last id, another regex, and a word that no merge makes."""
    ranks = {token: i for i, token in enumerate([*map(bytes, zip(range(256))), b"ab", b"xyz"])}
    return BPETokenizer("bpe:263", ranks, r"\p{L}+|\p{N}{1,3}|\s|[^\s\p{L}\p{N}]+", 260, 263)


MADE: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "chars": lambda: CharTokenizer(ALPHABET),
    "bpe": trained,
    "other": cut_otherwise,
    "gpt1": lambda: WORDS,
}


@pytest.fixture(scope="module")
def published(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    directory = tmp_path_factory.mktemp("gpt2")
    for name, cached in {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }.items():
        shutil.copyfile(test_data / "tiktoken_cache" / cached, directory / name)
    return gpt2(directory)


@pytest.mark.parametrize("name", MADE)
def test_a_tokenizer_goes_out_and_comes_back_the_same(name, tmp_path):
    tokenizer = MADE[name]()
    write_tokenizer_files(tokenizer, tmp_path, 32)
    back = read_tokenizer_files(tmp_path, tokenizer.n_vocab, "gpt2")
    assert type(back) is type(tokenizer)
    assert fingerprint(back) == fingerprint(tokenizer)


@pytest.mark.parametrize("name", ["bpe", "gpt1"])
def test_the_two_older_files_say_the_same(name, tmp_path):
    tokenizer = MADE[name]()
    write_tokenizer_files(tokenizer, tmp_path, 32)
    (tmp_path / TOKENIZER).unlink()
    back = read_tokenizer_files(tmp_path, tokenizer.n_vocab, "gpt2")
    assert fingerprint(back) == fingerprint(tokenizer)


def auto_tokenizer(directory: Path) -> Any:
    """The directory's tokenizer as transformers loads it; it never asks the hub for a directory."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module", params=["bytes", "chars", "bpe", "other"])
def both(request, tmp_path_factory) -> tuple[Tokenizer, Any]:
    tokenizer = MADE[request.param]()
    directory = tmp_path_factory.mktemp("both")
    write_tokenizer_files(tokenizer, directory, 32)
    return tokenizer, auto_tokenizer(directory)


def agree(ours: Tokenizer, theirs: Any, text: str) -> None:
    """Both give the same ids for a text, and the same text for the ids."""
    ids = ours.encode(text).tolist()
    assert theirs(text, split_special_tokens=True)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids)


@given(text=st.text() | st.text("she lS\n'1é漢 ") | st.text(ALPHABET))
@example(f"the {EOT} and \x00  \r\n the\u00a0 sea xyz ab xyzab \ufeff")
@settings(deadline=None, max_examples=150)
def test_transformers_gives_the_same_ids_and_the_same_text(both, text):
    ours, theirs = both
    if isinstance(ours, CharTokenizer):
        text = "".join(character for character in text if character in ALPHABET)
    agree(ours, theirs, text)


def test_transformers_reads_the_end_of_a_text_as_one_id(both):
    ours, theirs = both
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eot_id
    assert theirs(f"ab{EOT}")["input_ids"] == [*ours.encode("ab"), ours.eot_id]
    assert theirs.model_max_length == 32
    assert theirs.decode([ours.eot_id], skip_special_tokens=True) == ""


def test_a_character_outside_the_alphabet_is_an_error_there_too(tmp_path):
    write_tokenizer_files(CharTokenizer("ab"), tmp_path, 32)
    with pytest.raises(Exception, match="Missing"):
        auto_tokenizer(tmp_path)("abc")


def test_gpt1_s_words_are_cut_nearly_as_ours_are(tmp_path):
    write_tokenizer_files(WORDS, tmp_path, 32)
    theirs = auto_tokenizer(tmp_path)
    text = "ABC, don't  ab.\n\n a cab — b's"
    ids = WORDS.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids, skip_special_tokens=True) == WORDS.decode(ids)


@pytest.mark.slow
def test_transformers_agrees_on_real_text_and_code(published, test_data, tmp_path):
    write_tokenizer_files(published, tmp_path, 1024)
    theirs = auto_tokenizer(tmp_path)
    code = [path.read_text() for path in Path(json.__file__).parent.glob("*.py")]
    for text in [(test_data / "tinyshakespeare.txt").read_text()[:200_000], *code]:
        agree(published, theirs, text)
    chance = random.Random(0)
    letters = [*map(chr, range(0xD800)), *map(chr, range(0xE000, 0x30000))]
    agree(published, theirs, "".join(chance.choices(letters, k=9999)))


@pytest.mark.slow
def test_transformers_cuts_nearly_all_lines_as_gpt1_s_tokenizer_does(test_data, tmp_path):
    pytest.importorskip("ftfy")
    gpt1_files = test_data / "gpt1"
    tokenizer = gpt1(gpt1_files)
    write_tokenizer_files(tokenizer, tmp_path, 512)
    assert fingerprint(read_tokenizer_files(tmp_path, 40478, "openai-gpt")) == fingerprint(
        tokenizer
    )
    theirs = auto_tokenizer(tmp_path)
    lines = (test_data / "tinyshakespeare.txt").read_text().splitlines()[:5000]
    same = [theirs(line)["input_ids"] == tokenizer.encode(line).tolist() for line in lines]
    assert sum(same) >= len(lines) - 1


def test_ids_after_the_tokens_are_unused(tmp_path):
    write_tokenizer_files(trained(), tmp_path, 32)
    back = read_tokenizer_files(tmp_path, 320, "gpt2")
    assert (back.n_vocab, back.eot_id, back.token_bytes(319)) == (320, 289, b"")


def test_special_tokens_of_fine_tuning_are_not_gpt1_s_vocabulary(tmp_path):
    write_tokenizer_files(WORDS, tmp_path, 32, ["_start_", "_extract_"])
    back = read_tokenizer_files(tmp_path, WORDS.n_vocab + 2, "openai-gpt")
    assert fingerprint(back) == fingerprint(WORDS)
    table = json.loads((tmp_path / TOKENIZER).read_text())
    ids = {added["content"]: added["id"] for added in table["added_tokens"]}
    assert ids == {"<unk>": 0, "_start_": WORDS.n_vocab, "_extract_": WORDS.n_vocab + 1}


def published_files(published: BPETokenizer, test_data: Path, directory: Path) -> None:
    """The two files as OpenAI's hub page has them, from those of the release."""
    cache = test_data / "tiktoken_cache"
    for name, cached in {
        "merges.txt": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "vocab.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }.items():
        shutil.copyfile(cache / cached, directory / name)


@pytest.mark.slow
def test_gpt2_s_published_files_are_gpt2_and_are_written_as_published(
    published, test_data, tmp_path
):
    published_files(published, test_data, tmp_path)
    read = read_tokenizer_files(tmp_path, 50257, "gpt2")
    assert read.name == "gpt2"
    assert fingerprint(read) == fingerprint(published)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer_files(read, out, 1024)
    assert (out / "merges.txt").read_text() == (tmp_path / "merges.txt").read_text()
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert json.loads((out / "vocab.json").read_text()) == vocab


def changed(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / TOKENIZER
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def swap(vocab: dict[str, int], first: str, second: str) -> None:
    vocab[first], vocab[second] = vocab[second], vocab[first]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update(normalizer={"type": "NFC"}), "changes text first, by NFC"),
        (lambda t: t["model"].update(type="Unigram"), "is a Unigram model"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "a blank before every text"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "cuts words by .'Whitespace'."),
        (lambda t: swap(t["model"]["vocab"], "Ġs", "he"), "do not grow in the order"),
        (lambda t: t["model"]["merges"].insert(30, ["s", "zz"]), "makes 'szz', which has no id"),
        (lambda t: t["model"]["vocab"].update({"never": 400}), "1 tokens come from no merge"),
        (lambda t: t["model"]["vocab"].pop("Ā"), "1 of 256 bytes have no token, such as 0x00"),
        (lambda t: t["model"].update(dropout=0.1), "drops merges at random"),
        (lambda t: t["model"].pop("merges"), "has no 'merges'"),
        (lambda t: t.update(model=[]), "has no attribute"),
    ],
)
def test_what_ours_cannot_say_is_refused_with_the_reason(change, reason, tmp_path):
    write_tokenizer_files(trained(), tmp_path, 32)
    changed(tmp_path, change)
    with pytest.raises(UserError, match=reason):
        read_tokenizer_files(tmp_path, 290, "gpt2")


def test_single_bytes_with_other_ids_than_their_values_are_refused(tmp_path):
    write_tokenizer_files(ByteTokenizer(), tmp_path, 32)
    changed(tmp_path, lambda table: swap(table["model"]["vocab"], "a", "b"))
    with pytest.raises(UserError, match="ids of single bytes"):
        read_tokenizer_files(tmp_path, 257, "gpt2")


def test_a_directory_without_a_tokenizer_or_with_too_large_a_one_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"has no tokenizer: expected tokenizer.json, or vocab.json"
    ):
        read_tokenizer_files(tmp_path, 290, "gpt2")
    write_tokenizer_files(trained(), tmp_path, 32)
    with pytest.raises(UserError, match="it has 290 ids, the model has 289"):
        read_tokenizer_files(tmp_path, 289, "gpt2")
