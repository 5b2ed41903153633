"""Continue a text with a run: `python -m gptjax.generate --run runs/quickstart --prompt "def "`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gptjax.base.errors import ConfigError
from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax
from gptjax.config import SampleConfig
from gptjax.config.origins import flag_of
from gptjax.config.validation import sample_problems


@dataclass(frozen=True)
class GenerateCommand:
    """Write text to standard output while it is sampled; the same seed gives the same text."""

    run: str = "runs/quickstart"
    """RUN, RUN@best (lowest validation loss, the default), RUN@latest or RUN@STEP."""
    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = 200
    """Length of each sample, in tokens; a sample also ends with its document."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int | None = 50
    """Number of most likely tokens to choose from; None keeps the whole vocabulary."""
    num_samples: int = 1
    """Number of samples."""
    seed: int = 0
    """Seed of the samples."""


def generate(argv: Sequence[str]) -> int:
    """Load the parameters of a checkpoint and stream samples."""
    command = parse(GenerateCommand, argv, "python -m gptjax.generate")
    sample = SampleConfig(
        command.prompt, command.max_new_tokens, command.temperature, command.top_k
    )
    _check(command, sample)
    from gptjax.conversion.finding import find_model  # NumPy comes with it

    find_model(command.run)
    if idle := _idle_flags(command):
        print(f"note: decoding is greedy, so {idle} has no effect", file=sys.stderr)
    import_jax()

    from gptjax.cluster.compiler import enable_compilation_cache
    from gptjax.conversion.opening import load_run

    enable_compilation_cache()
    run = load_run(command.run)
    run.tokenizer.encode(command.prompt)  # a prompt it cannot encode fails before any output
    print(run.origin, file=sys.stderr)
    for number in range(command.num_samples):
        if number:
            print("\n---")
        print(command.prompt, end="", flush=True)
        for text in run.stream(sample, command.seed, number):
            print(text, end="", flush=True)
        print()
    return 0


def _idle_flags(command: GenerateCommand) -> str:
    """The given flags that change nothing because only one token can be drawn."""
    defaults, coldest = GenerateCommand(), command.temperature == 0
    if not coldest and command.top_k != 1:
        return ""
    names = ["seed", "num_samples", "top_k" if coldest else "temperature"]
    idle = [name for name in names if getattr(command, name) != getattr(defaults, name)]
    return " and ".join(flag_of(name) for name in idle)


def _check(command: GenerateCommand, sample: SampleConfig) -> None:
    problems = [f"{flag_of(field)} {rule}" for field, rule in sample_problems(sample)]
    if command.num_samples < 1:
        problems.append(f"--num-samples must be at least 1, not {command.num_samples}")
    if not 0 <= command.seed < 2**32:
        problems.append(f"--seed must be in [0, 2**32), not {command.seed}")
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    main(generate)
