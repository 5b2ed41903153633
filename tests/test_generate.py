"""Generating is a function of (checkpoint, prompt, seed); only the text goes to standard output."""

import json
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_verb

import gptjax
from gptjax.base.tree import abstract_tree
from gptjax.cli import main
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.convert import convert
from gptjax.generate import generate
from gptjax.generation.engine import Engine
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.metrics import read_rows
from gptjax.runs.ranking import Ranking

STEPS = [10, 20]
PROMPT = "def f\u00fcr("


@pytest.fixture
def run(trained_run: Path) -> Path:
    return trained_run


@pytest.fixture
def text(run, capsys):
    """Call the verb in this process: what it writes after the options it is given."""

    def generated(*argv: object) -> str:
        words = ["--run", run, "--prompt", PROMPT, "--max-new-tokens", 24, *argv]
        assert generate([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return generated


def test_the_same_seed_gives_the_same_text_and_another_another(text):
    first = text("--seed", 1)
    assert text("--seed", 1) == first
    assert text("--seed", 2) != first
    assert text() == text("--seed", 0)


def test_the_prompt_comes_first_and_its_continuation_is_as_long_as_asked(text):
    shown = text("--max-new-tokens", 5)
    assert shown.startswith(PROMPT)
    assert 1 <= len(shown.removeprefix(PROMPT).removesuffix("\n")) <= 5
    assert text("--max-new-tokens", 12).startswith(shown.rstrip("\n\ufffd"))


def test_an_empty_prompt_starts_a_document(text):
    alone = text("--prompt", "")
    assert alone.endswith("\n")
    assert not alone.startswith("def")
    assert alone == text("--prompt=")


def test_at_temperature_zero_the_seed_does_not_matter(text):
    coldest = text("--temperature", 0)
    assert text("--temperature", 0, "--seed", 5) == coldest
    assert text("--top-k", 1, "--seed", 6) == coldest


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        ("--temperature 0 --seed 5 --num-samples 2", "--seed and --num-samples"),
        ("--temperature 0 --top-k 3", "--top-k"),
        ("--top-k 1 --temperature 2", "--temperature"),
        ("--temperature 0", ""),
        ("--seed 5 --num-samples 2 --top-k 3", ""),
        ("--top-k 1 --top-p 0.5 --min-p 0.1", "--top-p and --min-p"),
        ("--temperature 0 --repetition-penalty 1.5 --stop x", ""),
    ],
)
def test_flags_without_effect_are_named(run, capsys, flags: str, idle: str):
    assert generate(["--run", str(run), "--max-new-tokens", "1", *flags.split()]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line.partition(", so ")[2] for line in notes] == (
        [f"{idle} has no effect"] * bool(idle)
    )


def greedy(run: Path, step: int, prompt: str, n: int) -> str:
    """The likeliest continuation, by running the model over everything for each byte."""
    config = RunDir(run).read_config()
    checkpointer = Checkpointer(run / "checkpoints", read_only=True)
    params = checkpointer.restore_params(
        step, abstract_tree(parameter_shapes(config.model), replicated(make_mesh(1)))
    )
    checkpointer.close()
    model = jax.jit(lambda tokens_BT: GPT(config.model).apply({"params": params}, tokens_BT))
    tokens = list(prompt.encode())
    for _ in range(n):
        padded_BT = np.zeros((1, config.model.n_ctx), np.int32)
        padded_BT[0, : len(tokens)] = tokens
        logits_V = model(jnp.asarray(padded_BT))[0, len(tokens) - 1, : config.model.n_vocab]
        tokens.append(int(np.argmax(logits_V)))
    assert max(tokens) < 256
    return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("step", STEPS)
def test_the_text_is_that_of_the_chosen_checkpoint(step, run, text):
    expected = greedy(run, step, PROMPT, 12)
    shown = text("--run", f"{run}@{step}", "--temperature", 0, "--max-new-tokens", 12)
    assert shown == expected + "\n"


def test_latest_and_best_are_names_of_checkpoints(run, text, tmp_path):
    hot = ["--top-k", "None"]
    by_step = {step: text("--run", f"{run}@{step}", *hot) for step in STEPS}
    assert by_step[10] != by_step[20]
    assert text("--run", f"{run}@latest", *hot) == by_step[20]
    losses = {row["step"]: row["val_loss"] for row in read_rows(run / "metrics.jsonl")
              if "val_loss" in row}  # fmt: skip
    assert list(losses) == STEPS
    best = by_step[min(losses, key=losses.get)]
    assert text("--run", f"{run}@best", *hot) == text(*hot) == best

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    ranking = Ranking()
    for step, loss in ((10, 0.5), (20, 0.6)):
        ranking.note(step, {"val_loss": loss})
    ranking.write(copy)
    assert text("--run", copy, *hot) == by_step[10]


