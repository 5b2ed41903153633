"""Bytes that cross between devices in one step, by axis of the mesh and kind of collective.

The payload is the bytes in the compiled program: the operand of an all-reduce, the result of an
all-gather, the operand of a reduce-scatter, summed over a step. In a ring each device sends
`2 (n - 1) / n` of an all-reduce's payload and `(n - 1) / n` of the others'. Counts, norms and
losses, a few bytes each, are left out.

What runs beside arithmetic was read from XLA's schedules for H100 (jax 0.10.2 and 0.12.0.1, default
flags): `fsdp` fetches the next layer's weights and sends gradients away while a layer computes;
gradients of replicas cross when all are there, so they wait.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from gptjax.config import Config
from gptjax.model.places import Leaf, leaves
from gptjax.planning.finetuning import blocks_backwards, sequences, trained_parts
from gptjax.planning.layout import ROWS, Layout
from gptjax.planning.memory import DTYPE_BYTES, remat_policy

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all-reduce", "all-gather", "reduce-scatter"
HIDDEN_FSDP = 0.96  # of the time of GPT-2 1558M's in 8 devices: 57.4 of 59.8 ms at 360 GB/s


@dataclass(frozen=True)
class Transfer:
    """Collectives of one kind and purpose, in one step, as one device sees them."""

    axis: str
    """data, fsdp, tensor, or `ROWS` for the first two at once."""
    kind: str
    """all-reduce, all-gather or reduce-scatter."""
    what: str
    """The contents."""
    bytes_each: int
    """Payload of all of them together, each time they run."""
    devices: int
    """Devices along the axis."""
    micro_steps: int | None = None
    """Number of micro-steps that each run them; None if they run once a step."""
    hidden: float = 0.0
    """Share of its time that runs beside arithmetic, as long as there is that much arithmetic."""

    @property
    def payload(self) -> int:
        """Bytes of operands, or of gathered results, in a step."""
        return self.bytes_each * (self.micro_steps or 1)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, in a ring."""
        rounds = 2 if self.kind == ALL_REDUCE else 1
        return self.payload * rounds * (self.devices - 1) / self.devices


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind of collective along one axis, per step and device."""

    payload: int
    sent: float


def traffic(config: Config, layout: Layout) -> dict[tuple[str, str], Traffic]:
    """Payload and bytes sent, by (axis, kind). `train.micro_batch` must be a number."""
    sums: dict[tuple[str, str], list[Transfer]] = defaultdict(list)
    for transfer in transfers(config, layout):
        sums[transfer.axis, transfer.kind].append(transfer)
    return {
        key: Traffic(sum(t.payload for t in found), sum(t.sent for t in found))
        for key, found in sums.items()
    }


def transfers(config: Config, layout: Layout) -> list[Transfer]:
    """Everything that crosses between devices in a step; an axis of one device carries nothing."""
    micro_batch = config.train.micro_batch
    if isinstance(micro_batch, str):
        raise ValueError("the micro-batch must be a number before traffic can be counted")
    micro_steps = config.batch_rows // (layout.groups * micro_batch)
    found, rows = leaves(config.model), micro_batch * sequences(config)
    moved = [
        *_over_rows(config, layout, trained_parts(config)),
        *_over_fsdp(config, layout, found, micro_steps),
        *_over_tensor(config, layout, found, rows, micro_steps),
    ]
    return [transfer for transfer in moved if transfer.devices > 1 and transfer.payload]


def _over_rows(config: Config, layout: Layout, found: list[Leaf]) -> Iterator[Transfer]:
    """Gradients, once a step: the part that each device stores.

    Gradients of norms and biases, which `fsdp` does not divide, are summed over both axes at once.
    """
    size = DTYPE_BYTES[config.train.wire_dtype]
    divided = size * sum(leaf.part(layout) for leaf in found if leaf.is_matrix)
    others = size * sum(leaf.part(layout) for leaf in found if not leaf.is_matrix)
    if layout.fsdp == 1:
        divided, others = divided + others, 0
    axis = ROWS if layout.data > 1 else "fsdp"
    yield Transfer("data", ALL_REDUCE, "gradients", divided, layout.data)
    yield Transfer(axis, ALL_REDUCE, "norms, biases", others, layout.groups)


def _over_fsdp(
    config: Config, layout: Layout, found: list[Leaf], micro_steps: int
) -> Iterator[Transfer]:
    """Matrices on their way to use, in the compute type, and their gradients back, in float32.

    A block's matrices are gathered forwards and again backwards. The tables would be gathered once
    a micro-step, but no micro-step changes them, so XLA moves that out of the loop: once a step.
    """
    matrices = [leaf for leaf in found if leaf.is_matrix]
    in_blocks = [leaf for leaf in matrices if leaf.is_block_matrix]
    size, n = DTYPE_BYTES[config.model.dtype], layout.fsdp

    def whole(some: list[Leaf]) -> int:
        return sum(leaf.part(layout, "tensor") for leaf in some)

    blocks, tables = whole(in_blocks), whole(matrices) - whole(in_blocks)
    again = blocks * blocks_backwards(config) // config.model.n_layer
    own = whole([leaf for leaf in trained_parts(config) if leaf.is_matrix])
    often = partial(Transfer, devices=n, micro_steps=micro_steps, hidden=HIDDEN_FSDP)
    yield often("fsdp", ALL_GATHER, "blocks", size * (blocks + again))
    yield Transfer("fsdp", ALL_GATHER, "tables", size * tables, n)
    yield often("fsdp", REDUCE_SCATTER, "gradients", 4 * own)


def _over_tensor(
    config: Config, layout: Layout, found: list[Leaf], micro_batch: int, micro_steps: int
) -> Iterator[Transfer]:
    """Sums of activations: two a layer forwards and two backwards, and one each at both ends.

    If blocks are recomputed, so is the attention's sum. The kernel of query, key and value is not
    stored by heads, so it is gathered, and again backwards unless everything is kept. Its bias is
    on every device, and the bias's gradient is summed. The softmax over a divided vocabulary needs
    three numbers a token.
    """
    model, n = config.model, layout.tensor
    policy = remat_policy(model, layout)
    sums, gathers = 5 if policy in ("block", "full") else 4, 1 if policy == "none" else 2
    size = DTYPE_BYTES[model.dtype]
    width = micro_batch * config.context * model.n_embd
    qkv = next(leaf.elements for leaf in found if leaf.name == "h/attn/c_attn/kernel")
    bias = 3 * model.n_embd * model.n_layer * model.qkv_bias
    softmax = 3 * micro_batch * config.context
    in_layers = sums * model.n_layer * size * width
    yield Transfer("tensor", ALL_REDUCE, "activations", in_layers, n, micro_steps)
    yield Transfer("tensor", ALL_REDUCE, "embeddings", 4 * width, n, micro_steps)
    yield Transfer("tensor", ALL_REDUCE, "head", size * width, n, micro_steps)
    yield Transfer("tensor", ALL_GATHER, "c_attn", gathers * size * qkv, n, micro_steps)
    yield Transfer("tensor", REDUCE_SCATTER, "c_attn", 4 * qkv, n, micro_steps)
    yield Transfer("tensor", ALL_REDUCE, "softmax, bias", 4 * (softmax + bias), n, micro_steps)
