"""The models and batches of the measurements, without jax: the other sides read them too."""

from dataclasses import dataclass
from typing import Any, Literal

from gptjax.config import Config, ModelConfig, TrainConfig
from gptjax.config.chunks import loss_chunk


@dataclass(frozen=True)
class Shape:
    """A model, a batch and how to compute with them. Fields are those of `gptjax.config`."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_ctx: int = 64
    n_vocab: int = 65
    batch: int = 12
    """Sequences of a micro-step."""
    micro_steps: int = 1
    """Micro-steps of a step."""
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    unroll: int | None = None
    """Layers per iteration; None means all of them, which is how a CPU runs fastest."""
    loss_chunk_tokens: int | Literal["auto"] = "auto"
    """Tokens of a chunk of logits; `loss_chunk_tokens` below gives the number for auto."""
    dropout: float = 0.0
    """All three dropout probabilities."""
    prng: str | None = None
    """Random generator of dropout; None means the trainer's."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.micro_steps * self.n_ctx

    def __str__(self) -> str:
        steps = f" x {self.micro_steps} micro-steps" if self.micro_steps > 1 else ""
        return (
            f"{self.n_layer} layers, {self.n_head} heads, {self.n_embd} wide, "
            f"T={self.n_ctx}, V={self.n_vocab:,}, B={self.batch}{steps}, {self.dtype}"
        )


SMALL = Shape()
"""nanoGPT's CPU recipe by characters."""
TOY = Shape(n_layer=2, n_head=2, n_embd=32, n_ctx=32, n_vocab=65, batch=2)
"""Nothing but quick."""


def gpt2(size: str, context: int, batch: int, **changes: Any) -> Shape:
    """A model of Radford et al. (2019), 124M to 1558M, at a context and batch."""
    layers, heads, width = {
        "124M": (12, 12, 768),
        "355M": (24, 16, 1024),
        "774M": (36, 20, 1280),
        "1558M": (48, 25, 1600),
    }[size]
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_vocab": 50257}
    return Shape(**{**sizes, "n_ctx": context, "batch": batch, **changes})


def model_config(shape: Shape) -> ModelConfig:
    """The shape as a config."""
    choices: Any = {"dtype": shape.dtype, "attention": shape.attention, "remat": shape.remat}
    return ModelConfig(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_ctx=shape.n_ctx,
        n_vocab=shape.n_vocab,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        resid_pdrop=shape.dropout,
        unroll=shape.n_layer if shape.unroll is None else shape.unroll,
        **choices,
    )


def loss_chunk_tokens(shape: Shape, gpu_memory: int | None) -> int:
    """The length of the loss's chunks, as the trainer takes it on a GPU with this memory.

    The step and its floor both ask here, each in its own process, so that they have the same
    products. None is a CPU.
    """
    train = TrainConfig(loss_chunk_tokens=shape.loss_chunk_tokens)
    return loss_chunk(Config(model=model_config(shape), train=train), gpu_memory)
