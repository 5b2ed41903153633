"""A classification head beside an exported model, in a file of its own.

transformers has no class that reads GPT-1's head, so `classifier.safetensors` holds it: `weight`
[C, D] and `bias` [C] of a linear layer on the state at a text's last token. Its metadata have, as
JSON, the `labels` in the order of the classes, and the `form` and `read` of the config's section
`classify`. Letters: D width, C classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gptjax.config import Config

CLASSIFIER = "classifier.safetensors"


def write_classifier(
    arrays: Mapping[str, np.ndarray], config: Config, directory: Path
) -> list[str]:
    """Write the head among `arrays`, if there is one; returns a note for the user about it."""
    if "clf/kernel" not in arrays:
        return []
    from safetensors.numpy import save_file

    head = {
        "weight": np.ascontiguousarray(np.asarray(arrays["clf/kernel"], np.float32).T),
        "bias": np.ascontiguousarray(arrays["clf/bias"], np.float32),
    }
    asked = config.classify
    settings = {"labels": json.dumps(asked.labels), "form": asked.form, "read": asked.read}
    save_file(head, directory / CLASSIFIER, metadata=settings)
    return [f"the head that classifies is no part of the model: it is in {CLASSIFIER}"]
