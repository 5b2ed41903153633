"""The rules of `SampleConfig`: the range of every setting that decides how text is drawn."""

from collections.abc import Iterator

from gptjax.config.schema import SampleConfig


def sampling_mistakes(sample: SampleConfig) -> Iterator[tuple[str, str]]:
    """The name of every field out of range, and its broken rule; types are checked before."""
    s, infinity = sample, float("inf")
    if s.max_new_tokens < 1:
        yield "max_new_tokens", f"must be at least 1, not {s.max_new_tokens}"
    if not 0 <= s.temperature < infinity:
        yield "temperature", f"must be 0 or more, not {s.temperature}"
    if s.top_k is not None and s.top_k < 1:
        yield "top_k", f"must be at least 1, not {s.top_k} (None keeps all)"
    if not 0 < s.top_p <= 1:
        yield "top_p", f"must be above 0 and at most 1, not {s.top_p} (1 keeps all)"
    if not 0 <= s.min_p < 1:
        yield "min_p", f"must be in [0, 1), not {s.min_p} (0 keeps all)"
    if not 0 < s.repetition_penalty < infinity:
        yield "repetition_penalty", f"must be above 0, not {s.repetition_penalty} (1 has no effect)"
    if "" in s.stop:
        yield "stop", f"must be texts that are not empty, not {s.stop!r}"
