"""Bytes on every device while a step runs, by part, without compiling anything.

The state stays throughout. Temporaries are counted at three moments, and the largest sum decides:
while logits exist (`loss`), while the first layers' gradients are formed (`backward`), and while
the optimizer makes new parameters (`update`). Shapes follow from the model, the number of arrays of
a shape that live at once from `gptjax.planning.counts`. `--compile` checks the sum.

Letters: D width, F = 4 D, N layers, V vocabulary, T context, H heads.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

from gptjax.config import Config, ModelConfig
from gptjax.config.chunks import loss_chunk
from gptjax.model.places import Leaf, leaves
from gptjax.planning.counts import LiveArrays, gpu_counts
from gptjax.planning.finetuning import (
    blocks_backwards,
    has_logits,
    head_is_trained,
    sequences,
    trained_parts,
)
from gptjax.planning.layout import Layout

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment that needs most; the parts add up to `total`."""

    masters: int
    """This device's part of the float32 parameters."""
    moments: int
    """State of the optimizer between steps."""
    average: int
    """The running average of the parameters, if `optim.ema_decay` keeps one."""
    batch: int
    """Tokens of the whole step; their weights are made on the device."""
    gradients: int
    """This micro-step's, the sum over micro-steps, and new parameters while they are made."""
    activations: int
    """Activations kept for the backward pass, and those that one layer needs at once."""
    logits: int
    """One chunk's logits and their gradient, and gradients of the vocabulary as they grow."""
    buffers: int
    """Weights as they arrive from other devices, gradients as they leave."""
    moment: str
    """loss, backward or update."""

    @property
    def arguments(self) -> int:
        """The step's arguments: state and batch."""
        return self.masters + self.moments + self.average + self.batch

    @property
    def temporaries(self) -> int:
        """Temporaries of a step."""
        return self.gradients + self.activations + self.logits + self.buffers

    @property
    def total(self) -> int:
        """Bytes that a device must have."""
        return self.arguments + self.temporaries

    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order above."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "moment"}


@cache
def _elements(model: ModelConfig, layout: Layout) -> int:
    """Parameters on one device; cached, because a search asks again for every micro-batch."""
    return sum(leaf.part(layout) for leaf in leaves(model))


