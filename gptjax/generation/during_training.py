"""The sample of a step while a run trains, with the parameters where they lie."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding

from gptjax.base.tree import Tree
from gptjax.cluster.stop import StopRequest
from gptjax.config import Config
from gptjax.generation.continuing import continue_texts
from gptjax.generation.engine import Engine
from gptjax.generation.text_requests import before_text, sample_key, text_request
from gptjax.tokenizers.plain import Tokenizer


def sample_after(
    step: int,
    config: Config,
    params: Tree,
    tokenizer: Tokenizer,
    stop: StopRequest,
    heartbeat: Callable[[], None],
) -> str | None:
    """A prompt and its text, the same every time this step is reached; None after a stop request.

    `heartbeat` is called whenever tokens have come. Parameters that are divided among devices stay
    there, so all processes of a run call this. The copy of them for decoding, in the model's type,
    is freed at the end; the programs stay for the next sample.
    """
    mesh = _mesh_that_divides(params)
    if mesh is None:
        params = jax.tree.map(lambda x: x.addressable_data(0), params)  # one device is enough
    engine = Engine(config.model, params, dtype=config.model.dtype, mesh=mesh)
    key = sample_key(config.train.seed, step)
    request = text_request(tokenizer, config, config.sample, key)
    texts = [config.sample.prompt, before_text(config)]
    for piece in continue_texts(engine, tokenizer, [request]):
        texts.append(piece.text)
        heartbeat()
        if stop:
            return None
    return "".join(texts)


def _mesh_that_divides(params: Tree) -> Mesh | None:
    """The mesh of parameters that are divided; None if each device has all of them."""
    divided = [x for x in jax.tree.leaves(params) if not x.is_fully_replicated]
    if not divided:
        return None
    sharding = divided[0].sharding
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh
