"""The model type `gptjax` of EleutherAI's lm-evaluation-harness.

    lm = harness_model(gptjax.load_run(RUN))
    lm_eval.simple_evaluate(model=lm, tasks=["arc_easy"])

`gptjax.evaluation.harness_tasks` runs it from the command line and on local files. Needs the extra
`evaluate`, but not torch. Reference values are in the docstrings of `hellaswag`, `lambada` and
`wikitext` in this room.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gptjax.base.errors import UserError
from gptjax.config import SampleConfig
from gptjax.evaluation.scoring import Request, Scorer
from gptjax.generation.continuing import continue_texts
from gptjax.generation.engine import Engine
from gptjax.generation.loaded import LoadedRun
from gptjax.generation.requests import GenerationRequest
from gptjax.generation.text_requests import encode_prompt, sample_key
from gptjax.tokenizers.registry import fingerprint

NAME = "gptjax"
NEW_TOKENS = 256  # of a generated answer, where its task does not say


def harness_model(run: LoadedRun, scorer: Scorer | None = None) -> Any:
    """A run as an `lm_eval.api.model.LM`, with its own scorer or the usual one.

    Raises `UserError` if lm-eval is not installed.
    """
    return model_class()(run, scorer or Scorer(run.config.model, run.params))


@cache
def model_class() -> Any:
    """The class of `harness_model`: a subclass of lm-evaluation-harness's `TemplateLM`."""
    try:
        # its bootstrap forks processes, and a fork of a process with jax's threads may hang
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ModuleNotFoundError as error:
        raise UserError(
            f"lm-evaluation-harness needs {error.name}: pip install 'gptjax[evaluate]'"
        ) from error

    @register_model(NAME)
    class HarnessModel(TemplateLM):
        """A run of gptjax as the harness wants a model. Texts are encoded by the run's tokenizer.

        The pairs of a context and a continuation are encoded by the harness's own code, and the
        windows of a long text are its own too.
        """

        given: Any = None
        """The model that `--model gptjax` stands for on the harness's command line."""

        def __init__(self, run: LoadedRun, scorer: Scorer):
            super().__init__()
            self.run, self.scorer = run, scorer
            self.batch_size = scorer.batch_rows

        @classmethod
        def create_from_arg_obj(cls, arg_dict: Any, additional_config: Any = None) -> Any:
            """The given model: it is loaded before the harness begins."""
            return cls.given

        @classmethod
        def create_from_arg_string(cls, arg_string: Any, additional_config: Any = None) -> Any:
            """The given model."""
            return cls.given

        @property
        def eot_token_id(self) -> int:
            """End-of-text, which also stands before a text without context."""
            return self.run.tokenizer.eot_id

        @property
        def max_length(self) -> int:
            """Tokens that the model reads."""
            return self.scorer.context

        @property
        def tokenizer_name(self) -> str:
            """Name of the tokenizer in caches of the harness."""
            return f"{self.run.tokenizer.name}-{fingerprint(self.run.tokenizer)}"

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> list[int]:
            """Token ids of a text; no special token is added."""
            return self.run.tokenizer.encode(string).tolist()

        def get_model_info(self) -> dict[str, Any]:
            """What the harness records about the model."""
            return {"model_origin": self.run.origin, "model_dtype": self.scorer.cfg.dtype}

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            pairs = [Request(context, continuation) for _, context, continuation in requests]
            scores = self._scored(pairs, "loglikelihood", kwargs.get("disable_tqdm", False))
            for (texts, *_), score in zip(requests, scores, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, score)
            return scores

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[float]:
            """Log-probability of each whole text, in windows that do not overlap."""
            pairs: list[Request] = []
            owners: list[int] = []
            for number, request in enumerate(requests):
                tokens = self.tok_encode(request.args[0])
                windows = utils.get_rolling_token_windows(
                    tokens, self.prefix_token_id, self.max_length, context_len=1
                )
                for window in windows:
                    pairs.append(Request(*utils.make_disjoint_window(window)))
                    owners.append(number)
            sums = [0.0] * len(requests)
            scores = self._scored(pairs, "loglikelihood_rolling", disable_tqdm)
            for number, (logprob, _) in zip(owners, scores, strict=True):
                sums[number] += logprob
            for request, total in zip(requests, sums, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Text after each context, up to the first of its stop texts or end-of-text."""
            from tqdm import tqdm

            answers = [""] * len(requests)
            wanted = [_wanted(self, request.args, n) for n, request in enumerate(requests)]
            scorer = self.scorer
            rest = (self.batch_size, scorer.context, scorer.cfg.dtype)
            engine = Engine(scorer.cfg, scorer.params, *rest)
            with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
                # an answer may be longer than the context, which then slides
                for piece in continue_texts(engine, self.run.tokenizer, wanted, slide=True):
                    answers[piece.number] += piece.text
                    if piece.finish is not None:
                        args, answer = requests[piece.number].args, answers[piece.number]
                        self.cache_hook.add_partial("generate_until", args, answer)
                        bar.update()
            return answers

        def _scored(
            self, pairs: list[Request], name: str, is_quiet: bool
        ) -> list[tuple[float, bool]]:
            from tqdm import tqdm

            with tqdm(total=len(pairs), desc=f"Running {name} requests", disable=is_quiet) as bar:

                def advance(done: int) -> None:
                    bar.update(done)

                scores = self.scorer.score(pairs, advance)
            return [(score.logprob, score.is_greedy) for score in scores]

    return HarnessModel


def _wanted(model: Any, arguments: tuple[str, Mapping[str, Any]], number: int) -> GenerationRequest:
    """The engine's request for a context and the generation arguments of its task."""
    context, wishes = arguments
    until = wishes.get("until") or []
    stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    aliases = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    new_tokens = next((int(wishes[a]) for a in aliases if wishes.get(a) is not None), NEW_TOKENS)
    is_sampled = wishes.get("do_sample", bool(wishes.get("temperature")))
    sample = SampleConfig(
        max_new_tokens=new_tokens,
        temperature=float(wishes.get("temperature", 1.0)) if is_sampled else 0.0,
        top_k=wishes.get("top_k") or None,
        top_p=float(wishes.get("top_p") or 1.0),
        min_p=float(wishes.get("min_p") or 0.0),
        stop=stops,
    )
    tokenizer, scorer = model.run.tokenizer, model.scorer
    # an answer as long as the context must not leave its question out
    kept = max(1, scorer.context // 2, scorer.context - new_tokens)
    prompt = encode_prompt(tokenizer, scorer.cfg, context)[-kept:]
    return GenerationRequest(prompt, sample, sample_key(0, number), (tokenizer.eot_id,))
