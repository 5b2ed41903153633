"""Flags override a config's fields with their types, and one message lists all that is wrong."""

import ast
import dataclasses
import itertools
import re
import subprocess
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, environment_on, run_verb

from gptjax.base.errors import ConfigError, UserError
from gptjax.cli import ConfigCommand, main, parse, parse_config
from gptjax.config import Config, DataConfig
from gptjax.config.presets import load_config, preset_names
from gptjax.data.corpus import require_vocabulary
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters

VERBS = ["train", "prepare", "generate"]
CONFIG_SOURCE = [
    node
    for name in ("examples", "schema", "training")
    for node in ast.parse((ROOT / "gptjax" / "config" / f"{name}.py").read_text()).body
]


@dataclass(frozen=True)
class Command(ConfigCommand):
    """A verb for these tests."""

    run_dir: Path | None = None
    """Where to."""
    fresh: bool = False
    """Start over."""


def read(*argv: str) -> Command:
    return parse_config(Command, argv, "verb")


def problems_of(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    return caught.value.problems


def overridden(name: str, **sections: dict[str, Any]) -> Config:
    config = load_config(name)
    parts = {s: dataclasses.replace(getattr(config, s), **fields) for s, fields in sections.items()}
    return dataclasses.replace(config, **parts)


@pytest.mark.usefixtures("gpt2_runs")
@pytest.mark.parametrize("name", preset_names())
def test_a_config_without_flags_is_the_file_s(name):
    assert read("--config", name).run == load_config(name)
    assert read(f"--config={name}").config == name


@pytest.mark.parametrize(
    ("argv", "section", "fields"),
    [
        (["--model.n-head", "4"], "model", {"n_head": 4}),
        (["--model.n-head=4"], "model", {"n_head": 4}),
        (["--model.n_head", "4"], "model", {"n_head": 4}),
        (["--model.n_head=4"], "model", {"n_head": 4}),
        (["--model.n-head", "4", "--model.n-head", "8"], "model", {"n_head": 8}),
        (["--model.no-qkv-bias"], "model", {"qkv_bias": False}),
        (["--model.no-qkv-bias", "--model.qkv_bias"], "model", {"qkv_bias": True}),
        (["--model.norm", "post"], "model", {"norm": "post"}),
        (["--model.dtype", "bfloat16"], "model", {"dtype": "bfloat16"}),
        (["--model.embd-pdrop", ".5"], "model", {"embd_pdrop": 0.5}),
        (["--optim.peak-lr", "1e-3"], "optim", {"peak_lr": 1e-3}),
        (["--optim.peak-lr", "1"], "optim", {"peak_lr": 1.0}),
        (["--optim.clip-norm", "None"], "optim", {"clip_norm": None}),
        (["--optim.decay-steps", "50"], "optim", {"decay_steps": 50}),
        (["--train.eval-tokens=None"], "train", {"eval_tokens": None}),
        (["--train.context", "32", "--train.seed", "0"], "train", {"context": 32, "seed": 0}),
        (["--data.inputs", "a b.txt", "c"], "data", {"inputs": ("a b.txt", "c")}),
        (["--data.source", "None"], "data", {"source": None}),
        (["--data.tokenizer", "bpe:300"], "data", {"tokenizer": "bpe:300"}),
        (["--sample.prompt", "two words"], "sample", {"prompt": "two words"}),
        (["--sample.prompt="], "sample", {"prompt": ""}),
        (["--sample.prompt=--model.n-head=3"], "sample", {"prompt": "--model.n-head=3"}),
        (["--sample.top-k", "None"], "sample", {"top_k": None}),
        (["--train.micro-batch", "auto"], "train", {"micro_batch": "auto"}),
        (["--train.micro-batch", "2"], "train", {"micro_batch": 2}),
        (
            ["--train.ramp-from-tokens", "256", "--train.ramp-steps", "4"],
            "train",
            {"ramp_from_tokens": 256, "ramp_steps": 4},
        ),
        (["--train.profile", "3:2"], "train", {"profile": "3:2"}),
        (
            ["--optim.name", "muon", "--optim.ema-decay", ".9"],
            "optim",
            {"name": "muon", "ema_decay": 0.9},
        ),
        (["--optim.schedule=wsd"], "optim", {"schedule": "wsd"}),
        (["--model.float32-matmul", "tf32"], "model", {"float32_matmul": "tf32"}),
    ],
    ids=" ".join,
)
def test_a_flag_changes_its_field_and_no_other(argv, section, fields):
    for words in (["--config", "tiny", *argv], [*argv, "--config", "tiny"]):
        run = read(*words).run
        assert run == overridden("tiny", **{section: fields})
        assert all(type(getattr(getattr(run, section), k)) is type(v) for k, v in fields.items())


def test_a_verb_s_own_flags_stay_out_of_the_config():
    command = read("--config", "tiny", "--run-dir", "some/where", "--fresh")
    assert (command.run_dir, command.fresh, command.config) == (Path("some/where"), True, "tiny")
    assert command.run == load_config("tiny")
    assert type(command.run) is Config


def test_everything_that_is_wrong_is_said_at_once():
    problems = problems_of(
        "--config", "tinny", "--model.n-heads", "4", "--model.n-layer", "many",
        "--model.n-embd", "100", "--model.n-head", "3", "--train.batch-tokens", "1000",
    )  # fmt: skip
    assert [p.split(": choose")[0] for p in problems[:3]] == [
        "unknown config 'tinny' (did you mean tiny?)",
        "unknown option --model.n-heads (did you mean --model.n-head?)",
        "--model.n-layer must be int, not many",
    ]
    # the batch cannot be judged without the config, width and heads can
    assert problems[3].startswith("model.n_embd 100 is not divisible by model.n_head 3")
    assert len(problems) == 4


def test_flags_that_were_right_count_when_others_were_wrong():
    wrong = ["--model.n-layer", "many", "--bogus"]
    alone = problems_of("--config", "tiny", *wrong)
    assert len(alone) == 2
    combined = problems_of("--config", "tiny", *wrong, "--model.n-embd=33", "--model.no-bias")
    assert combined[:2] == alone
    assert [p.split(" is ")[0] for p in combined[2:]] == ["model.n_embd 33"]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--model.n-head", "4.0"], "--model.n-head must be int, not 4.0"),
        (["--model.n_head", "x"], "--model.n_head must be int, not x"),
        (["--model.n-head"], "--model.n-head must be int, not nothing"),
        (["--model.n-head="], "--model.n-head must be int, not nothing"),
        (["--optim.peak-lr", "fast"], "--optim.peak-lr must be float, not fast"),
        (["--optim.clip-norm=no"], "--optim.clip-norm must be float or None, not no"),
        (["--model.norm", "mid"], "--model.norm must be one of pre, post, not mid"),
        (["--model.n-head", "3"], "model.n_embd 32 is not divisible by model.n_head 3"),
        (["--train.micro-batch", "all"], "--train.micro-batch must be int or one of auto, not all"),
        (
            ["--train.ramp-steps", "3"],
            "train.ramp_from_tokens and train.ramp_steps go together (the first batch, and the "
            "steps until the full batch), not None and 3",
        ),
        (
            ["--train.ramp-from-tokens", "128", "--train.ramp-steps", "3"],
            "train.ramp_from_tokens 128 is not divisible by context x train.micro_batch = 256",
        ),
        (["--model.attention", "cudnn"], "model.attention cudnn computes in bfloat16 or float16"),
        (["--train.profile", "3"], "train.profile must be STEP:COUNT"),
        (["--modle.n-head", "4"], "unknown option --modle.n-head (did you mean --model.n-head?)"),
        (["--n-head", "4"], "unknown option --n-head (did you mean --model.n-head?)"),
        (["--fresh=yes"], "--fresh is a switch: write --fresh or --no-fresh and no value, not yes"),
        (["--data.PATH", "x"], "unknown option --data.PATH (did you mean --data.path?)"),
        (["--zzzzzzzzzzzz"], "unknown option --zzzzzzzzzzzz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_named_with_what_was_expected(argv, problem):
    (only,) = problems_of("--config", "tiny", *argv)
    assert only.startswith(problem)
    assert ("did you mean" in only) == ("did you mean" in problem)


def test_a_stray_word_is_an_error():
    assert problems_of("stray", "--config", "tiny") == [
        "unexpected argument 'stray': options begin with --"
    ]
    (only,) = problems_of("--config", "tiny", "stray")
    assert "stray" in only


@pytest.mark.parametrize("argv", [[], ["--fresh"], ["--train.seed", "1"]], ids=str)
def test_a_missing_config_is_told_with_those_that_exist(argv):
    (only,) = problems_of(*argv)
    assert only == f"--config is missing: choose one of {', '.join(preset_names())}"


def test_a_verb_may_do_without_a_config():
    argv = ["--model.n-layer", "3"]
    run = parse_config(Command, argv, "verb", required=False).run
    assert run == dataclasses.replace(
        Config(), model=dataclasses.replace(Config().model, n_layer=3)
    )


NAMED = """
from dataclasses import replace
from gptjax.config.presets import load_config

def get_config():
    config = load_config("tiny")
    return replace(config, model=replace(config.model, n_vocab=257))
"""


@pytest.mark.parametrize("path", [["--data.path", "d"], ["--data.path=d"]], ids=str)
@pytest.mark.parametrize(
    ("flags", "tokenizer", "n_vocab"),
    [
        ([], None, None),
        (["--data.tokenizer", "gpt2"], "gpt2", None),
        (["--model.n-vocab=300"], None, 300),
        (["--model.n_vocab", "300", "--data.tokenizer=bytes"], "bytes", 300),
    ],
    ids=str,
)
def test_other_data_bring_their_own_tokenizer_unless_it_is_typed(
    path, flags, tokenizer, n_vocab, tmp_path
):
    config = tmp_path / "named.py"
    config.write_text(NAMED)
    before = read("--config", str(config)).run
    assert (before.data.tokenizer, before.model.n_vocab) == ("bytes", 257)
    run = read("--config", str(config), *path, *flags).run
    assert (run.data.tokenizer, run.model.n_vocab) == (tokenizer, n_vocab)
    changes = {
        "data": {"path": "d", "tokenizer": tokenizer, "source": None, "val_fraction": 0.05},
        "model": {"n_vocab": n_vocab},
        "sample": {"prompt": ""},
    }
    assert run == overridden(str(config), **changes)


@pytest.mark.parametrize("mixture", [["--data.mixture", "a=1", "b=2:4"], ["--data.mixture=a=1"]])
def test_another_mixture_is_other_data_too(mixture, tmp_path):
    config = tmp_path / "named.py"
    config.write_text(NAMED)
    given = tuple(mixture[1:]) if len(mixture) > 1 else ("a=1",)
    plain = {"tokenizer": None, "source": None, "mixture": given, "val_fraction": 0.05}
    run = read("--config", str(config), *mixture).run
    none = {"model": {"n_vocab": None}, "sample": {"prompt": ""}}
    assert run == overridden(str(config), data=plain, **none)
    typed = read("--config", str(config), *mixture, "--data.tokenizer", "gpt2").run
    assert (typed.data.tokenizer, typed.data.mixture) == ("gpt2", given)
    with pytest.raises(ConfigError, match=r"--data\.path and --data\.mixture exclude each other"):
        read("--config", str(config), *mixture, "--data.path", "data/tiny")


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"gpt2_124m_continue"}))  # GPT-2's own
@pytest.mark.parametrize(
    ("tokenizer", "n_vocab"),
    [
        ("bytes", 257), ("chars", 12), ("gpt2", 50257), ("gpt1", 40478), ("bpe:300", 300),
        ("tiktoken:cl100k_base", 100277),
    ],
)  # fmt: skip
def test_a_path_is_enough_for_every_config_and_every_tokenizer(name, tokenizer, n_vocab):
    manifest: Any = SimpleNamespace(
        directory="d", tokenizer=tokenizer, tokenizer_fingerprint="f", n_vocab=n_vocab
    )
    run = read("--config", name, "--data.path", "d").run
    assert require_vocabulary(manifest, run.model.n_vocab, run.data.tokenizer) == n_vocab
    collect_characters(["xyz"]).encode(run.sample.prompt)  # of which no prompt of ours is made
    mask = load_config(name).data.document_mask
    assert run.data == DataConfig(path="d", document_mask=mask)
    typed = read("--config", name, "--data.path", "d", "--sample.prompt", "x").run
    assert typed.sample.prompt == "x"


