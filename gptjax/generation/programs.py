"""The compiled programs of an engine, and where their arrays lie.

One mesh runs them all: a single device, or the one over which a model is divided. Heads of the
cache are divided as those of the model; everything else that is not a parameter is whole on every
device, so that every process of a run reads the same tokens.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from gptjax.cluster.mesh import put_everywhere, sharding_on
from gptjax.config import ModelConfig
from gptjax.generation import decoding
from gptjax.generation.decoding import Slots
from gptjax.model.cache import Cache, resized
from gptjax.model.decoder import decoder_params, decoder_specs
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.places import TENSOR
from gptjax.model.products import matmul_precision

WHOLE = PartitionSpec()


class Programs:
    """Programs of one model on one mesh, each compiled when its shapes first come."""

    def __init__(self, cfg: ModelConfig, mesh: Mesh):
        self.cfg, self.mesh, split = cfg, mesh, sharding_on(mesh)
        self._precision = matmul_precision(cfg, mesh.devices.flat[0])
        shapes = parameter_shapes(cfg)
        params = decoder_specs(jax.eval_shape(partial(decoder_params, cfg=cfg), shapes), split)
        heads = PartitionSpec(None, TENSOR) if split.tensor > 1 else WHOLE
        cache_specs = Cache(heads, WHOLE)  # pyright: ignore[reportArgumentType]
        slots = Slots(cache_specs, WHOLE)  # pyright: ignore[reportArgumentType]
        model = cfg, split
        self.place = self._compiled(
            partial(decoder_params, cfg=cfg, split=split), (param_specs(shapes, split),), params
        )
        self.read = self._compiled(
            partial(decoding.read_prompt, *model),
            (params, WHOLE, WHOLE),
            (WHOLE, WHOLE, cache_specs),
        )
        self.begin = self._compiled(decoding.draw, (WHOLE, WHOLE, WHOLE), WHOLE)
        self.insert = self._compiled(
            decoding.insert, (slots, WHOLE, cache_specs, WHOLE), slots, donated=(0,)
        )
        self.decode = self._compiled(
            partial(decoding.decode, *model),
            (params, slots, WHOLE, WHOLE),
            (slots, WHOLE),
            donated=(1,),
        )
        self.stand_still = self._compiled(decoding.stand_still, (slots, WHOLE), slots, donated=(0,))
        self.score = self._compiled(
            partial(decoding.score_features, *model), (params, WHOLE, WHOLE), WHOLE
        )
        self._slots, self._heads = slots, cfg.n_head // split.tensor

    def empty(self, capacity: int, length: int) -> Slots:
        """Slots that stand still."""
        make = partial(decoding.empty_slots, self.cfg, capacity, length, self._heads)
        return self._compiled(make, (), self._slots)()

    def resize(self, slots: Slots, length: int) -> Slots:
        """The same slots with room for `length` tokens."""
        return self._resize(length)(slots)

    @cache  # noqa: B019 - programs live as long as the process
    def _resize(self, length: int) -> Callable[[Slots], Slots]:
        def resize(slots: Slots) -> Slots:
            return slots._replace(cache=resized(slots.cache, length))

        return self._compiled(resize, (self._slots,), self._slots)

    def put(self, value: Any) -> Array:
        """A value of the host on every device."""
        return put_everywhere(self.mesh, value)

    def _compiled(
        self, function: Callable[..., Any], given: Any, result: Any, donated: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        # results are equal on all devices where they are said to be whole; it cannot be proved of
        # gathered arrays
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=given, out_specs=result, check_vma=False
        )
        compiled = jax.jit(mapped, donate_argnums=donated)

        def call(*args: Any) -> Any:
            with jax.default_matmul_precision(self._precision):
                return compiled(*args)

        return call


@cache
def programs(cfg: ModelConfig, mesh: Mesh) -> Programs:
    """The programs of a model on a mesh, the same for every engine."""
    return Programs(cfg, mesh)