def test_samples_are_told_apart_and_the_first_is_the_one_alone(text):
    samples = text("--num-samples", 3, "--top-k", "None").removesuffix("\n").split("\n\n---\n")
    assert len(samples) == 3
    assert len(set(samples)) == 3
    assert all(sample.startswith(PROMPT) for sample in samples)
    assert samples[0] == text("--top-k", "None").removesuffix("\n")


def test_samples_beyond_the_largest_batch_take_turns(text):
    hot = ["--num-samples", 3, "--top-k", "None"]
    assert text(*hot, "--max-batch", 2) == text(*hot)


def test_a_text_ends_before_a_stop_text(text):
    whole = text().removesuffix("\n")
    stop = whole[len(PROMPT) + 5 : len(PROMPT) + 7]
    kept = whole[len(PROMPT) :].partition(stop)[0]
    assert text("--stop", "no such text", stop) == f"{PROMPT}{kept}\n"
    assert text("--stop", stop, "--stop=no such text") == f"{PROMPT}{kept}\n"


def test_settings_beyond_the_numbers_of_a_device_are_the_largest(text, recwarn):
    hot = ["--temperature", "1e40", "--repetition-penalty", "1e40"]
    assert text(*hot, "--top-k", 2**40) == text(*hot, "--top-k", "None")
    assert not [str(w.message) for w in recwarn if "overflow" in str(w.message)]


@pytest.mark.parametrize("samples", [1, 2])
def test_a_file_of_prompts_gives_what_each_gives_alone(samples, run, text, tmp_path, capsys):
    """Whatever its other lines are: the same seed, prompt and number of a sample decide."""
    prompts = ["one two", "", PROMPT, "one two"]
    file, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate(prompts))
    )
    words = ["--run", run, "--prompts", file, "--max-new-tokens", 24, "--num-samples", samples]
    assert generate(list(map(str, [*words, "--seed", 3, "--out", out, "--max-batch", 2]))) == 0
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["id"], r["prompt"], r["sample"]) for r in rows] == [
        (i, p, s) for i, p in enumerate(prompts) for s in range(samples)
    ]
    for i, prompt in enumerate(prompts):
        shown = text("--prompt", prompt, "--seed", 3, "--num-samples", samples)
        mine = rows[i * samples : (i + 1) * samples]
        assert shown == "\n---\n".join(f"{r['prompt']}{r['text']}\n" for r in mine)
        for row in mine:
            assert row["seed"] == 3
            assert (
                bytes(t for t in row["tokens"] if t < 256).decode("utf-8", "replace") == row["text"]
            )
            assert row["finish_reason"] == ("stop" if row["tokens"][-1] == 256 else "length")
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "p.jsonl"]
    assert generate(list(map(str, [*words, "--seed", 3]))) == 0
    assert capsys.readouterr().out == out.read_text()


def test_a_broken_line_is_told_before_a_model_is_looked_for(tmp_path, monkeypatch, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "x"}\n{"prompt"\n')
    code, message = failure(monkeypatch, capsys, "--run", "nowhere", "--prompts", file)
    assert code == 1
    assert "line 2: it is not JSON" in message


def test_two_runs_are_compared_on_the_same_prompts_and_seeds(run, text, tmp_path, capsys):
    names = [f"{run}@{step}" for step in STEPS]
    shown = text("--compare", *names, "--run", "runs/quickstart", "--num-samples", 2)
    alone = [
        text("--run", n, "--num-samples", 2).removesuffix("\n").split("\n\n---\n") for n in names
    ]
    assert shown == "".join(
        f"--prompt, sample {i}\n"
        + "".join(f"== {name}\n{texts[i]}\n\n" for name, texts in zip(names, alone, strict=True))
        for i in range(2)
    )
    assert alone[0] != alone[1]
    file, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text(f"{PROMPT}\n")
    words = ["--compare", *names, "--prompts", file, "--max-new-tokens", 24, "--out", out]
    assert generate(list(map(str, words))) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["run"], PROMPT + r["text"]) for r in rows] == [
        (name, texts[0]) for name, texts in zip(names, alone, strict=True)
    ]


