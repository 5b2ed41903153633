"""GPT-1's tokenizer: the original's standardisation, words and merges, and a copy that travels."""

import json
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import read_manifest, read_tokenizer
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.tokenizers.english import words_of
from gptjax.tokenizers.gpt1 import GPT1Tokenizer, gpt1, standardise
from gptjax.tokenizers.registry import fingerprint, make_tokenizer, tokenizer_from_json

pytest.importorskip("ftfy")

MERGES = ["t h", "th e</w>", "h e</w>", "s a", "sa i", "sai d</w>", "' s</w>", "n o"]
LETTERS = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
TOKENS = [
    "<unk>",
    *LETTERS,
    *(letter + "</w>" for letter in LETTERS),
    *(merge.replace(" ", "") for merge in MERGES),
    "\n</w>",
]


@pytest.fixture
def toy() -> GPT1Tokenizer:
    return GPT1Tokenizer(TOKENS, MERGES)


@pytest.fixture(scope="module")
def published(test_data: Path) -> GPT1Tokenizer:
    return gpt1(test_data / "gpt1")


def tokens(tokenizer: GPT1Tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[i] for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("text", "standard"),
    [
        ("He said\u2014no\u2026 \u201cYes!!\u201d", 'He said - no... " Yes !! "'),
        ("a  b\t c \n\n  d", "a b c \n d"),
        ("(x)[y]{z} a/b c_d", " ( x )  [ y ]  { z }  a / b c _ d".replace("  ", " ").strip()),
        ("l\u2019eau \u00e2\u0080\u0099s &amp; \ufb01n", "l'eau 's & fin"),
        (" \n the end\n", "\n the end \n"),
    ],
)
def test_text_is_standardised_as_published(text: str, standard: str):
    assert standardise(text) == standard


# each as spaCy 3.8.18's English tokenizer cuts it
@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ("don't", "do n't"), ("Don't", "Do n't"), ("DON'T", "DON'T"), ("dont", "do nt"),
        ("it's", "it 's"), ("its", "its"), ("we'll", "we 'll"), ("well", "well"),
        ("king's", "king 's"), ("walk'd", "walk'd"), ("o'clock", "o'clock"), ("'tis", "' tis"),
        ("th'other", "th'other"), ("'em", "'em"), ("lookin'", "lookin '"), ("cannot", "can not"),
        ("gonna", "gon na"), ("y'all", "y' all"), ("Mr.", "Mr."), ("e.g.", "e.g."),
        ("u.s.", "u.s ."), ("end.", "end ."), ("ok.Come", "ok . Come"), ("bbc.co.uk", "bbc.co.uk"),
        ("5pm", "5 pm"), ("£5", "£ 5"), ("3.50p", "3.50p"), ("10km", "10 km"), ("a.", "a."),
        ("I'd've", "I 'd 've"), ("I'm", "I 'm"), ("...", "..."), ("wait...what", "wait ... what"),
        ("<3", "<3"), ("50%", "50 %"), ("'quoted'", "' quoted '"), ("$5.00", "$ 5.00"),
        ("12:30", "12:30"), ("a:b", "a : b"), ("#tag", "# tag"), ("'s", "'s"),
        ("x@y.org", "x@y.org"),
    ],
)  # fmt: skip
def test_words_are_those_of_spacy(chunk: str, words: str):
    assert words_of(chunk) == words.split()


def test_merges_join_the_lowest_rank_first_and_the_last_letter_carries_the_end(toy):
    assert tokens(toy, "The king's hat said") == [
        *["the</w>", "k", "i", "n", "g</w>", "'s</w>", "h", "a", "t</w>", "said</w>"]
    ]
    assert tokens(toy, "thethe") == ["th", "e", "the</w>"]
    assert tokens(toy, "a\n\nb") == ["a</w>", "\n</w>", "b</w>"]


def test_a_character_without_a_token_is_id_0_which_stands_for_nothing(toy):
    assert tokens(toy, "a \u6f22 b") == ["a</w>", "<unk>", "b</w>"]
    assert toy.token_bytes(0) == b""
    assert toy.decode([*toy.encode("The a\nb"), toy.eot_id]) == "the a\nb "


def test_pieces_that_end_before_a_blank_give_the_ids_of_the_whole(toy):
    text = "She said 'no'.\n\n\tThe other;  the -- end?\n"
    whole = toy.encode(text).tolist()
    for cut in [i for i in range(1, len(text)) if text[i] in " \n" and text[i - 1] not in " \n\t"]:
        parts = [*toy.encode(text[:cut]), *toy.encode(text[cut:])]
        assert parts == whole, text[:cut]


