"""The program `decode` and gptjax's sides of it: greedy texts after a prompt.

A token of one sequence reads every weight once, so memory bandwidth bounds its speed. The bound is
measured in the same turns: the larger of what torch's sum and jax's sum read in a second.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from harness import Figures, Plan, Report, Round, Spread, column, compare, ratios
from shapes import SMALL, TOY, Shape, gpt2, model_config

from gptjax.model.size import parameter_count

ENGINE, CACHED, WINDOW = "gptjax", "HF with cache", "gptjax without cache"
TORCH_SUM, JAX_SUM = "torch's sum", "jax's sum"


def decode(plan: Plan) -> None:
    """Tokens per second beside Hugging Face's generate, a whole window a token, and memory."""
    cases = [
        ("gpt2_124m, 1 text", gpt2("124M", 1024, 1), 32, 100),
        ("gpt2_124m, 8 texts", gpt2("124M", 1024, 8), 32, 100),
        ("small, 1 text", replace(SMALL, n_ctx=256, batch=1), 32, 100),
    ]
    if plan.quick:
        cases = [("toy, 1 text", replace(TOY, batch=1), 4, 6), ("toy, 2 texts", TOY, 4, 6)]
    report = Report(
        "decode",
        "Greedy texts of random parameters in float32: tokens/s, the prompt's time included",
        ("model", ENGINE, CACHED, WINDOW, f"over {CACHED}", f"over {WINDOW}"),
    )
    speeds: dict[str, float] = {}
    for name, shape, prompt, new in cases:
        tokens = {"shape": asdict(shape), "prompt": prompt, "new_tokens": new}
        megabytes = 4 if plan.quick else 512
        targets = {
            ENGINE: ("generating.engine_side", tokens),
            CACHED: ("torch_side.decode", tokens),
            TORCH_SUM: ("torch_side.stream", {"megabytes": megabytes}),
            JAX_SUM: ("generating.stream_side", {"megabytes": megabytes}),
        }
        if shape.batch == 1:
            targets[WINDOW] = ("generating.window_side", tokens)
        measured, _ = compare(targets, plan.rounds(3), report)
        sides = {side: rounds for side, rounds in measured.items() if "sum" not in side}
        row = f"{name}: {shape}; {prompt} + {new} tokens"
        report.row(row, sides, new * shape.batch, "{:,.1f}")
        speeds[name] = report.figures[row]["tokens_per_second"] = Spread.of(
            report.figures[row]["a_second"][ENGINE]
        ).median
        _add_bounds(report, row, shape, measured)
    one, several = list(speeds)[:2]
    report.ratio[f"{several} over {one}"] = speeds[several] / speeds[one]
    report.note(f"{several} over {one}: {speeds[several] / speeds[one]:.2f} times the tokens/s")
    report.publish(plan.out)


def _add_bounds(
    report: Report, row: str, shape: Shape, measured: Mapping[str, Sequence[Figures]]
) -> None:
    """What bounds a case: memory for each token after the first, the prompt for the first."""
    model, engine = model_config(shape), measured[ENGINE]
    # of the positions, a token reads one row
    weights = 4 * (parameter_count(model) - model.n_ctx * model.n_embd)
    sums = [column(rounds, "bandwidth") for side, rounds in measured.items() if "sum" in side]
    bandwidth = [max(both) for both in zip(*sums, strict=True)]
    limit, speed = [shape.batch * b / weights for b in bandwidth], column(engine, "decoding")
    of_limit = ratios(speed, limit)
    first = ratios(column(engine, "first_seconds"), column(engine, "prefill_seconds"))
    report.figures[row] |= {
        "weight_bytes": weights,
        "bandwidth": bandwidth,
        "limit_tokens_per_second": limit,
        "decoding_tokens_per_second": speed,
        "first_token_seconds": column(engine, "first_seconds"),
        "prefill_seconds": column(engine, "prefill_seconds"),
    }
    report.ratio[row] |= {"decoding over the limit": of_limit, "first token over prefill": first}
    name, gigabytes = row.partition(":")[0], Spread.of([b / 1e9 for b in bandwidth])
    report.note(
        f"{name}: {Spread.of(speed).text('{:,.1f}')} tokens/s after the first token are "
        f"{of_limit.text('{:.2f}')} of what memory allows ({gigabytes.text('{:.1f}')} GB/s over "
        f"{weights / 1e6:,.0f} MB of weights); the first token takes {first.text('{:.2f}')} times "
        "as long as reading the prompt"
    )


