"""One side of a comparison in a process of its own: `python bench/worker.py MODULE.FUNCTION JSON`.

The function is called with the JSON's keywords and builds the side: it returns a round and a dict
of facts. The facts, and jax's device where the side uses one, are printed as one line of JSON, and
then one line of figures for every line read from standard input, until that ends.
"""

import importlib
import json
import os
import sys

from harness import Skipped


def main(target: str, arguments: str) -> None:
    """Build the side, then serve rounds."""
    # libraries may print what they like: answers have a descriptor of their own
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, function = target.partition(".")
    try:
        one_round, facts = getattr(importlib.import_module(module), function)(
            **json.loads(arguments)
        )
    except Skipped as reason:
        print(json.dumps({"skipped": str(reason)}), file=answers)
        return
    if jax := sys.modules.get("jax"):
        facts = {**facts, "device": jax.devices()[0].device_kind}
    print(json.dumps(facts), file=answers)
    for _ in sys.stdin:
        print(json.dumps(one_round()), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