def test_json_makes_the_same_tokenizer_again_and_its_rules_count(toy):
    again = tokenizer_from_json(toy.to_json(), "tokenizer.json")
    assert isinstance(again, GPT1Tokenizer)
    assert again.encode("The king's said").tolist() == toy.encode("The king's said").tolist()
    assert fingerprint(again) == fingerprint(toy)
    assert fingerprint(GPT1Tokenizer(TOKENS, MERGES[:-1])) != fingerprint(toy)
    newer = {**json.loads(toy.to_json()), "rules": 2}
    with pytest.raises(UserError, match=r"other\.json is not a tokenizer file: .*has rules 2"):
        tokenizer_from_json(json.dumps(newer), "other.json")


@pytest.mark.parametrize("names", [("encoder_bpe_40000.json", "vocab_40000.bpe"),
                                   ("vocab.json", "merges.txt")])  # fmt: skip
def test_data_is_prepared_with_it_and_carries_it(tmp_path: Path, monkeypatch, names):
    vocabulary, merges = (tmp_path / name for name in names)
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    merges.write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    monkeypatch.setenv("GPTJAX_GPT1_DIR", str(tmp_path))
    text = tmp_path / "a.txt"
    text.write_text("The king said no.\n" * 20)
    data = DataConfig(str(tmp_path / "out"), "gpt1", None, (str(text),), 0.0)
    prepare_shards(data, text_files(data.inputs))
    monkeypatch.delenv("GPTJAX_GPT1_DIR")
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.tokenizer, manifest.n_vocab, manifest.dtype) == ("gpt1", len(TOKENS), "uint16")
    assert tokens(read_tokenizer(manifest), "the said") == ["the</w>", "said</w>"]  # type: ignore[arg-type]


def test_files_that_are_missing_or_wrong_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"needs .*encoder_bpe_40000\.json and .*vocab_40000\.bpe"):
        gpt1(tmp_path)
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    for wrong in ("[", "[]", '{"a": 5}', '{"a": 0}'):
        (tmp_path / "vocab.json").write_text(wrong)
        with pytest.raises(UserError, match=r"vocab\.json and .*merges\.txt are not GPT-1's files"):
            gpt1(tmp_path)


def test_without_files_or_hub_or_ftfy_the_message_says_what_helps(monkeypatch, toy):
    monkeypatch.delenv("GPTJAX_GPT1_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"set GPTJAX_GPT1_DIR .*or install huggingface_hub"):
        make_tokenizer("gpt1")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"ftfy, which is not installed: pip install"):
        toy.encode("a")


def test_a_hub_out_of_reach_is_one_message(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("GPTJAX_GPT1_DIR", raising=False)

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"vocab\.json of openai-community/openai-gpt"):
        make_tokenizer("gpt1")


def test_the_published_vocabulary_is_whole(published: GPT1Tokenizer):
    assert (published.n_vocab, len(published.merges)) == (40478, 40000)
    assert tokens(published, "It's the end of the World, isn't it?\nYes.") == [
        *["it</w>", "'s</w>", "the</w>", "end</w>", "of</w>", "the</w>", "world</w>", ",</w>"],
        *["is</w>", "n't</w>", "it</w>", "?</w>", "\n</w>", "yes</w>", ".</w>"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "same_lines", "same_tokens"),
    [("tinyshakespeare.txt", 0.85, 0.97), ("sms_spam.tsv", 0.40, 0.93)],
)
def test_hugging_face_joins_our_words_alike_and_differs_where_bert_cuts_others(
    published: GPT1Tokenizer, test_data: Path, name: str, same_lines: float, same_tokens: float
):
    transformers = pytest.importorskip("transformers")
    ids_of = {token: i for i, token in enumerate(published.tokens)}
    merges = [tuple(merge.split(" ")) for merge in published.merges]
    reference = transformers.OpenAIGPTTokenizer(vocab=ids_of, merges=merges)
    join = reference.backend_tokenizer.model.tokenize
    lines = [line for line in (test_data / name).read_text("utf-8").split("\n") if line.strip()]
    alike = both = tokens = 0
    for line in lines:
        ours = published.encode(line).tolist()
        theirs = reference.encode(line, add_special_tokens=False)
        words = [w for c in standardise(line).split(" ") if c for w in words_of(c)]
        assert [token.id for word in words for token in join(word.lower())] == ours
        blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
        alike += ours == theirs
        both += sum(block.size for block in blocks)
        tokens += len(ours)
    assert alike / len(lines) >= same_lines
    assert both / tokens >= same_tokens


def test_ids_are_those_hugging_face_publishes_for_a_plain_sentence(published: GPT1Tokenizer):
    # the ids in Hugging Face's own model test: "the president is"
    assert published.encode("The president is").tolist() == [481, 4735, 544]
    assert published.encode("").dtype == np.uint32
