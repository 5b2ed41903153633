"""The compiled programs of an engine, and where their arrays lie.

One mesh runs them all: a single device, or the one over which a model is divided. Heads of the
cache are divided as those of the model; everything else that is not a parameter is whole on every
device, so that every process of a run reads the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from gptjax.base.tree import Tree, leaf_names, named_leaves
from gptjax.cluster.mesh import put_everywhere, sharding_on
from gptjax.config import ModelConfig
from gptjax.generation import decoding
from gptjax.generation.decoding import Slots
from gptjax.model.cache import Cache, resized
from gptjax.model.decoder import decoder_params, decoder_specs
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.places import TENSOR, ModelSharding, leaves
from gptjax.model.products import matmul_precision

WHOLE = PartitionSpec()


class Programs:
    """Programs of one model on one mesh, each compiled when its shapes first come."""

    def __init__(self, cfg: ModelConfig, mesh: Mesh):
        self.cfg, self.mesh, split = cfg, mesh, sharding_on(mesh)
        self._precision = matmul_precision(cfg, mesh.devices.flat[0])
        shapes = parameter_shapes(cfg)
        # heads are cut only inside the programs, so names come from a model without that division
        self._named = partial(decoder_params, cfg=cfg, split=ModelSharding(fsdp=split.fsdp))
        self._params = jax.eval_shape(self._named, shapes)
        params = decoder_specs(self._params, split)
        heads = PartitionSpec(None, TENSOR) if split.tensor > 1 else WHOLE
        cache_specs = Cache(heads, WHOLE)  # pyright: ignore[reportArgumentType]
        slots = Slots(cache_specs, WHOLE)  # pyright: ignore[reportArgumentType]
        model = cfg, split
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

    def place(self, params: Tree, donate: bool) -> Tree:
        """The parameters as these programs read them; `donate` deletes the given arrays.

        Then matrices come one by one, so that at most one is there twice.
        """
        given, placed = named_leaves(params), {}
        matrices = [(leaf.name,) for leaf in leaves(self.cfg) if leaf.is_matrix and donate]
        rest = tuple(name for name in given if (name,) not in matrices)
        for names in (*matrices, rest):
            found = self._place(names)(_only(names, params))
            placed |= named_leaves(jax.block_until_ready(found) if donate else found)
            if donate:
                for name in names:
                    given[name].delete()
        return self._in_order(placed)

    def place_beside(self, placed: Tree, adapters: Tree) -> Tree:
        """Parameters whose adapters are these; all others are arrays that are placed already."""
        given = named_leaves(adapters)
        own = jax.tree.map(given.get, leaf_names(parameter_shapes(self.cfg)))
        found = self._place(tuple(given))(own)
        return self._in_order(named_leaves(placed) | named_leaves(found))

    def _in_order(self, placed: Mapping[str, Array]) -> Tree:
        """The tree that the programs read, from its leaves under their names."""
        order = jax.tree.leaves(leaf_names(self._params))
        return jax.tree.unflatten(jax.tree.structure(self._params), [placed[n] for n in order])

    @cache  # noqa: B019 - programs live as long as the process
    def _place(self, names: tuple[str, ...]) -> Callable[[Tree], Tree]:
        given, split = _only(names, parameter_shapes(self.cfg)), sharding_on(self.mesh)
        found = jax.eval_shape(self._named, given)
        place = partial(decoder_params, cfg=self.cfg, split=split)
        return self._compiled(place, (param_specs(given, split),), decoder_specs(found, split))

    def empty(self, capacity: int, length: int) -> Slots:
        """Slots that stand still."""
        return self._empty(capacity, length)()

    @cache  # noqa: B019 - programs live as long as the process
    def _empty(self, capacity: int, length: int) -> Callable[[], Slots]:
        make = partial(decoding.empty_slots, self.cfg, capacity, length, self._heads)
        return self._compiled(make, (), self._slots)

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


def _only(names: Sequence[str], params: Tree) -> Tree:
    """The tree with these leaves; the others are None."""
    return jax.tree.map(lambda own, x: x if own in names else None, leaf_names(params), params)


@cache
def programs(cfg: ModelConfig, mesh: Mesh) -> Programs:
    """The programs of a model on a mesh, the same for every engine."""
    return Programs(cfg, mesh)
