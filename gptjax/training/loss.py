"""Cross-entropy as sums and weights, never a mean.

Only the whole update knows how many tokens count; whoever has all the sums divides once. A mean of
means over unequal masks is wrong by tens of percent.
"""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy_rows(logits_BTV: Array, targets_BT: Array, weights_BT: Array) -> Array:
    """Weighted sum over each row's positions of `-log p(target)`, in nats: float32 [B]."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_normaliser_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum((log_normaliser_BT - target_logit_BT) * weights_BT, axis=1)
