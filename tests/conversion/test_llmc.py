"""llm.c's model files: its layout, bitwise both ways, exact rounding, one error otherwise."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from conversion.test_weights import random_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree
from gptjax.config import ModelConfig
from gptjax.conversion.llmc import is_llmc, read_llmc, write_llmc
from gptjax.conversion.weights import Weights, to_huggingface
from gptjax.model.gpt import GPT
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer

SIZES = {"n_layer": 3, "n_head": 5, "n_embd": 20, "n_ctx": 12, "n_vocab": 257}
KINDS = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
    *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight"),
    *("mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)  # after wte and wpe, each for all layers, and before ln_f


def weights_of(source: str = "a test", **changes) -> Weights:
    """Random weights of a small GPT-2 of bytes."""
    cfg = ModelConfig(**{**SIZES, **changes}, dtype="float32")
    return Weights(cfg, random_arrays(cfg), ByteTokenizer(), source)


def names(layers: int) -> list[str]:
    """Hugging Face's names in the order of the file."""
    blocks = [f"transformer.h.{i}.{kind}" for kind in KINDS for i in range(layers)]
    ends = ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    return ["transformer.wte.weight", "transformer.wpe.weight", *blocks, *ends]


def split(raw: bytes, number: str) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    """The header's numbers and the arrays of a file, by the layout alone; matrices as they lie."""
    header = struct.unpack("<256i", raw[:1024])
    _, _, t, _, n, _, d, rows = header[:8]
    numbers, arrays = np.frombuffer(raw[1024:], number), {}
    for name in names(n):
        wide = {"c_attn": 3 * d, "c_fc": 4 * d}.get(name.split(".")[-2], d)
        if name.endswith("wte.weight"):
            shape = (rows, d)
        elif name.endswith("wpe.weight"):
            shape = (t, d)
        elif "_attn.weight" in name or "_fc.weight" in name:
            shape = (wide, d)
        elif "c_proj.weight" in name:
            shape = (d, 4 * d if "mlp" in name else d)
        else:
            shape = (wide,)
        count = int(np.prod(shape))
        arrays[name], numbers = numbers[:count].reshape(shape), numbers[count:]
    assert len(numbers) == 0
    return header, arrays


def test_a_file_has_llm_c_s_layout_and_both_ways_are_bitwise(tmp_path: Path):
    weights, file = weights_of(), tmp_path / "model.bin"
    assert write_llmc(weights, file) == []
    header, arrays = split(file.read_bytes(), "<f4")
    assert header == (20240326, 3, 12, 257, 3, 5, 20, 384, *[0] * 248)
    expected = to_huggingface(weights.arrays, weights.model, rows=384)
    for name, array in arrays.items():
        is_matrix = array.ndim == 2 and "transformer.w" not in name
        assert (array == (expected[name].T if is_matrix else expected[name])).all(), name

    assert is_llmc(file)
    back = read_llmc(file, None)
    assert back.model == weights.model
    assert back.tokenizer.name == "bytes"
    assert back.arrays.keys() == weights.arrays.keys()
    assert all((back.arrays[name] == weights.arrays[name]).all() for name in back.arrays)
    write_llmc(back, tmp_path / "again")  # a directory
    assert (tmp_path / "again" / "model.bin").read_bytes() == file.read_bytes()
    assert is_llmc(tmp_path / "again")
    assert read_llmc(tmp_path / "again", "bytes").model == back.model


def test_a_file_that_llm_c_wrote_gives_its_logits(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from nanogpt_model import TANH, Args, NanoGPT

    theirs = NanoGPT(Args(n_embd=20, block_size=12, vocab_size=257), gelu=TANH)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    with (tmp_path / "gpt2.bin").open("wb") as file:  # as its train_gpt2.py writes, to 64 rows
        file.write(struct.pack("<256i", 20240326, 3, 12, 257, 3, 5, 20, 320, *[0] * 248))
        for name in names(3):
            padding = np.ones((63, 20), np.float32) if "wte" in name else ()
            file.write(state[name].astype("<f4").tobytes() + np.array(padding).tobytes())
    weights = read_llmc(tmp_path / "gpt2.bin", "bytes")
    ids = np.random.default_rng(0).integers(257, size=(2, 12))
    logits = GPT(weights.model).apply({"params": as_tree(weights.arrays)}, ids)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(logits[:, :, :257], expected, rtol=0, atol=1e-5)
    assert not weights.arrays["wte/embedding"][257:].any()


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path):
    torch = pytest.importorskip("torch")
    weights = weights_of()
    hard = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1e-40, 3.4e38, np.inf, -np.inf, -0.0], np.float32)
    weights.arrays["wpe/embedding"].flat[: len(hard)] = hard
    write_llmc(weights, tmp_path / "model.bin", "bfloat16")
    header, arrays = split((tmp_path / "model.bin").read_bytes(), "<u2")
    assert header[1] == 5
    for name, array in to_huggingface(weights.arrays, weights.model, rows=384).items():
        is_matrix = array.ndim == 2 and "transformer.w" not in name
        rounded = torch.tensor(array.T if is_matrix else array).bfloat16()
        assert (arrays[name] == rounded.view(torch.uint16).numpy()).all(), name
    back = read_llmc(tmp_path / "model.bin", None)
    expected = torch.tensor(weights.arrays["h/mlp/c_fc/kernel"]).bfloat16().float().numpy()
    assert (back.arrays["h/mlp/c_fc/kernel"] == expected).all()
    assert "bfloat16" in back.source