def test_a_problem_of_values_that_nobody_typed_names_where_they_come_from():
    (problem,) = problems_of("--config", "tiny", "--train.max-steps", "5")
    assert "--optim.warmup-steps 10 from --config tiny" in problem
    assert "--train.max-steps" not in problem
    (problem,) = problems_of("--config", "gpt2_124m", "--optim.decay-steps=5")
    assert "--optim.warmup-steps 715 from --config gpt2_124m" in problem
    (problem,) = problems_of("--config", "tiny", "--train.max-steps=5", "--optim.warmup_steps=6")
    assert "tiny" not in problem


def test_the_config_files_own_mixture_keeps_what_it_says():
    own = load_config("gpt3_mixture")
    assert read("--config", "gpt3_mixture", "--data.mixture", *own.data.mixture).run == own
    weights = read("--config", "gpt3_mixture", "--data.mixture-changes", "9=1,1,1,1,1").run
    assert (weights.data.mixture, weights.model.n_vocab) == (own.data.mixture, 50257)
    run = read("--config", "gpt3_mixture", "--data.path", "d").run
    assert (run.data.mixture, run.data.tokenizer) == ((), None)


SECTIONS = [*typing.get_type_hints(Config).items()]


def field_docs() -> dict[str, str]:
    """Docstrings of all config fields, by flag, as the source has them."""
    docs = {}
    classes = {node.name: node for node in CONFIG_SOURCE if isinstance(node, ast.ClassDef)}
    kinds = {f"{s}.": kind.__name__ for s, kind in SECTIONS if dataclasses.is_dataclass(kind)}
    for prefix, name in {**kinds, "": "Config"}.items():
        for field, following in itertools.pairwise(classes[name].body):
            is_field = isinstance(field, ast.AnnAssign)
            if is_field and (prefix or f"{ast.unparse(field.target)}." not in kinds):
                assert isinstance(following, ast.Expr), f"{ast.unparse(field)} has no docstring"
                flag = f"--{prefix}{ast.unparse(field.target).replace('_', '-')}"
                docs[flag] = ast.literal_eval(following.value)
    return docs


