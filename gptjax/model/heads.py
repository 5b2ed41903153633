"""The head that classifies: one linear layer on the state at one position of each sequence.

Letters as in `gpt`; C classes.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.arguments import check_shapes, floating
from gptjax.model.projection import INIT_STD


class ClassificationHead(nn.Module):
    """Scores of all classes, [..., D] to float32 [..., C], with dropout before the layer.

    Radford et al. (2018), equation 3, with the bias of their released code.

    >>> head = ClassificationHead(ModelConfig(n_embd=2, n_classes=2))
    >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
    >>> head.apply({"params": params}, jnp.array([[3.0, 5.0]])).tolist()
    [[4.0, 6.0]]
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x: ArrayLike, train: bool = False) -> Array:
        """Score; dropout falls on the state when `train`."""
        x, cfg = floating("x", x), self.cfg
        check_shapes({"D": cfg.n_embd}, x_BD=x.reshape(-1, x.shape[-1]))
        init = nn.initializers.normal(INIT_STD)
        kernel_DC = self.param("kernel", init, (cfg.n_embd, cfg.n_classes))
        bias_C = self.param("bias", nn.initializers.zeros, (cfg.n_classes,))
        key = self.make_rng("dropout") if train and cfg.clf_pdrop else None
        x = ops.dropout(x.astype(jnp.float32), cfg.clf_pdrop, key)
        return x @ kernel_DC + jnp.broadcast_to(bias_C, (*x.shape[:-1], cfg.n_classes))


def last_states(x_MTD: Array, lengths_BS: Array) -> Array:
    """The states of the last tokens of all sequences: [B S, T, D] and [B, S] to [B, S, D].

    >>> last_states(jnp.arange(6.0).reshape(2, 3, 1), jnp.array([[1], [3]])).ravel().tolist()
    [0.0, 5.0]
    """
    last_M = lengths_BS.reshape(-1) - 1
    state_MD = jnp.take_along_axis(x_MTD, last_M[:, None, None], axis=1)[:, 0]
    return state_MD.reshape(*lengths_BS.shape, -1)


def class_scores(
    cfg: ModelConfig, form: str, params: Any, state_BSD: Array, key: Array | None = None
) -> Array:
    """Scores of all classes, float32 [B, C], from the states of an example's sequences [B, S, D].

    Radford et al. (2018), figure 1: a `similarity` adds up the states of both orders; a `choice`
    has one score for each sequence, so C is S. Other forms have one sequence. With a key states are
    dropped; the choices of an example share their mask, as in the released code.

    >>> cfg = ModelConfig(n_embd=2, n_classes=1)
    >>> params, state_BSD = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}, jnp.ones((1, 3, 2))
    >>> class_scores(cfg, "choice", params, state_BSD).tolist()
    [[3.0, 3.0, 3.0]]
    """
    state_BSD = state_BSD.astype(jnp.float32)
    if form == "choice":
        if key is not None:
            mask_B1D = ops.dropout(jnp.ones_like(state_BSD[:, :1]), cfg.clf_pdrop, key)
            state_BSD = state_BSD * mask_B1D
        scores: Any = ClassificationHead(cfg).apply({"params": params}, state_BSD)
        return scores[:, :, 0]
    rngs = None if key is None else {"dropout": key}
    state_BD = state_BSD.sum(1)
    scores = ClassificationHead(cfg).apply({"params": params}, state_BD, key is not None, rngs=rngs)
    return scores
