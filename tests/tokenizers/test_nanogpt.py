"""nanoGPT's `meta.pkl` gives its characters, and a hostile one gives an error and does nothing."""

import io
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.tokenizers.nanogpt import read_characters
from gptjax.tokenizers.registry import tokenizer_from_json

CHARACTERS = "z\na \u6f22\U0001f642b"  # in an order of their own


def meta(characters: Any = CHARACTERS, **changes: Any) -> dict:
    """What nanoGPT's prepare.py pickles."""
    table = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {c: i for i, c in enumerate(characters)},
    }
    return {**table, **changes}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_text_has_the_ids_of_the_file_with_any_protocol(tmp_path: Path, protocol: int):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta(), protocol))
    tokenizer = read_characters(tmp_path / "meta.pkl")
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.eot_id) == ("chars", 8, 7)
    text = CHARACTERS[::-1] * 3
    assert tokenizer.encode(text).tolist() == [meta()["stoi"][c] for c in text]
    again = tokenizer_from_json(tokenizer.to_json(), "tokenizer.json")
    assert again.decode(again.encode(text).tolist()) == text


class Hostile:
    """A pickle of it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


FAR = b"\x80\x04}" + b"r" + (2**31).to_bytes(4, "little") + b"."  # memory of 2^31 places
LONG = b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"a."  # a string of 2^40 bytes
TOWER = b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s."  # a key whose hash takes 2^60 steps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FAR, "places"), (LONG, "1099511627776"), (b"", "pickle"), (b"\x80", "list of characters"),
        (b"cos\nsystem\n(S'echo'\ntR.", "GLOBAL os system"),
        (TOWER, "TUPLE"),
        (pickle.dumps(meta(vocab_size=np.int64(7))), "STACK_GLOBAL|SHORT_BINUNICODE"),
        (pickle.dumps([1]), "LIST"), (pickle.dumps(1), "holds a int"),
        (pickle.dumps({"vocab_size": 7}), "no itos and no stoi"),
        (pickle.dumps(meta(vocab_size=6)), "7 ids, expected 0 to 5"),
        (pickle.dumps(meta(vocab_size="7")), "not a whole number"),
        (pickle.dumps(meta(["a", "bc"])), "'bc', which is not one character"),
        (pickle.dumps(meta("aa")), "every character once"),
        (pickle.dumps(meta(stoi={"z": 1})), "have different ids"),
        (pickle.dumps(meta("a\ud800")), "every character once"),
        (pickle.dumps(meta("")), "every character once"),
    ],
)  # fmt: skip
def test_anything_else_is_one_error_at_once(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "meta.pkl").write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(UserError, match=message) as caught:
        read_characters(tmp_path / "meta.pkl")
    assert str(caught.value).startswith(f"{tmp_path / 'meta.pkl'} is not nanoGPT's")
    assert time.perf_counter() - began < 2


def test_no_code_runs(tmp_path: Path):
    path, made = tmp_path / "meta.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps(meta(extra=Hostile(made))))
    with pytest.raises(UserError):
        read_characters(path)
    assert not made.exists()
    pickle.Unpickler(io.BytesIO(path.read_bytes())).load()["extra"].close()
    assert made.exists()  # as it is where code does run