def squeezed(text: str) -> str:
    """Without white space and frames, so that line breaks do not matter."""
    return re.sub(r"[\s\u2500-\u257f]", "", text)


@pytest.fixture(scope="module")
def help_texts(tmp_path_factory) -> dict[str, str]:
    cwd = tmp_path_factory.mktemp("help")
    results = {verb: run_verb(verb, "--help", cwd=cwd) for verb in VERBS}
    assert {verb: (r.returncode, r.stderr) for verb, r in results.items()} == dict.fromkeys(
        VERBS, (0, "")
    )
    return {verb: result.stdout for verb, result in results.items()}


def test_help_shows_every_field_with_its_docstring(help_texts):
    shown, docs = squeezed(help_texts["train"]), field_docs()
    fields = [
        f"--{section}.{field.name}" if section else f"--{field.name}"
        for section, kind in [*SECTIONS, ("", Config)]
        if dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
        if section or not dataclasses.is_dataclass(typing.get_type_hints(Config)[field.name])
    ]
    assert list(docs) == [name.replace("_", "-") for name in fields]
    missing = [flag for flag, doc in docs.items() if squeezed(flag) not in shown or
               squeezed(doc) not in shown]  # fmt: skip
    assert missing == []


def test_help_names_the_command(help_texts):
    for verb, text in help_texts.items():
        assert text.startswith(f"usage: python -m gptjax.{verb} ")


