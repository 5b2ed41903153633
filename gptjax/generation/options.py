"""The flags of `python -m gptjax.generate`, and what can be wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptjax.base.errors import ConfigError
from gptjax.config import SampleConfig
from gptjax.config.origins import flag_of
from gptjax.config.validation import sample_problems


@dataclass(frozen=True)
class GenerateCommand:
    """Write text to standard output while it is drawn; the same seed gives the same text."""

    run: str = "runs/quickstart"
    """RUN, RUN@best (lowest validation loss, the default), RUN@latest, RUN@STEP, or a Hugging Face
    directory."""
    prompt: str = ""
    """Text to continue, empty starts a new document; or what a run that follows instructions shall
    answer."""
    raw: bool = False
    """Continue the prompt as it is, also with a run that follows instructions; without it such a
    run reads the prompt in the words of its training."""
    max_new_tokens: int = 200
    """Length of each sample, in tokens; a sample also ends with its document."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int | None = 50
    """Number of most likely tokens to choose from; None keeps the whole vocabulary."""
    top_p: float = 1.0
    """Choose from the fewest most likely tokens with this total probability; 1 keeps all."""
    min_p: float = 0.0
    """Choose from tokens of at least this share of the highest probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text already has become less likely."""
    stop: tuple[str, ...] = ()
    """Texts before which a sample ends."""
    num_samples: int = 1
    """Number of samples of each prompt, drawn together."""
    seed: int = 0
    """Seed of the samples. Sample i has the same random numbers whatever its prompt."""
    slide: bool = False
    """When the context is full, drop its oldest half and go on; without it the sample ends."""
    logprobs: bool = False
    """Show each token with its log-probability and the five most likely ones."""
    classify: tuple[str, ...] = ()
    """Text whose class is wanted, in place of a text to continue: one, or two for a run that reads
    pairs, or a text and its answers for one that chooses between answers."""
    prompts: Path | None = None
    """File of prompts, one a line, or JSON Lines with a field `prompt` if its name ends in .jsonl;
    the texts are written as JSON Lines."""
    out: Path | None = None
    """File for the texts of --prompts, which appears when it is whole; until then finished texts
    are in FILE.part. The default is standard output."""
    compare: tuple[str, str] | None = None
    """Two runs whose texts are shown side by side, in place of --run."""
    max_batch: int = 32
    """Most samples that are drawn at once; more of them need more memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and matrix products."""

    @property
    def sample(self) -> SampleConfig:
        """The settings of every sample."""
        cut = (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        return SampleConfig(self.prompt, self.max_new_tokens, *cut, self.stop)

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of the models to draw from."""
        return self.compare or (self.run,)


def greedy_idle_flags(command: GenerateCommand) -> list[str]:
    """The fields of flags that change nothing, because only one token can be drawn."""
    defaults, coldest = GenerateCommand(), command.temperature == 0
    if not coldest and command.top_k != 1:
        return []
    names = ["seed", "num_samples", "top_k" if coldest else "temperature", "top_p", "min_p"]
    return [name for name in names if getattr(command, name) != getattr(defaults, name)]


def check_generate_flags(command: GenerateCommand) -> None:
    """Raise one `ConfigError` with every problem of the flags."""
    problems = [f"{flag_of(field)} {rule}" for field, rule in sample_problems(command.sample)]
    for name in ("num_samples", "max_batch"):
        if (value := getattr(command, name)) < 1:
            problems.append(f"{flag_of(name)} must be at least 1, not {value}")
    if not 0 <= command.seed < 2**32:
        problems.append(f"--seed must be in [0, 2**32), not {command.seed}")
    for other, name in (("prompts", "prompt"), ("compare", "run")):
        is_given = getattr(command, name) != getattr(GenerateCommand(), name)
        if is_given and getattr(command, other) is not None:
            problems.append(f"{flag_of(other)} replaces {flag_of(name)}: leave one of them out")
    if (out := command.out) is not None:
        if command.prompts is None:
            problems.append("--out is for the texts of --prompts, which is missing")
        if (out.exists() and not out.is_file()) or not out.absolute().parent.is_dir():
            problems.append(f"--out {out} is no file or in no directory: expected a file's name")
        elif command.prompts is not None and out.resolve() == command.prompts.resolve():
            problems.append(f"--out {out} is the file of --prompts, which it would replace")
    if command.classify:
        defaults = GenerateCommand()
        ignored = [f for f in vars(defaults) if f not in ("run", "classify", "dtype")]
        ignored = [f for f in ignored if getattr(command, f) != getattr(defaults, f)]
        problems += [f"{flag_of(name)} is not for --classify: leave it out" for name in ignored]
    if problems:
        raise ConfigError(problems)
