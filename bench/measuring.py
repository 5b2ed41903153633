"""The program `evaluate`, and its two sides: HellaSwag by gptjax and by lm-evaluation-harness.

Items are made of common words, with the lengths of the published ones: a context of 40 to 60 words
and four endings of 20 to 30. Both sides read them from one file, encode them with GPT-2's BPE and
score all endings in float32, with as many rows in a batch and as many threads.
"""

import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness import Figures, Plan, Report, Round, Skipped, compare, cores
from shapes import TOY, Shape, gpt2, model_config

WORDS = """\
a the man woman is are seen standing in front of camera and speaking while holding up his hand then
begins to play on bike ball water with her hair another people around room walks into shot talks
moving back forth shows several clips person tools continues ending by looking away"""
ROWS = 16  # in a batch


def evaluate(plan: Plan) -> None:
    """Items of HellaSwag per second, beside lm-evaluation-harness's own backend `hf`."""
    shape, items, rounds = gpt2("124M", 1024, ROWS), 16, 3
    if plan.quick:
        shape, items, rounds = replace(TOY, n_ctx=128, n_vocab=50257, batch=ROWS), 4, 2
    data = plan.scratch / "hellaswag.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in made_items(items)))
    report = Report(
        "evaluate",
        f"HellaSwag of {items} items: items/s, tokenisation and all",
        ("model", "gptjax", "lm-eval hf", "over lm-eval hf"),
    )
    arguments = {"shape": asdict(shape), "data": str(data)}
    targets = {
        "gptjax": ("measuring.gptjax_side", arguments),
        "lm-eval hf": ("measuring.lm_eval_side", {**arguments, "scratch": str(plan.scratch)}),
    }
    measured, _ = compare(targets, plan.rounds(rounds), report)
    report.row(str(shape), measured, items, "{:,.2f}")
    report.publish(plan.out)


def made_items(count: int) -> list[dict[str, Any]]:
    """Rows of hellaswag_val.jsonl, the same every time."""
    chance = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(chance.choices(WORDS.split(), k=chance.randint(low, high)))

    rows = []
    for number in range(count):
        first, second = words(30, 48) + ".", words(6, 10)
        rows.append(
            {
                "ind": number,
                "activity_label": words(2, 3),
                "ctx_a": first,
                "ctx_b": second,
                "ctx": f"{first} {second.capitalize()}",
                "endings": [words(20, 30) + "." for _ in range(4)],
                "label": number % 4,
            }
        )
    return rows


def gptjax_side(shape: dict, data: str) -> tuple[Round, dict]:
    """What `gptjax.evaluate --on hellaswag` measures, with random parameters."""
    from contextlib import nullcontext

    import jax

    from gptjax.config import Config
    from gptjax.evaluation.hellaswag import measure_hellaswag
    from gptjax.evaluation.scoring import Scorer
    from gptjax.evaluation.setting import Setting
    from gptjax.generation.loaded import LoadedRun
    from gptjax.model.gpt import init_params

    model = model_config(Shape(**shape))
    run = LoadedRun(Config(model=model), init_params(model, jax.random.key(0)), _gpt2(), 0, "")
    scorer = Scorer(model, run.params, batch_rows=shape["batch"])

    def quiet(total: int, unit: str) -> Any:
        return nullcontext(lambda done: None)

    setting = Setting(run, scorer, data, bar=quiet)

    def one_round() -> Figures:
        started = time.perf_counter()
        figures = measure_hellaswag(setting)
        return {"seconds": time.perf_counter() - started, "acc": float(figures["acc"] or 0)}

    first = one_round()["seconds"]  # compiles
    return one_round, {"programs": len(scorer.shapes), "first_seconds": first}


def lm_eval_side(shape: dict, data: str, scratch: str) -> tuple[Round, dict]:
    """The same requests through the backend `hf`: its `loglikelihood`, tokenisation included."""
    try:
        import torch
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
        from torch_side import hugging_face
        from transformers import AutoTokenizer
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install -e '.[reference]'") from error

    from gptjax.conversion.tokenizer_writing import write_tokenizer_files
    from gptjax.evaluation.hellaswag import in_lm_eval_style, read_scenes

    torch.manual_seed(0)
    torch.set_num_threads(cores())
    sizes = Shape(**shape)
    files = Path(scratch) / "tokenizer"
    files.mkdir()
    write_tokenizer_files(_gpt2(), files, sizes.n_ctx)
    backend: Any = HFLM
    lm = backend(
        pretrained=hugging_face(sizes).eval(),
        tokenizer=AutoTokenizer.from_pretrained(str(files)),
        batch_size=sizes.batch,
        device="cpu",
    )
    requests = [
        Instance("loglikelihood", {}, (question.context, f" {choice}"), number)
        for question in map(in_lm_eval_style, read_scenes(data))
        for number, choice in enumerate(question.choices)
    ]

    def one_round() -> Figures:
        started = time.perf_counter()
        lm.loglikelihood(requests, disable_tqdm=True)
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {}


def _gpt2() -> Any:
    """GPT-2's tokenizer; without its files there is nothing to compare."""
    from gptjax.base.errors import UserError
    from gptjax.tokenizers.registry import make_tokenizer

    try:
        return make_tokenizer("gpt2")
    except UserError as error:
        raise Skipped(str(error)) from error