def test_help_of_a_config_shows_its_own_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--config", "tiny", "--model.n-head", "x", "--help")
    assert caught.value.code == 0
    shown = squeezed(capsys.readouterr().out)
    assert "Transformerblocks(N).(default:2)" in shown


def test_neither_help_nor_an_error_imports_jax(tmp_path):
    script = f"""
import runpy, sys
import gptjax.cli, gptjax.config, gptjax.base.errors, gptjax.base.files, gptjax.config.presets
assert "jax" not in sys.modules, "nouns"
for verb in {VERBS}:
    for argv in (["--help"], ["--bogus"], ["--config", "tinny"], ["--run", "nowhere"]):
        sys.argv = [verb, *argv]
        try:
            runpy.run_module("gptjax." + verb, run_name="__main__")
        except SystemExit as stop:
            print(verb, argv, stop.code, file=sys.stderr)
        assert "jax" not in sys.modules, (verb, argv)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    codes = [line.rsplit(" ", 1)[1] for line in result.stderr.splitlines() if "[" in line]
    assert codes == ["0", "2", "2", "2"] * 2 + ["0", "2", "2", "1"]


def exit_of(verb, monkeypatch, capsys, argv: Sequence[str] = ()) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["verb", *argv])
    with pytest.raises(SystemExit) as caught:
        main(verb)
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


def raiser(error: BaseException):
    def verb(argv):
        raise error

    return verb


@pytest.mark.parametrize(
    ("verb", "code", "message"),
    [
        (lambda argv: None, 0, ""),
        (lambda argv: 0, 0, ""),
        (lambda argv: 143, 143, ""),
        (raiser(UserError("no data in x")), 1, "error: no data in x\n"),
        (raiser(ConfigError(["a", "b"])), 2,
         "error: the configuration has 2 problems:\n  - a\n  - b\n"),
        (raiser(KeyboardInterrupt()), 130, "stopped\n"),
    ],
    ids=["none", "zero", "code", "user error", "config error", "ctrl-c"],
)  # fmt: skip
def test_main_exits_with_a_code_and_one_message(verb, code, message, monkeypatch, capsys):
    assert exit_of(verb, monkeypatch, capsys) == (code, "", message)


def test_main_gives_the_verb_its_arguments(monkeypatch, capsys):
    code, out, _ = exit_of(lambda argv: print(argv), monkeypatch, capsys, ["--a", "b c"])
    assert (code, out) == (0, "['--a', 'b c']\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verb"])
    with pytest.raises(ZeroDivisionError):
        main(lambda argv: 1 // 0)


@pytest.mark.parametrize("lines", [1, 10**5])
def test_a_reader_that_goes_away_is_no_error(lines):
    script = f"from gptjax.cli import main\nmain(lambda argv: print('line\\n' * {lines}))"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("verb", "argv", "code", "words"),
    [
        ("train", ["--config", "tinny", "--model.n-layers=3"], 2,
         ["did you mean tiny?", "did you mean --model.n-layer?"]),
        ("train", [], 2, ["--config is missing", "tiny"]),
        ("train", ["--config", "gpt2_124m"], 1,
         ["no prepared data", "run `python -m gptjax.prepare --config gpt2_124m` first"]),
        ("prepare", [], 2, ["--input and --out missing"]),
        ("prepare", ["--config", "tinny"], 2, ["did you mean tiny?"]),
        ("prepare", ["--config", "gpt3_175b"], 1, ["--input"]),
        ("prepare", ["--config", "gpt2_355m"], 1,
         ["the hub cannot be reached for kjj0/fineweb10B-gpt2"]),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)  # fmt: skip
def test_a_verb_tells_of_a_mistake_without_a_traceback(verb, argv, code, words, tmp_path):
    result = run_verb(verb, *argv, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in result.stderr] == []
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Plain:
    """A verb without a config."""

    count: int = 1
    """How many."""
    names: tuple[str, ...] = ()
    """Which."""


def test_a_verb_without_a_config_reads_its_flags_alone():
    assert parse(Plain, ["--count", "3", "--names", "a", "b"], "verb") == Plain(3, ("a", "b"))
    with pytest.raises(ConfigError) as caught:
        parse(Plain, ["--count", "x", "--name", "a"], "verb")
    assert caught.value.problems == [
        "--count must be int, not x",
        "unknown option --name (did you mean --names?)",
    ]


def test_a_full_disk_is_one_message(tmp_path):
    """Where not even the answer can be written."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "gptjax.plan", "--config", "gpt2_124m"],
            env=environment_on(1), stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert result.returncode == 74
    assert result.stderr == (
        "error: cannot write: No space left on device. Fix this and rerun the same command\n"
    )


