"""What there is to run: `python -m gptjax`."""

from collections.abc import Sequence

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.cli import main

VERBS = {
    "prepare": "turn text into token shards, or take the shards of another trainer",
    "train": "train a model as a config says, or resume its run",
    "generate": "continue a text with a trained model",
    "plan": "memory, time and price of a run, before it is paid for",
}


def overview(argv: Sequence[str]) -> int:
    """Print every verb with a line. Raises `ConfigError` for anything but `--help`."""
    if argv and argv[0] not in ("-h", "--help"):
        word = argv[0]
        if word in VERBS:
            raise ConfigError([f"{word} is a module of its own: write python -m gptjax.{word}"])
        known = ", ".join(VERBS)
        raise ConfigError([f"unknown verb {word}{did_you_mean(word, VERBS)}: there are {known}"])
    width = max(map(len, VERBS))
    for verb, purpose in VERBS.items():
        print(f"python -m gptjax.{verb:{width}}  {purpose}")
    print("\n--help after any of them lists its options.")
    return 0


if __name__ == "__main__":
    main(overview)
