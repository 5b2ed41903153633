"""The limits of cuDNN's flash attention, and the attention to use instead; loads no jax.

The same rules check a config, choose attention for a run here, and plan for a GPU elsewhere.
"""

from collections.abc import Iterator

from gptjax.config.schema import ModelConfig

TILES_FROM = 256  # tokens of context from which attention in tiles is faster than all at once


def cudnn_limits(model: ModelConfig, document_mask: bool) -> Iterator[tuple[str, str]]:
    """Every field of a config that rules out cuDNN's attention, and the reason in words."""
    if model.dtype == "float32":
        yield "model.dtype", "computes in bfloat16 or float16, not in model.dtype float32"
    if model.attn_pdrop:
        yield "model.attn_pdrop", f"cannot drop weights (model.attn_pdrop {model.attn_pdrop})"
    if document_mask:
        yield "data.document_mask", "cannot keep documents apart (data.document_mask)"


def portable(context: int) -> str:
    """The attention to use if cuDNN's does not work."""
    return "blockwise" if context >= TILES_FROM else "xla"