def test_log_probabilities_are_those_of_the_whole_model(run, tmp_path, text):
    file, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text(f"{PROMPT}\n")
    words = ["--run", f"{run}@20", "--prompts", file, "--max-new-tokens", 9, "--out", out]
    hot = ["--temperature", 1.5, "--top-p", 0.9, "--repetition-penalty", 1.2, "--logprobs"]
    assert generate(list(map(str, [*words, *hot]))) == 0
    row = json.loads(out.read_text())
    given, config = list(PROMPT.encode()), RunDir(run).read_config()
    params = gptjax.load_run(f"{run}@20").params
    ids_BT = jnp.asarray([given + row["tokens"]])
    logits_BTV = GPT(config.model).apply({"params": params}, ids_BT)
    logprobs_TV = np.asarray(jax.nn.log_softmax(logits_BTV, axis=-1))[0, len(given) - 1 : -1]
    for token, told, logprobs_V in zip(row["tokens"], row["logprobs"], logprobs_TV, strict=True):
        assert told["logprob"] == pytest.approx(logprobs_V[token], abs=1e-5)
        best = np.argsort(-logprobs_V, kind="stable")[:5]
        assert [other["id"] for other in told["top"]] == best.tolist()
        np.testing.assert_allclose([o["logprob"] for o in told["top"]], logprobs_V[best], atol=1e-5)
    shown = text("--run", f"{run}@20", *words[4:6], *hot)
    table = shown.removeprefix(f"{PROMPT}{row['text']}\n\n").splitlines()
    assert [line.split()[-4] for line in table[:1]] == ["logprob"]
    assert len(table) == 1 + len(row["tokens"])


