"""One side of a comparison in its own process: `python bench/worker.py MODULE.FUNCTION JSON`.

The function is called with the JSON's keywords and builds the side: it returns a round and a dict
of facts. The facts, with jax's device if the side uses one, are printed as one line of JSON; then
each line read from standard input is answered by one line of figures.
"""

import importlib
import json
import os
import sys

from harness import Skipped


def main(target: str, arguments: str) -> None:
    """Build the side, then serve rounds."""
    # answers have their own descriptor, because libraries may print anything
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