@pytest.fixture
def other_run(tmp_path) -> Path:
    """A run of another shape, with bytes."""
    config = overridden("tiny", model={"n_layer": 3, "n_vocab": 257, "n_ctx": 32})
    (tmp_path / "other").mkdir()
    RunDir(tmp_path / "other").begin(config, ByteTokenizer())
    (tmp_path / "other" / "checkpoints" / "7").mkdir(parents=True)
    return tmp_path / "other"


def test_a_run_takes_shape_and_tokenizer_of_the_model_it_starts_from(other_run):
    run = read("--config", "quickstart", "--train.init-from", f"{other_run}@best").run
    assert (run.model.n_layer, run.model.n_embd, run.model.n_ctx) == (3, 32, 32)
    assert (run.model.n_vocab, run.data.tokenizer) == (257, "bytes")
    assert (run.train.init_from, run.context) == (f"{other_run}@best", 32)


def test_every_mistake_beside_a_model_to_start_from_is_listed(other_run):
    command = ("--config", "tiny", "--optim.eps", "0", "--train.init-from")
    assert ["runs/none" in p for p in problems_of(*command, "runs/none")] == [True, False]
    derived = (*command, "runs/none", "--train.batch-tokens", "96")
    assert ["batch_tokens" in p for p in problems_of(*derived)] == [False, False]
    wrong = problems_of(*command, str(other_run), "--model.n-embd=64")
    assert ["h/ln_1/scale" in problem for problem in wrong] == [True, False]


def test_a_run_that_has_begun_has_its_own_shape(other_run, tmp_path):
    @dataclass(frozen=True)
    class Beginning(Command):
        """A verb of a run."""

        @property
        def begun(self) -> Path | None:
            return None if self.fresh else self.run_dir

    own = tmp_path / "own"
    own.mkdir()
    deeper = overridden("tiny", model={"n_layer": 4, "n_vocab": 257})
    RunDir(own).begin(deeper, ByteTokenizer())
    flags = ["--config", "tiny", "--run-dir", str(own), "--train.init-from"]
    run = parse_config(Beginning, [*flags, str(other_run)], "verb").run
    assert run.model.n_layer == 3
    (own / "checkpoints" / "5").mkdir(parents=True)
    run = parse_config(Beginning, [*flags, "runs/gone"], "verb").run
    assert (run.model.n_layer, run.train.init_from) == (4, "runs/gone")
    with pytest.raises(ConfigError, match="there is no model in runs/gone"):
        parse_config(Beginning, [*flags, "runs/gone", "--fresh"], "verb")