@pytest.mark.slow
def test_a_context_that_is_full_is_told_and_slides_on_request(run, text, capsys):
    n_ctx = RunDir(run).read_config().model.n_ctx
    cold = ["--run", run, "--temperature", 0, "--max-new-tokens", 20, "--prompt", "a" * (n_ctx - 6)]
    for slide, length in ((["--slide"], 20), ([], 7)):
        assert generate([*map(str, cold), *slide, "--logprobs"]) == 0
        output = capsys.readouterr()
        table = output.out.partition("\n\ntoken ")[2].splitlines()[1:]
        assert len(table) == length
        assert ("--slide" in output.err) == (length == 7)
    long = "x" * (n_ctx + 9)
    assert generate(["--run", str(run), "--prompt", long, "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(long)
    assert (
        f"too long for the context of {n_ctx} tokens, so only the end is read: --prompt"
        in output.err
    )


@pytest.mark.slow
def test_a_hugging_face_directory_continues_like_its_run(run, text, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    out = str(tmp_path / "hf")
    assert convert(["--run", f"{run}@20", "--to", "huggingface", "--averaged", "--out", out]) == 0
    assert text("--run", tmp_path / "hf", "--seed", 4).endswith(
        text("--run", f"{run}@20", "--seed", 4)
    )
    assert text("--run", tmp_path / "hf", "--dtype", "bfloat16").startswith(PROMPT)


def test_ctrl_c_keeps_the_finished_texts(run, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text("ab\n" * 4)

    def interrupted(self, request, *rest, admit=Engine.admit):
        if (tmp_path / "out.jsonl.part").read_text():
            raise KeyboardInterrupt
        return admit(self, request, *rest)

    monkeypatch.setattr(Engine, "admit", interrupted)
    words = ["--run", run, "--prompts", file, "--max-new-tokens", 3, "--out", out, "--max-batch", 1]
    monkeypatch.setattr(sys, "argv", ["generate", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main(generate)
    assert caught.value.code == 130
    assert f"the finished texts are in {out}.part\nstopped\n" in capsys.readouterr().err
    assert not out.exists()
    assert json.loads((tmp_path / "out.jsonl.part").read_text())["prompt"] == "ab"


def test_a_comparison_ends_quietly_without_standard_output(run, monkeypatch):
    names = [f"{run}@{step}" for step in STEPS]
    monkeypatch.setattr(sys, "stdout", None)
    assert generate(["--compare", *names, "--max-new-tokens", "1"]) == 0


def test_only_the_text_is_on_standard_output(run, text):
    result = run_verb(
        "generate", "--run", f"{run.name}@20", "--prompt", PROMPT, "--max-new-tokens", 24,
        cwd=run.parent,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == text("--run", f"{run}@20")
    assert result.stderr == "checkpoint of step 20 in run\n"


def test_generating_changes_nothing_in_the_run(run, text):
    def files():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}

    before = files()
    text()
    assert files() == before


def failure(monkeypatch, capsys, *argv: object) -> tuple[int, str]:
    """Exit code and message of a command that must fail with nothing on standard output."""
    monkeypatch.setattr(sys, "argv", ["generate", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main(generate)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    return caught.value.code, output.err


def test_an_output_that_is_there_is_no_device_and_not_the_prompts(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "p.txt").write_text("ab\n")
    (tmp_path / "link").symlink_to("p.txt")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "is no file"), ("p.txt", "replace"), ("link", "replace")):
        argv = ["--run", run, "--prompts", tmp_path / "p.txt", "--out", tmp_path / name]
        code, message = failure(monkeypatch, capsys, *argv)
        assert code == 2
        assert words in message
    assert (tmp_path / "p.txt").read_text() == "ab\n"
    (tmp_path / "new").symlink_to("target")
    words = ["--run", run, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "new"]
    assert generate([*map(str, words), "--max-new-tokens", "1"]) == 0
    assert (tmp_path / "new").is_symlink()
    assert json.loads((tmp_path / "target").read_text())["prompt"] == "ab"


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        (["--max-new-tokens", 0], ["--max-new-tokens must be at least 1, not 0"]),
        (["--temperature", -0.5], ["--temperature must be 0 or more, not -0.5"]),
        (["--temperature", "nan"], ["--temperature must be 0 or more, not nan"]),
        (["--top-k", 0], ["--top-k must be at least 1, not 0 (None keeps all)"]),
        (["--num-samples", 0], ["--num-samples must be at least 1, not 0"]),
        (["--seed", -1], ["--seed must be in [0, 2**32), not -1"]),
        (["--seed", 2**32], ["--seed must be in [0, 2**32), not 4294967296"]),
        (["--top-k", "many"], ["--top-k must be int or None, not many"]),
        (["--promt", "x"], ["unknown option --promt (did you mean --prompt?)"]),
        (["--config", "tiny"], ["unknown option --config"]),
        (["--top-p", 0, "--min-p", 1, "--repetition-penalty", 0, "--stop", ""],
         ["--top-p", "--min-p", "--repetition-penalty", "--stop"]),
        (["--prompts", "p.txt", "--prompt", "x", "--compare", "a", "b", "--max-batch", 0],
         ["--max-batch", "--prompts replaces --prompt", "--compare replaces --run"]),
        (["--out", "nowhere/o.jsonl"], ["--prompts, which is missing", "--out nowhere/o.jsonl is"]),
        (["--dtype", "float16"], ["--dtype must be one of float32, bfloat16, not float16"]),
        (["--seed", -1, "--top-k", 0, "--temperature", -1, "--max-new-tokens", 0,
          "--num-samples", -2],
         ["--max-new-tokens", "--temperature", "--top-k", "--num-samples", "--seed"]),
        (["--seed", "x", "--promt", "y"], ["--seed must be int, not x", "--promt"]),
    ],
    ids=lambda words: " ".join(map(str, words)) if "must" not in str(words) else "",
)  # fmt: skip
def test_bad_options_are_listed_together(argv, problems, run, monkeypatch, capsys):
    code, message = failure(monkeypatch, capsys, "--run", run, *argv)
    assert code == 2
    listed = [line[4:] for line in message.splitlines() if line.startswith("  - ")]
    assert len(listed) == len(problems)
    assert [p for p, line in zip(problems, listed, strict=True) if p not in line] == []


def test_a_checkpoint_that_does_not_exist_is_told_with_those_that_do(run, monkeypatch, capsys):
    code, message = failure(monkeypatch, capsys, "--run", f"{run}@7")
    assert code == 1
    assert "there is no checkpoint '7' in " in message
    assert "expected best, latest or one of 10, 20\n" in message


def test_what_is_no_run_is_told_so(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "untrained").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(run / name, tmp_path / "untrained")
    for path, words in (
        ("nowhere", "there is no model in nowhere: expected RUN"),
        ("file", "there is no model in file, which is a file"),
        ("empty", "empty is not a run of gptjax (no config.json)"),
        ("untrained", "there is no checkpoint in "),
    ):
        code, message = failure(monkeypatch, capsys, "--run", path)
        assert (code, message.count("\n")) == (1, 1)
        assert words in message
    assert sorted(os.listdir(tmp_path / "untrained")) == ["config.json", "tokenizer.json"]


def test_a_damaged_checkpoint_is_named(run, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    largest = max(
        (copy / "checkpoints" / "20" / "params").rglob("*"), key=lambda p: p.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    code, message = failure(monkeypatch, capsys, "--run", f"{copy}@20")
    assert code == 1
    assert "checkpoints/20 is damaged" in message
    assert largest.name in message
    assert generate(["--run", f"{copy}@10", "--max-new-tokens", "1"]) == 0


def test_an_error_in_a_shell_is_one_message_without_a_traceback(run, tmp_path):
    result = run_verb("generate", "--run", f"{run}@7", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no checkpoint '7'")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