def engine_side(
    shape: dict, prompt: int, new_tokens: int, dtype: str = "float32"
) -> tuple[Round, dict]:
    """The engine, in calls of 32 tokens, with as many slots as the batch."""
    import jax
    import numpy as np

    from gptjax.config import SampleConfig
    from gptjax.generation.engine import Engine
    from gptjax.generation.requests import GenerationRequest
    from gptjax.model.gpt import init_params

    sizes = Shape(**shape)
    cfg = model_config(sizes)
    numbers = np.random.default_rng(0).integers(0, sizes.n_vocab, (sizes.batch, prompt))
    sample = SampleConfig(max_new_tokens=new_tokens, temperature=0.0, top_k=None)
    requests = [GenerationRequest(row, sample, jax.random.key(0)) for row in numbers.tolist()]
    decoder = Engine(cfg, init_params(cfg, jax.random.key(0)), dtype=dtype, donate=True)

    def one_round() -> Figures:
        engine = decoder.with_slots(sizes.batch)
        started = time.perf_counter()
        drawn = len(engine.admit(requests[0]).tokens)
        first = time.perf_counter() - started
        for request in requests[1:]:
            drawn += len(engine.admit(request).tokens)
        prompts_read = time.perf_counter()
        while engine.running:
            drawn += sum(len(event.tokens) for event in engine.decode(32))
        ended = time.perf_counter()
        assert drawn == new_tokens * sizes.batch
        decoding = (new_tokens - 1) * sizes.batch / (ended - prompts_read)
        engine = decoder.with_slots(1)  # which has read no prompt yet
        began = time.perf_counter()
        jax.block_until_ready(engine._read_prompt(tuple(requests[0].prompt)))
        prefill = time.perf_counter() - began
        figures = {"seconds": ended - started, "decoding": decoding}
        return figures | {"first_seconds": first, "prefill_seconds": prefill}

    one_round()  # compiles
    return one_round, {}


def window_side(shape: dict, prompt: int, new_tokens: int) -> tuple[Round, dict]:
    """The whole model over a padded window of all tokens so far, for every token."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gptjax.model.gpt import GPT, init_params

    sizes = Shape(**shape)
    cfg = model_config(sizes)
    params = init_params(cfg, jax.random.key(0))
    start = np.random.default_rng(0).integers(0, sizes.n_vocab, prompt)

    @jax.jit
    def next_token(params: Any, window_T: jax.Array, length: int) -> jax.Array:
        logits_BTV = GPT(cfg).apply({"params": params}, window_T[None])
        assert isinstance(logits_BTV, jax.Array)
        return jnp.argmax(logits_BTV[0, length - 1])

    def one_round() -> Figures:
        started = time.perf_counter()
        tokens = start.tolist()
        for _ in range(new_tokens):
            length = min(cfg.n_ctx, max(64, 1 << (len(tokens) - 1).bit_length()))
            window = np.zeros(length, np.int32)
            window[: len(tokens)] = tokens
            tokens.append(int(next_token(params, window, len(tokens))))
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {}


def stream_side(megabytes: int) -> tuple[Round, dict]:
    """Memory that a sum reads in a second."""
    import jax
    import jax.numpy as jnp

    numbers, total = jnp.ones(megabytes * 250_000), jax.jit(jnp.sum)

    def one_round() -> Figures:
        started = time.perf_counter()
        for _ in range(5):
            total(numbers).block_until_ready()
        seconds = (time.perf_counter() - started) / 5
        return {"seconds": seconds, "bandwidth": numbers.nbytes / seconds}

    one_round()
    return one_round, {}
