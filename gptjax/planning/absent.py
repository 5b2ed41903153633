"""GPUs that are not there, for compiling: devices out of a description, and answers in their name.

XLA's compiler needs a description of a GPU, not the GPU. jax makes devices of a "topology" from
it, which can be in a mesh but can hold nothing and run nothing.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gptjax.base.errors import UserError
from gptjax.cluster.environment import check_training, find_devices, import_jax
from gptjax.cluster.plugins import ERRORS_ONLY, load_gpu_compiler, without_reports
from gptjax.planning.layout import Layout
from gptjax.planning.targets import Target, assembler_directory

CUDNN = 91000  # the oldest release that jax 0.12 takes; lowering writes the same for all
ASKS = "jax._src.cudnn.fused_attention_stablehlo"


def become_compiler() -> None:
    """Import jax with processors as its devices and its GPU compiler loaded.

    Raises `EnvironmentProblem` like a run. Call it before anything else imports jax.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", ERRORS_ONLY)
    os.environ["JAX_PLATFORMS"] = "cpu"
    with without_reports():
        import_jax(compiles_for_gpus=True)
        load_gpu_compiler()
        find_devices()
    check_training()


def absent_devices(target: Target, layout: Layout) -> list[Any]:
    """As many jax devices of the target's kind as the layout has, node by node.

    Raises `UserError` if the installed jax does not understand the description.
    """
    import jax
    from jax.experimental import topologies

    nodes, per_node = layout.nodes, min(layout.gpus, layout.gpus_per_node)
    if nodes * per_node != layout.gpus:
        raise UserError(
            f"--compile needs full nodes: {layout.gpus} GPUs are not a multiple of the {per_node} "
            "of a node"
        )
    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            target_config=target.text,
            topology=f"1x{nodes}x{per_node}",
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--compile cannot compile for {target.gpu.name}: jax {jax.__version__} does not "
            f"understand {target.source} ({str(error).splitlines()[0]})"
        ) from error
    return list(described.devices)


@contextmanager
def answering_for(device: Any) -> Iterator[None]:
    """Let jax lower cuDNN's attention for an absent device.

    jax asks the first GPU here for its compute capability, and cuDNN for its version; neither is
    here, so the device's description answers.
    """
    cudnn = importlib.import_module(ASKS)
    own = _number(device.compute_capability)
    answers = {
        "check_cudnn_version": lambda: CUDNN,
        "check_compute_capability": lambda asked: own >= _number(asked),
        "is_cuda_compute_capability_equal": lambda asked: own == _number(asked),
    }
    before = {name: getattr(cudnn, name) for name in answers}
    vars(cudnn).update(answers)
    try:
        yield
    finally:
        vars(cudnn).update(before)


def gpu_options() -> dict[str, bool | str]:
    """XLA's options where nothing can be tried: cuBLAS for all products, one known assembler.

    XLA chooses between its own kernels and cuBLAS by timing both on the device.
    """
    assembler = assembler_directory()
    place: dict[str, bool | str] = {"xla_gpu_cuda_data_dir": str(assembler)} if assembler else {}
    return {"xla_gpu_enable_triton_gemm": False, **place}


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
