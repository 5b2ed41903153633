"""List the commands: `python -m gptjax`."""

import sys
from collections.abc import Sequence

from gptjax.base.errors import did_you_mean
from gptjax.cli import main

VERBS = {
    "prepare": "turn text into token shards, or take the shards of another trainer",
    "train": "train the model of a config, or resume its run",
    "generate": "continue a text with a trained model",
    "serve": "answer requests for text over HTTP, as OpenAI's API does",
    "evaluate": "measure a model by tests that others publish",
    "convert": "bring in models of others, and take out your own",
    "plan": "compute memory, time and price of a run before you pay for it",
}


def overview(argv: Sequence[str]) -> int:
    """Print one line for each command; any argument but `--help` gives exit code 2."""
    if argv and argv[0] not in ("-h", "--help"):
        word, near = argv[0], did_you_mean(argv[0], VERBS)
        advice = f"write python -m gptjax.{word}" if word in VERBS else f"expected nothing{near}"
        print(f"error: unexpected argument {word}: {advice}", file=sys.stderr)
        return 2
    width = max(map(len, VERBS))
    for verb, purpose in VERBS.items():
        print(f"python -m gptjax.{verb:{width}}  {purpose}")
    print("\nAdd --help to any of them to list its options.")
    return 0


if __name__ == "__main__":
    main(overview)
