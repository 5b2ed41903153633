"""The limits of cuDNN's flash attention, and the attention in its place; read without jax.

The same rules refuse a config, choose for a run on this machine, and plan for a GPU elsewhere.
"""

from collections.abc import Iterator

from gptjax.config.schema import ModelConfig

TILES_FROM = 256  # tokens of context from which attention in tiles is faster than all at once


def cudnn_limits(model: ModelConfig, document_mask: bool) -> Iterator[tuple[str, str]]:
    """Every field of a config that cuDNN's attention cannot serve, and why, in words."""
    if model.dtype == "float32":
        yield "model.dtype", "computes in bfloat16 or float16, not in model.dtype float32"
    if model.attn_pdrop:
        yield "model.attn_pdrop", f"cannot drop weights (model.attn_pdrop {model.attn_pdrop})"
    if document_mask:
        yield "data.document_mask", "cannot keep documents apart (data.document_mask)"


def portable(context: int) -> str:
    """The attention to take where cuDNN's will not do."""
    return "blockwise" if context >= TILES_FROM else "xla"