def memory(
    config: Config,
    layout: Layout,
    micro_batch: int,
    micro_steps: int | None = None,
    counts: LiveArrays | None = None,
) -> Memory:
    """Bytes of a step with `micro_batch` rows at once on every device.

    Without `micro_steps` there are as many as the batch needs. `model.attention` must not be
    `auto`. `counts` are the compiler's; without them, those of the installed jax for GPUs.
    """
    counts = counts or gpu_counts()
    found, trained = leaves(config.model), trained_parts(config)
    if micro_steps is None:
        micro_steps = -(-config.batch_rows // (layout.groups * micro_batch))
    own, rows = 4 * sum(leaf.part(layout) for leaf in trained), micro_batch * sequences(config)
    state = {
        "masters": 4 * _elements(config.model, layout),
        "moments": moments(config, layout, trained),
        "average": 0 if config.optim.ema_decay is None else own,
        "batch": 4 * micro_steps * rows * (config.context + 1),
    }
    at_moment = _temporaries(config, layout, rows, micro_steps, found, own, counts)
    most = max(at_moment, key=lambda name: sum(at_moment[name].values()))
    return Memory(**state, **at_moment[most], moment=most)


def moments(config: Config, layout: Layout, found: list[Leaf]) -> int:
    """Bytes of the optimizer's moments on one device, for the trained parts `found`.

    AdamW keeps two numbers a parameter, Lion one, Muon one for the blocks' matrices; Adafactor
    keeps means of rows and columns for matrices of at least 128 by 128.
    """
    size = DTYPE_BYTES[config.optim.moments_dtype]
    total = 0
    for leaf in found:
        own = leaf.part(layout)
        if config.optim.name == "adafactor":
            total += 4 * _factored(leaf, own)
            continue
        muon = config.optim.name == "muon" and leaf.is_block_matrix
        one = muon or config.optim.name == "lion"
        total += size * own * (1 if one else 2)
    return total


def _factored(leaf: Leaf, own: int) -> int:
    """Numbers that Adafactor keeps: means over each of the two largest dimensions."""
    *_, second, first = sorted((1, *leaf.shape))
    if second < 128:
        return own
    return leaf.elements // first + leaf.elements // second


def _temporaries(
    config: Config,
    layout: Layout,
    micro_batch: int,
    micro_steps: int,
    found: list[Leaf],
    gradients: int,
    counts: LiveArrays,
) -> dict[str, dict[str, int]]:
    """Bytes of temporaries, by part, at each of the three moments; `gradients` of one set."""
    size = DTYPE_BYTES[config.model.dtype]
    several = "several" if micro_steps > 1 else "one"
    summed = counts.sums * gradients if micro_steps > 1 else 0
    outputs = counts.outputs * size * micro_batch * config.context * config.model.n_embd
    saved = _saved(config, layout, micro_batch, counts)
    cast = 0 if size == 4 else size  # weights arrive in the compute type and become float32
    tables = _whole_tables(layout, found, cast)
    table = 4 * config.model.padded_vocab * config.model.n_embd // layout.tensor
    wire = 2 if config.train.wire_dtype == "bfloat16" else 0
    return {
        "loss": {
            "gradients": summed + _early_gradients(config, layout, micro_steps, counts),
            "activations": saved + outputs,
            "logits": _logits(config, layout, micro_batch, counts),
            "buffers": tables,
        },
        "backward": {
            "gradients": summed + gradients,
            "activations": saved + _transient(config, layout, micro_batch, several, counts),
            "logits": 0,
            "buffers": counts.tables * tables + _block_buffers(config, layout, found, cast, counts),
        },
        "update": {
            "gradients": counts.sets[several] * gradients,
            "activations": 0,
            "logits": counts.scattered[several] * table,
            "buffers": wire * gradients // 4 if layout.data > 1 else 0,
        },
    }


def _logits(config: Config, layout: Layout, micro_batch: int, counts: LiveArrays) -> int:
    """Bytes of one chunk's logits, and of the head's gradient and copy."""
    if not has_logits(config):
        return 0
    model, size = config.model, DTYPE_BYTES[config.model.dtype]
    chunk, cut = _chunk_tokens(config, micro_batch)
    (wide, narrow), (wide_heads, narrow_heads) = counts.logits[cut], counts.heads[cut]
    heads = 4 * wide_heads + size * narrow_heads
    heads -= size if layout.fsdp > 1 else 0  # the gathered head serves as the copy
    if not head_is_trained(config):
        heads = min(size, heads - 4)  # no gradient, but a copy
    vocabulary = model.padded_vocab // layout.tensor
    return vocabulary * (chunk * (4 * wide + size * narrow) + heads * model.n_embd)


def _chunk_tokens(config: Config, micro_batch: int) -> tuple[int, str]:
    """Tokens whose logits exist at once, and the kind of cut, as in `gptjax.model.losses`."""
    tokens, most = micro_batch * config.context, loss_chunk(config)
    if not most:
        return tokens, "uncut"
    chunks = math.ceil(tokens / most)
    return math.ceil(tokens / chunks), "chunks" if chunks > 1 else "one chunk"


def remat_policy(model: ModelConfig, layout: Layout) -> str:
    """The policy that applies: weights gathered over `fsdp` are never kept, so none means dots."""
    return "dots" if model.remat == "none" and layout.fsdp > 1 else model.remat


def _early_gradients(config: Config, layout: Layout, micro_steps: int, counts: LiveArrays) -> int:
    """Bytes of blocks' gradients that are zeros while logits exist."""
    if config.model.unroll > 1 or micro_steps > 1:
        return 0
    kernels = (leaf for leaf in trained_parts(config) if leaf.is_block_matrix)
    return 4 * counts.early * sum(leaf.part(layout) for leaf in kernels)


def _saved(config: Config, layout: Layout, micro_batch: int, counts: LiveArrays) -> int:
    """Bytes that the layers keep through which the backward pass goes."""
    model, size = config.model, DTYPE_BYTES[config.model.dtype]
    layers = blocks_backwards(config)
    policy = remat_policy(model, layout)
    whole, divided = counts.saved[policy]
    width = micro_batch * config.context * model.n_embd
    kernels = pairs = masks = 0
    if policy == "none":
        divided += counts.saved_keys.get(model.attention, 0)
        divided += 0 if model.unroll > 1 else counts.twice
        if layout.tensor > 1:  # the kernel of query, key and value, reordered by heads
            kernels = 4 * 3 * layers * model.n_embd**2 // layout.tensor
        pairs = _pairs(config, layout, micro_batch) * layers
        masks = 2 * layers * width if model.resid_pdrop else 0  # a byte for each number
    arrays = size * layers * (width * whole + width * divided // layout.tensor)
    return arrays + kernels + pairs + masks


def _pairs(config: Config, layout: Layout, micro_batch: int) -> int:
    """Bytes of one layer's T x T attention weights, in float32 and in the compute type."""
    model = config.model
    if model.attention != "xla":
        return 0
    weights = micro_batch * model.n_head // layout.tensor * config.context**2
    return weights * (4 + DTYPE_BYTES[model.dtype])


def _transient(
    config: Config, layout: Layout, micro_batch: int, several: str, counts: LiveArrays
) -> int:
    """Bytes that live while one layer's gradients are formed."""
    model = config.model
    whole, divided = counts.transient[remat_policy(model, layout)]
    divided += counts.tiles.get(model.attention, 0)
    if model.unroll > 1:
        divided += counts.delayed[several] * min(model.unroll, blocks_backwards(config))
    if any((model.embd_pdrop, model.attn_pdrop, model.resid_pdrop)):
        whole += counts.dropped
    width = micro_batch * config.context * model.n_embd
    arrays = DTYPE_BYTES[model.dtype] * (width * whole + width * divided // layout.tensor)
    return arrays + _pairs(config, layout, micro_batch)


def _whole_tables(layout: Layout, found: list[Leaf], cast: int) -> int:
    """Bytes of embeddings and head gathered over `fsdp`: as they arrive and in float32."""
    if layout.fsdp == 1:
        return 0
    tables = (leaf for leaf in found if leaf.is_matrix and not leaf.is_block_matrix)
    return sum(leaf.part(layout, "tensor") for leaf in tables) * (cast + 4)


def _block_buffers(
    config: Config, layout: Layout, found: list[Leaf], cast: int, counts: LiveArrays
) -> int:
    """Bytes of blocks' matrices in other forms than the stored one, and of their gradients.

    Over `fsdp`, these are one layer's matrices and their gradients, whole. Straight-line code may
    cast all layers' at once.
    """
    kernels = [leaf for leaf in found if leaf.is_block_matrix]
    if layout.fsdp == 1:
        is_cast = counts.casts_all and config.model.unroll > 1
        return cast * sum(leaf.part(layout) for leaf in kernels) if is_cast else 0
    whole = sum(leaf.part(layout, "tensor") // leaf.shape[0] for leaf in kernels)
    turned = counts.turned * sum(leaf.part(layout) for leaf in kernels)
    return whole * (cast + 4 + 4) + round(4 * turned)
