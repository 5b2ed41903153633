"""Bring a model in: `python -m gptjax.convert --from openai-community/gpt2 --out runs/gpt2`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from gptjax.base.errors import ConfigError
from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax

NEXT = """wrote {out}; continue with
  python -m gptjax.generate --run {out} --prompt ...
  python -m gptjax.evaluate --run {out} --on perplexity --data FILE
  python -m gptjax.train --config NAME --train.init-from {out}"""


@dataclass(frozen=True)
class ConvertCommand:
    """Bring a model in with --from, or take a run out with --run and --to."""

    from_: Annotated[str | None, arg(name="from")] = None
    """Model to bring in: a directory of Hugging Face's GPT-2 or OpenAI-GPT, the name of one on the
    hub, a directory of OpenAI's GPT-1 files, nanoGPT's ckpt.pt, or llm.c's .bin; or adapters, a
    directory of PEFT."""
    base: str | None = None
    """Model beneath the adapters of --from: a run or a Hugging Face directory; None takes the one
    that they name themselves."""
    run: str | None = None
    """Run to take out: RUN, RUN@best, RUN@latest, RUN@STEP, or a Hugging Face directory."""
    to: Literal["huggingface", "llmc", "peft"] | None = None
    """Format to take it out in; peft writes the adapters of LoRA alone."""
    merge: bool = False
    """Write --run, which has adapters, as a run of a whole model."""
    out: str | None = None
    """Directory to write, which must not exist: of a run with --from and --merge, else of the
    format."""
    kind: Literal["huggingface", "openai", "nanogpt", "llmc"] | None = None
    """Format of --from, where it cannot be found out."""
    tokenizer: str | None = None
    """Tokenizer of --from, where it carries none: gpt2, gpt1, bytes, tiktoken:ENCODING, the JSON
    file of a tokenizer, or nanoGPT's meta.pkl."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the numbers that --to writes; float32 is exact."""
    averaged: bool = False
    """Take the running average of the parameters, if --run keeps one."""
    for_: Annotated[Literal["transformers", "vllm", "llama.cpp"], arg(name="for")] = "transformers"
    """Program to serve what --to huggingface writes; what it would serve wrongly is refused."""


def convert(argv: Sequence[str]) -> int:
    """Convert in one of the two directions, and print what was found and what to do next."""
    command = parse(ConvertCommand, argv, "python -m gptjax.convert")
    check_direction(command)
    import_jax()
    from gptjax.conversion.directions import bring_in, take_out

    out, lines = Path(command.out or ""), []
    if command.from_ is not None:
        what = command.kind, command.tokenizer, command.base
        lines, notes = bring_in(command.from_, out, *what)
    else:
        how = command.to, command.dtype, command.averaged, command.for_
        notes = take_out(command.run or "", out, *how)
    for line in lines:
        print(line)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {out}" if command.from_ is None else NEXT.format(out=out))
    return 0


def check_direction(command: ConvertCommand) -> None:
    """Raise a `ConfigError` with every flag that is missing or belongs to the other direction."""
    problems = [] if command.out else ["--out is missing: give a new directory"]
    inwards = {"--kind": command.kind, "--tokenizer": command.tokenizer, "--base": command.base}
    outwards = {"--to": command.to, "--merge": command.merge, "--averaged": command.averaged}
    outwards |= {"--dtype": command.dtype != ConvertCommand.dtype}
    outwards |= {"--for": command.for_ != ConvertCommand.for_}
    if (command.from_ is None) == (command.run is None):
        problems.append("expected either --from, to bring a model in, or --run, to take one out")
    elif command.from_ is not None:
        problems += [
            f"{flag} goes with --run, not with --from" for flag, on in outwards.items() if on
        ]
    else:
        problems += [
            f"{flag} goes with --from, not with --run" for flag, on in inwards.items() if on
        ]
        if (command.to is None) != command.merge:
            problems.append("expected either --to huggingface, llmc or peft, or --merge")
        elif command.to != "huggingface" and outwards["--for"]:
            problems.append("--for goes with --to huggingface")
        elif command.to not in ("huggingface", "llmc") and outwards["--dtype"]:
            problems.append("--dtype goes with --to huggingface and --to llmc")
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    main(convert)
