"""Models of the Hugging Face hub by name: only the files that a reader needs, kept in its cache.

huggingface_hub does the work, so HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what it
says. A model that is in its cache needs no network if HF_HUB_OFFLINE is 1.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.conversion.huggingface_config import CONFIG
from gptjax.conversion.stored_arrays import INDEX, SAFETENSORS, TORCH, has_weights
from gptjax.preparation.hub.repository import hub_errors

_NAME = re.compile(r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_TEXTS = (
    *(CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)


def is_model_name(text: str) -> bool:
    """Whether a text has the form of a model on the hub: NAME or OWNER/NAME, then maybe @REVISION.

    >>> is_model_name("openai-community/gpt2"), is_model_name("./gpt2"), is_model_name("a/b/c")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def fetch_model(name: str) -> Path:
    """Bring a model into the cache of the hub; returns its directory there.

    Its safetensors are preferred; PyTorch's files are fetched where it has no others. Raises
    `UserError` without huggingface_hub, without a network, and for a model that is not there.
    """
    found = _NAME.fullmatch(name)
    assert found is not None
    repository, revision = found.group("name", "revision")
    with hub_errors(repository, "model", "convert"):
        from huggingface_hub import snapshot_download

        for weights in (SAFETENSORS, TORCH):
            path = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=[*_TEXTS, *_files_of(weights)],
                    library_name="gptjax",
                )
            )
            if has_weights(path):
                break
    if not (path / CONFIG).is_file():
        raise UserError(f"{name} of the hub has no {CONFIG}: it is not a model of transformers")
    return path


def _files_of(weights: str) -> Iterator[str]:
    """Patterns of a file of weights, its shards and their index, in the top folder."""
    stem, dot, ending = weights.partition(".")
    yield from (weights, f"{weights}{INDEX}", f"{stem}-?????-of-?????{dot}{ending}")
