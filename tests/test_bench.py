"""The programs of bench/: their arithmetic, their turns, and that every one of them runs."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import pytest
from conftest import COMPILE_QUICKLY, EXHAUSTIVE, ROOT

BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import card
import gpu
import harness
import programs
import run
import shapes
import trainer
from harness import Report, Spread, Worker, in_turns, ratios

from gptjax.model.size import flops_per_token, parameter_count


@pytest.fixture
def sides(tmp_path, monkeypatch) -> str:
    """A module of sides that cost nothing, where a worker finds it."""
    name = "cheap_sides"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            import os, sys
            from harness import Skipped

            def counting(start):
                print("noise on standard output")
                state = [start]
                def one_round():
                    print("more noise")
                    state[0] += 1
                    return {"seconds": state[0], "process": os.getpid()}
                return one_round, {"start": start}

            def unwilling():
                raise Skipped("nothing to measure with")

            def talkative():
                sys.stderr.write("x" * 2**20)
                return dict, {}

            def broken():
                raise ValueError("the last words")
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return name


def test_a_worker_keeps_its_side_between_rounds_in_a_process_of_its_own(sides):
    worker = Worker(f"{sides}.counting", start=5)
    try:
        first, second = worker(), worker()
    finally:
        worker.close()
    assert worker.facts == {"start": 5}
    assert (first["seconds"], second["seconds"]) == (6, 7)
    assert first["process"] == second["process"] != os.getpid()


def test_a_comparison_says_which_side_cannot_run_here(sides):
    report = Report("name", "A title", ("case", "ours", "theirs", "ours over theirs"))
    ours = (f"{sides}.counting", {"start": 1})
    targets = {"ours": ours, "theirs": (f"{sides}.unwilling", {}), "dead": (f"{sides}.broken", {})}
    measured, facts = harness.compare(targets, 2, report, may_die=True)
    assert facts == {"ours": {"start": 1}}
    assert report.notes[0] == "theirs skipped: nothing to measure with"
    assert report.notes[1].endswith("the last words")
    report.row("case", measured, 6, "{:.0f}")
    assert report.rows == [("case", "2 (2 to 3)", "-", "-")]
    with pytest.raises(RuntimeError, match="the last words"):
        harness.compare(targets, 2, report)


def test_a_worker_may_write_more_errors_than_a_pipe_holds(sides):
    Worker(f"{sides}.talkative").close()


def test_sides_take_turns_and_the_order_alternates():
    order = []
    sides = {name: (lambda n=name: order.append(n) or {"seconds": 1.0}) for name in "abc"}
    results = in_turns(sides, 3)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert {name: len(rounds) for name, rounds in results.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_taken_within_each_round():
    # a machine that halves its speed in the second round changes neither side's ratio
    assert ratios([10, 20, 30], [5, 10, 15]) == Spread(2, 2, 2)
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread(0.5, 0.25, 1).text("{:.2f}") == "0.50 (0.25 to 1.00)"


def test_a_report_is_a_table_and_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "LOAD_AT_START", 99.5)
    report = Report("name", "A title", ("side", "figure"), [("ours", "1.0")])
    report.figures, report.ratio = {"seconds": [1.0]}, {"over": Spread(2.0, 1.0, 3.0)}
    report.skip("theirs", "not installed")
    report.publish(tmp_path)
    content = json.loads((tmp_path / "name.json").read_text())
    assert content["ratio"] == {"over": {"median": 2.0, "low": 1.0, "high": 3.0}}
    busy = "the machine was busy when this began: load 99.5"
    assert content["notes"] == ["theirs skipped: not installed", busy]
    assert {"cpu", "cores", "python", "jax", "torch", "date"} <= set(content["machine"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("A title", "figure", "ours", "not installed"))


@pytest.mark.slow
def test_counted_products_are_those_of_the_formula():
    import step_side

    shape = shapes.Shape(attention="xla", loss_chunk_tokens=0, n_vocab=128, batch=2)
    scanned = shapes.Shape(**{**asdict(shape), "unroll": 1, "micro_steps": 3})
    model = shapes.model_config(shape)
    expected = flops_per_token(model, shape.n_ctx, "full") * shape.tokens
    assert step_side.TrainStep(shape).product_flops == expected
    assert step_side.TrainStep(scanned).product_flops == 3 * expected


@pytest.mark.slow
def test_the_step_is_run_and_accounted():
    import step_side

    step = step_side.TrainStep(shapes.TOY)
    assert step.run(2) > 0
    facts = step.facts()
    floats = 3 * parameter_count(shapes.model_config(shapes.TOY))
    assert facts["argument_bytes"] > 4 * floats
    assert facts["temp_bytes"] > 0


def test_the_plain_torch_model_computes_what_hugging_face_does():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import torch_side

    theirs = torch_side.hugging_face(shapes.TOY).eval()
    plain = torch_side.PlainGPT(shapes.TOY).eval()
    names = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj"}
    names |= {"mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj", "transformer.": "", "h.": "blocks."}
    weights = {}
    for name, value in theirs.state_dict().items():
        is_transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = value.T if is_transposed else value
    weights.pop("lm_head.weight")
    plain.load_state_dict(weights)
    tokens = torch.arange(shapes.TOY.n_ctx)[None]
    with torch.no_grad():
        difference = (plain(tokens) - theirs(tokens).logits).abs().max()
    assert difference < 1e-5


def run_program(*words: object, code: int = 0) -> None:
    """Run a program of bench/ on one device."""
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "XLA_FLAGS": COMPILE_QUICKLY},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stdout + result.stderr


FILES = {"loss": "loss_variants", "attention": "attention_32"}
# run what train_throughput, or gpu.py's programs, run as well
ALIKE = ("train_bfloat16", "loss", "attention", "recipe", "startup")


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [pytest.param(p, marks=EXHAUSTIVE if p in ALIKE else ()) for p in run.PROGRAMS]
)
def test_every_program_runs_at_toy_sizes(program, tmp_path):
    run_program("bench/run.py", "--quick", "--only", program, "--out", tmp_path)
    path = tmp_path / f"{FILES.get(program, program)}.json"
    if program == "recipe" and not path.exists():
        pytest.skip("torch is not installed")
    content = json.loads(path.read_text())
    assert content["rows"] or content["notes"]
    assert content["ratio"] or content["notes"]
    if program == "recipe":
        losses = {side: f["val_loss"][0] for side, f in content["figures"].items()}
        # of a uniform guess over 100 characters or more the loss is 4.6; both have begun to learn
        assert all(2 < loss < 5 for loss in losses.values()), losses


@pytest.mark.slow
def test_two_checkouts_train_by_turns(tmp_path):
    words = ("--only", "train_throughput", "--against", ROOT, "--out", tmp_path)
    run_program("bench/run.py", "--quick", *words)
    content = json.loads((tmp_path / "checkouts.json").read_text())
    rates = content["figures"]["tiny"]["a_second"]
    assert {side: len(values) for side, values in rates.items()} == {"this": 2, "other": 2}
    assert content["ratio"]["tiny"]["other"]["median"] > 0


def test_a_checkout_whose_package_python_does_not_import_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="not the package in"):
        trainer.version(tmp_path)


@pytest.mark.slow
def test_every_gpu_program_runs_at_toy_sizes(tmp_path):
    chosen = [name for name in gpu.PROGRAMS if name not in ("355M", "774M")]  # as 1558M then
    words = ("--dry-run", "--minutes", 60, "--out", tmp_path, "--only", *chosen)
    run_program("bench/gpu.py", *words)
    outcomes = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    missing = {"torch"} - set(filter(importlib.util.find_spec, ["torch"]))
    assert {name for name, o in outcomes.items() if o["outcome"] != "done"} == missing
    assert (tmp_path / "gpu_command_loss.png").stat().st_size > 0
    assert (tmp_path / "gpu_124M.hlo").read_text().startswith("HloModule")
    tables = (tmp_path / "gpu.md").read_text()
    assert tables.count("\n### ") == len(chosen) - len(missing)


def test_the_first_programs_of_a_gpu_need_neither_grain_nor_tyro_nor_orbax(tmp_path):
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['grain', 'tyro', 'orbax'])); "
        "from gptjax.cluster.environment import import_jax; import_jax(); "
        "import card, gpu, step_side, floor_side, generating, gptjax.generation.engine"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(BENCH), str(ROOT)]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=paths, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_floor_has_every_product_of_a_step(monkeypatch):
    import floor_side
    import jax
    import step_side

    monkeypatch.setattr(floor_side, "claim_memory", lambda: None)
    shape = replace(shapes.TOY, n_vocab=128, micro_steps=3, loss_chunk_tokens=32)
    one_round, facts = floor_side.step(asdict(shape), repeats=1)
    attention = 6 * shape.n_layer * shape.n_ctx * shape.n_embd
    weights = flops_per_token(shapes.model_config(shape), shape.n_ctx) - attention
    assert facts["flops"] == weights * shape.tokens
    figures = one_round()
    parts = figures["layers"] + figures["head"] + figures["attention"]
    assert figures["seconds"] == pytest.approx(parts)
    x, w, g = (jax.numpy.ones(size) for size in ((8, 4), (4, 6), (8, 6)))
    traced = jax.make_jaxpr(floor_side._products)([(x, w, g)])
    assert step_side.product_flops(traced.jaxpr) == 6 * 8 * 4 * 6


@pytest.mark.parametrize(("memory", "chunk"), [(None, 2048), (80 * 10**9, 8192)])
def test_the_step_and_its_floor_have_the_chunks_of_the_trainer(memory, chunk, monkeypatch):
    import floor_side
    import step_side

    assert shapes.loss_chunk_tokens(card.whole(quick=False), memory) == chunk
    fixed = replace(shapes.TOY, loss_chunk_tokens=512)
    assert shapes.loss_chunk_tokens(fixed, memory) == 512

    shape, claimed, assembled = replace(shapes.TOY, batch=512), [], []  # 16,384 tokens
    monkeypatch.setattr(floor_side, "claim_memory", lambda: claimed.append(True))
    monkeypatch.setattr(floor_side, "gpu_memory", lambda: memory if claimed else 0)
    monkeypatch.setattr(floor_side, "_seconds", lambda *call: 1.0)
    one_round, _ = floor_side.step(asdict(shape), repeats=1)
    assert one_round()["head"] == shape.tokens // chunk

    def stop(config, mesh):
        assembled.append(config.train.loss_chunk_tokens)
        raise InterruptedError

    monkeypatch.setattr(step_side, "gpu_memory", lambda: memory)
    monkeypatch.setattr(step_side, "assemble", stop)
    with pytest.raises(InterruptedError):
        step_side.TrainStep(shape)
    assert assembled == [chunk]


def test_the_tables_of_a_gpu_are_a_section_of_the_results(tmp_path):
    report = Report("gpu_torch", "A title", ("step", "rate"), [("ours", "1.0 (0.9 to 1.1)")])
    report.figures, report.notes = {"ours": {"device": "NVIDIA H100"}}, ["said once"]
    report.publish(tmp_path)
    Report("another", "Not of a GPU", ("a",)).publish(tmp_path)
    gpu.tabulate(tmp_path)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert lines[0].startswith("## 20")
    assert ", NVIDIA H100; Python " in lines[0]
    start = lines.index("### A title")
    table = ["", "| step | rate |", "| --- | --- |", "| ours | 1.0 (0.9 to 1.1) |", ""]
    assert lines[start + 1 : start + 7] == [*table, "- said once"]
    assert not any("Not of a GPU" in line for line in lines)


@pytest.mark.slow
def test_programs_fail_run_over_and_are_left_out_without_ending_the_others(tmp_path):
    ran = []

    def broken(plan):
        raise ValueError("no luck")

    chosen = {
        "broken": broken,
        "slow": lambda plan: time.sleep(60),
        "unwilling": lambda plan: Worker("cheap.missing").close(),
        "good": lambda plan: ran.append(plan.scratch.is_dir()),
    }
    outcomes = programs.run_programs(chosen, (), harness.Plan(True, tmp_path), limit=5)
    words = {name: outcome["outcome"] for name, outcome in outcomes.items()}
    assert words["broken"] == "failed: ValueError: no luck"
    assert words["slow"].startswith("failed: TimeoutError")
    assert words["unwilling"].startswith("failed: RuntimeError: cheap.missing died")
    assert (words["good"], ran) == ("done", [True])
    assert programs.report_outcomes(outcomes) == 1
    late = programs.run_programs(chosen, ("good",), harness.Plan(True, tmp_path), seconds=0)
    assert late["good"]["outcome"].startswith("skipped")
    assert programs.report_outcomes(late) == 0


def test_a_program_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no program flight: expected of"):
        programs.run_programs(run.PROGRAMS, ("flight",), harness.Plan(True, tmp_path))
