"""A run leaves as a Hugging Face directory, and transformers continues its texts as it does."""

from pathlib import Path

import jax
import numpy as np
import pytest

import gptjax
from gptjax.base.errors import ConfigError, UserError
from gptjax.base.tree import named_leaves
from gptjax.config import Config, DataConfig, SampleConfig, TrainConfig, to_json
from gptjax.conversion.exporting import export_huggingface
from gptjax.conversion.model_card import with_names_only
from gptjax.convert import convert
from gptjax.generation.engine import Engine
from gptjax.generation.requests import GenerationRequest
from gptjax.model.places import leaves

pytest.importorskip("tokenizers")


@pytest.fixture
def run(trained_run: Path) -> Path:
    return trained_run


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_s_export_holds_its_parameters_or_their_average(averaged, run, tmp_path):
    notes = export_huggingface(f"{run}@10", tmp_path / "out", averaged=averaged)
    assert any("--averaged" in note for note in notes) != averaged
    back = gptjax.load_run(tmp_path / "out")
    origin = gptjax.load_run(f"{run}@10", averaged)
    theirs, ours = named_leaves(back.params), named_leaves(origin.params)
    assert theirs.keys() == ours.keys()
    for leaf in leaves(origin.config.model):
        kept = slice(leaf.shape[0] - leaf.padding)  # padding comes back as zeros
        assert np.array_equal(theirs[leaf.name][kept], ours[leaf.name][kept]), leaf.name


def test_a_run_without_an_average_has_none_to_export(run, tmp_path):
    export_huggingface(str(run), tmp_path / "out")
    with pytest.raises(UserError, match="no running average"):
        export_huggingface(str(tmp_path / "out"), tmp_path / "again", averaged=True)
    assert not (tmp_path / "again").exists()


def test_the_card_names_files_without_their_paths(run, prepared, tmp_path):
    export_huggingface(f"{run}@10", tmp_path / "out")
    export_huggingface(str(tmp_path / "out"), tmp_path / "again")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("out", "again")]
    for place in (run.parent, prepared.directory.resolve().parent, tmp_path):
        assert all(str(place) not in card for card in cards)
    assert "step 10 in run." in cards[0]
    assert "--run run@10 --to huggingface --out out" in cards[0]
    assert f"| data | {prepared.directory.name}" in cards[0]
    assert "from the Hugging Face directory out." in cards[1]


def test_a_published_config_has_names_in_place_of_paths():
    fields = {
        "data": {"path": "/a/b", "tokenizer": "/a/t.json", "inputs": ("/a/x.txt", "-"),
                 "mixture": ("/a/m=0.5:2", "n=1")},
        "train": {"init_from": "/a/r@best", "evaluate_on": ("wikitext=/a/w.txt",)},
    }  # fmt: skip
    config = Config(data=DataConfig(**fields["data"]), train=TrainConfig(**fields["train"]))
    named = to_json(with_names_only(config))
    assert "/a" not in named
    for name in ("b", "t.json", "x.txt", "-", "m=0.5:2", "n=1", "r@best", "wikitext=w.txt"):
        assert f'"{name}"' in named


def test_the_card_says_what_the_model_is_and_how_it_was_trained(run, tmp_path):
    export_huggingface(f"{run}@10", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for expected in (
        *("license: unknown", "![loss over the steps](loss.png)", "step 10", "validation loss"),
        *("fingerprint ", "adamw", "--to huggingface", '"ema_decay": 0.9', "bytes, 257 ids"),
    ):
        assert expected in card
    assert (tmp_path / "out" / "loss.png").read_bytes() == (run / "loss.png").read_bytes()


@pytest.mark.slow
def test_transformers_continues_a_text_by_the_same_200_tokens(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    export_huggingface(f"{run}@latest", tmp_path / "out", averaged=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    inputs = tokenizer("The ban", return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=200, min_new_tokens=200, do_sample=False)
    ours = gptjax.load_run(f"{run}@latest")
    prompt = inputs["input_ids"][0].tolist()
    greedy = SampleConfig(max_new_tokens=200, temperature=0.0)
    engine = Engine(ours.config.model, ours.params)
    expected = engine.admit(GenerationRequest(prompt, greedy, jax.random.key(0))).tokens
    while engine.running:
        expected += engine.decode(32)[0].tokens
    assert found[0, len(prompt) :].tolist() == [token.id for token in expected]


def test_the_command_writes_a_directory_and_says_where(run, tmp_path, capsys):
    out = str(tmp_path / "hf")
    words = ["--run", f"{run}@best", "--to", "huggingface", "--out", out]
    assert convert(words) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    with pytest.raises(UserError, match="not empty"):
        convert(words)
    with pytest.raises(UserError, match="knows GPT-2's own only"):
        convert([*words[:-1], str(tmp_path / "other"), "--for", "llama.cpp"])
    with pytest.raises(ConfigError, match="--for goes with --to huggingface"):
        convert(["--run", str(run), "--to", "llmc", "--out", out, "--for", "vllm"])


@pytest.mark.parametrize("to", ["huggingface", "llmc"])
def test_a_place_that_is_taken_or_cannot_be_made_stays_as_it_is(to, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for out in ("full", "full/file", "full/file/below"):
        with pytest.raises(UserError, match=r"[cC]hoose another --out"):
            convert(["--run", str(run), "--to", to, "--out", str(tmp_path / out)])
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "file"]
    assert (tmp_path / "full" / "file").read_text() == "x"