def test_absent_biases_are_zeros_and_said_so(tmp_path: Path):
    weights = weights_of(bias=False, qkv_bias=False)
    (note,) = write_llmc(weights, tmp_path / "model.bin")
    assert "h/attn/c_attn/bias" in note
    assert "ln_f/bias" in note
    back = read_llmc(tmp_path / "model.bin", None)
    assert back.model.bias
    assert not any(array.any() for name, array in back.arrays.items() if name.endswith("/bias"))
    assert all((back.arrays[name] == array).all() for name, array in weights.arrays.items())


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"norm": "post", "final_norm": False}, "norms are GPT-1's"),
        ({"tied_head": False}, "head is a matrix of its own"),
        ({"activation": "gelu_erf"}, "activation is gelu_erf"),
        ({"n_classes": 2}, "a head for 2 classes"),
        ({"n_classes": 2, "n_special": 3}, "classes .* 3 special tokens"),
    ],
)
def test_what_llm_c_would_compute_otherwise_is_refused(tmp_path: Path, switches, reason):
    with pytest.raises(UserError, match=reason):
        write_llmc(weights_of(**switches), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "deeper"):
        with pytest.raises(UserError, match="is not a directory: choose another --out"):
            write_llmc(weights_of(), out)
    write_llmc(weights_of(), tmp_path / "out")
    with pytest.raises(UserError, match="exists: choose another --out"):
        write_llmc(weights_of(), tmp_path / "out")
    assert taken.read_text() == "mine"


def test_characters_without_end_of_text_survive(tmp_path: Path):
    cfg = ModelConfig(**{**SIZES, "n_vocab": 3})
    write_llmc(Weights(cfg, random_arrays(cfg), CharTokenizer("cab"), "a test"), tmp_path)
    back = read_llmc(tmp_path, None)
    assert (back.model.n_vocab, back.tokenizer.encode("abc").tolist()) == (3, [1, 2, 0])


def test_mistakes_are_one_message_each(tmp_path: Path):
    file = tmp_path / "model.bin"
    write_llmc(weights_of(), file)
    whole = file.read_bytes()

    def with_numbers(**numbers: int) -> bytes:
        header = list(struct.unpack("<256i", whole[:1024]))
        for place, value in numbers.items():
            header[int(place[1:])] = value
        return struct.pack("<256i", *header) + whole[1024:]

    contents = {
        b"": "has no magic number",
        whole[:100]: "ends within its header",
        whole[:-1]: "truncated: it has .* bytes",
        whole[:1024]: "truncated",
        whole + b"\0\0": "too long",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "git lfs pull",
        with_numbers(_0=20240520): "a shard of uint16 tokens",
        with_numbers(_0=20240801): "a shard of uint32 tokens",
        with_numbers(_0=1): "magic number 1, expected 20240326",
        b"PK\x03\x04" + whole: "a zip file",
        with_numbers(_1=1): "version 1 of llm.c's models, expected 3",
        with_numbers(_1=5): "too long",
        with_numbers(_2=-1): "max_seq_len -1",
        with_numbers(_4=2**31 - 1, _6=2**31 - 1, _5=1): "truncated",
        with_numbers(_3=385): "vocab_size 385 above padded_vocab_size",
        with_numbers(_5=7): "num_heads 7, which does not divide",
        with_numbers(_5=0): "num_heads 0",
        with_numbers(_3=300): "has 257 token ids, but .* has 300",
    }
    for content, message in contents.items():
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_llmc(file, None)
    with pytest.raises(UserError, match="is not a file"):
        read_llmc(tmp_path / "nothing.bin", None)
    assert not is_llmc(tmp_path / "nothing.bin")
    file.write_bytes(whole)
    (tmp_path / "model.tokenizer.json").unlink()
    with pytest.raises(UserError, match="257 token ids and does not say"):
        read_llmc(file, None)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model `whole` and its tokenizer."""
    path = tmp_path_factory.mktemp("damaged")
    cfg = ModelConfig(n_layer=1, n_head=1, n_embd=2, n_ctx=2, n_vocab=3)
    write_llmc(Weights(cfg, random_arrays(cfg), CharTokenizer("ab"), "a test"), path)
    (path / "model.bin").rename(path / "whole")
    return path


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["cut", "header", "anywhere", "rubbish"]))
def test_damage_is_one_error_or_only_other_numbers(damaged: Path, seed: int, kind: str):
    chance, content = random.Random(seed), bytearray((damaged / "whole").read_bytes())
    if kind == "cut":
        del content[chance.randrange(len(content)) :]
    elif kind == "header":
        value = chance.choice((-1, 0, 1, 2, 4, chance.randrange(2**31)))
        content[4 * (place := chance.randrange(8)) : 4 * place + 4] = struct.pack("<i", value)
    else:
        start = {"anywhere": 0, "rubbish": 4}[kind]
        for _ in range({"anywhere": 3, "rubbish": 2000}[kind]):
            content[chance.randrange(start, len(content))] = chance.randrange(256)
    (damaged / "model.bin").write_bytes(content)
    is_llmc(damaged)
    try:
        weights = read_llmc(damaged, None)
    except UserError:
        return
    assert sum(array.nbytes for array in weights.arrays.values()) < 10**5
