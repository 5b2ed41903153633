"""Parameters of a model that exists, for a run with a new optimizer: `--train.init-from`.

A run's checkpoint is read straight into the places that the new run divides its parameters among,
and no device ever holds a whole model that does not fit. All processes read it together.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree, abstract_tree, as_tree
from gptjax.cluster.agreement import first_complaint, require_same
from gptjax.cluster.mesh import shardings
from gptjax.config import Config, ModelConfig
from gptjax.config.names import how_to_prepare_for
from gptjax.config.schema import PRETRAIN
from gptjax.conversion.fitting import changed_settings, leaf_differences
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.pinned import pinned_base
from gptjax.conversion.resizing import TABLES, refitted, refitted_and_merged
from gptjax.conversion.shapes import Source, read_source
from gptjax.model.gpt import INIT_STD, parameter_shapes
from gptjax.model.lora import adapters_of
from gptjax.model.places import leaves
from gptjax.model.size import parameter_count
from gptjax.model.trainable import trainable
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import PARAMS, read_checkpoint_name
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import fingerprint
from gptjax.training.program import Program
from gptjax.training.state import TrainState, state_of

LARGE = 100e6  # parameters; GPT-1 has 116 million, GPT-2's smallest 124
HIGH_RATE = 2e-4  # for tuning all of a large model; Radford et al. (2018) use 6.25e-5
SAME_MODEL = "the model has to be on a file system that all nodes share"


class Found(NamedTuple):
    """Parameters as they lie in a model, on the devices of a new run, and words for the user."""

    params: Tree
    origin: str


def warm_state(
    config: Config, program: Program, tokenizer: Tokenizer, base: str | None = None
) -> tuple[TrainState, list[str]]:
    """The state of step 0 with the parameters of the config's `train.init_from`, and lines for the
    user. `base` is its name with a step, where the run has pinned one.

    The average is taken where a run keeps one. Positions are cut, or extended by rows drawn as in a
    new model. Raises `UserError`, on all processes, if the model cannot be read, or if its
    tokenizer is not the run's.
    """
    name = base or config.train.init_from
    assert name is not None
    source = _agreed(name)
    if source.fingerprint != fingerprint(tokenizer):
        raise UserError(
            f"the data was tokenised with {tokenizer.name} ({fingerprint(tokenizer)}), but the "
            f"model of --train.init-from {name} has the tokenizer {source.tokenizer.name} "
            f"({source.fingerprint}): {how_to_prepare_for(name, source.tokenizer_name)}"
        )
    _require_trained_positions(source, program)
    found = _read(source, program.mesh)
    params = _fitted(found.params, source.model, program)

    def begin(params: Tree) -> Tree:
        return program.optimizer.init(program.trained.split(params)[0])

    opt_state = jax.jit(begin, out_shardings=program.places.opt_state)(params)
    items = {PARAMS: params, "opt_state": opt_state}
    state = state_of(0, items, program.abstract_state())
    return state, announcement(found.origin, source.model, config)


def _require_trained_positions(source: Source, program: Program) -> None:
    """Raise `UserError` if new positions would keep their random values."""
    theirs, ours, trained = source.model.n_ctx, program.config.model.n_ctx, program.trained
    if ours > theirs and not (trained.everything or "wpe/embedding" in trained.names):
        raise UserError(
            f"model.n_ctx {ours} adds {ours - theirs} positions to those of --train.init-from "
            f"{source.name}, but this run would not train them: take at most {theirs}, or train "
            "all parameters"
        )


def base_of_adapters(program: Program, run_dir: RunDir) -> Tree:
    """The parameters beneath the adapters of a run that resumes, in the places of the program's.

    Raises `UserError`, on all processes, if the base is missing or has changed.
    """
    source = _agreed(lambda: str(pinned_base(run_dir.path)))
    return _fitted(_read(source, program.mesh).params, source.model, program)


def announcement(origin: str, theirs: ModelConfig, config: Config) -> list[str]:
    """Lines about the origin of the parameters, and what of them changes."""
    changed = leaf_differences(theirs, config.model)
    same = len(leaves(config.model)) - len(changed)
    lines = [f"start    from {origin}, with a new optimizer", f"leaves   {same} as they are there"]
    for name, before, after in changed:
        lines.append(f"         {name} {before} -> {after}: {_in_words(name, before, after)}")
    if config.model.n_special > theirs.n_special:
        new = config.model.n_special - theirs.n_special
        lines.append(f"         rows of {new} special tokens: drawn from N(0, {INIT_STD})")
    if config.task == PRETRAIN and config.context < config.model.n_ctx:
        lines.append(
            f"         windows have {config.context} tokens of the {config.model.n_ctx} that fit: "
            "--train.context takes longer ones"
        )
    if theirs.activation != config.model.activation:
        lines.append(
            f"         --model.activation {config.model.activation} in place of the model's "
            f"{theirs.activation}"
        )
    if settings := changed_settings(theirs, config.model):
        lines.append(f"         settings of training that differ: {', '.join(settings)}")
    if _has_high_rate(theirs, config):
        lines.append(
            f"note     peak rate {config.optim.peak_lr:.1e} is high for "
            f"{parameter_count(theirs) / 1e6:.0f}M pretrained parameters: GPT-1 and GPT-2 are "
            "tuned at about 6e-5 (--optim.peak-lr)"
        )
    return lines


def _has_high_rate(theirs: ModelConfig, config: Config) -> bool:
    """Whether a fine-tuning trains all of a large model at the rate of a small one.

    The shipped rates are for small models; a block or adapters alone bear a higher one.
    """
    optim = config.optim
    trained = trainable(config.model, optim.trainable, optim.trainable_layers)
    trains_all = len(trained.names) == len(leaves(config.model)) and trained.first_block == 0
    is_large = parameter_count(theirs) >= LARGE
    return config.task != PRETRAIN and trains_all and is_large and optim.peak_lr > HIGH_RATE


def _in_words(name: str, before: str, after: str) -> str:
    """What happens to a leaf whose shape changes."""
    if "none" in (before, after):
        return "new" if before == "none" else "left out"
    if name not in TABLES:
        return "new"
    rows, kept = (int(shape.split(" x ")[0]) for shape in (after, before))
    if rows < kept:
        return f"cut to {rows} rows"
    return f"extended by {rows - kept} rows, drawn from N(0, {INIT_STD})"


def _agreed(name: str | Callable[[], str]) -> Source:
    """The source as all processes see it; its name may have to be found."""
    source, problem = None, None
    try:
        source = read_source(name if isinstance(name, str) else name())
    except UserError as error:
        problem = str(error)
    if complaint := first_complaint(problem):
        raise UserError(complaint)
    assert source is not None
    require_same(f"the model of --train.init-from {source.name}", repr(source[:2]), SAME_MODEL)
    return source


def _read(source: Source, mesh: Mesh) -> Found:
    """The parameters of a checkpoint or a directory, divided over the mesh; adapters are merged."""
    named = read_checkpoint_name(source.name)
    shapes = parameter_shapes(source.model)
    places = shardings(shapes, shapes, mesh)
    if is_huggingface(named.path):
        weights = read_huggingface(named.path)
        return Found(jax.tree.map(_placed, as_tree(weights.arrays), places), weights.source)
    run_dir = RunDir(named.path)
    config = run_dir.read_config()
    adapted, own = config.model, shapes
    if adapted.lora_rank:
        own = adapters_of(parameter_shapes(adapted), adapted)
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True)
    try:
        step = checkpointer.choose(named.which)
        require_same("the checkpoint to start from", str(step), SAME_MODEL)
        abstract = abstract_tree(own, shardings(own, own, mesh))
        params = checkpointer.restore_params(step, abstract)
        loss = checkpointer.ranking.loss(step)
        average = ", the average of its parameters" if checkpointer.has_average(step) else ""
    finally:
        checkpointer.close()
    measured = "" if loss is None else f" (validation loss {loss:.4f})"
    if adapted.lora_rank:
        beneath = _agreed(lambda: str(pinned_base(run_dir.path)))
        merge = partial(refitted_and_merged, beneath.model, adapted)
        key = jax.random.key(config.train.seed)
        base = _read(beneath, mesh).params
        params = jax.jit(merge, out_shardings=places)(base, params, key)
        average += ", its adapters merged into their base"
    return Found(params, f"{run_dir.path}, step {step}{measured}{average}")


def _placed(array: np.ndarray, place: NamedSharding) -> Array:
    """An array that every process has, each device with its own part."""
    return jax.make_array_from_callback(array.shape, place, array.__getitem__)


def _fitted(params: Tree, theirs: ModelConfig, program: Program) -> Tree:
    """The parameters of a model in the shape and the places of a program's."""
    fit = partial(refitted, theirs, program.config.model)
    key = jax.random.key(program.config.train.seed)
    return jax.jit(fit, out_shardings=program.places.params)(params, key)
