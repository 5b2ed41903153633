"""The limits of flash attention, and the attention to use instead; loads no jax.

The same rules check a config, choose attention for a run here, and plan for a GPU elsewhere.
"""

from collections.abc import Iterator

from gptjax.config.schema import INSTRUCT, Config, ModelConfig

TILES_FROM = 256  # tokens of context from which attention in tiles is faster than all at once


def masking_field(config: Config) -> str | None:
    """The field that keeps attention inside documents, or inside examples; None if nothing does."""
    if config.data.document_mask:
        return "data.document_mask"
    packs = config.task == INSTRUCT and config.instruct.lengths == "pack"
    return "instruct.lengths" if packs else None


def cudnn_limits(model: ModelConfig, masked_by: str | None) -> Iterator[tuple[str, str]]:
    """Every field of a config that rules out cuDNN's attention, and the reason in words.

    `masked_by` is the `masking_field`.
    """
    if model.dtype == "float32":
        yield "model.dtype", "computes in bfloat16 or float16, not in model.dtype float32"
    if model.attn_pdrop:
        yield "model.attn_pdrop", f"cannot drop weights (model.attn_pdrop {model.attn_pdrop})"
    if masked_by is not None:
        yield masked_by, f"cannot keep documents apart ({masked_by})"


def portable(context: int) -> str:
    """The attention to use where no kernel works."""
    return "blockwise" if context >= TILES_FROM else "xla"
