# shellcheck shell=bash
# Every XLA and NCCL setting of a run, in one place: node.sh and slurm.sbatch source it, and sky.yaml
# and the Dockerfile get it through node.sh. Variables that are already set stay as they are.
#
# There are no XLA_FLAGS here on purpose. A flag that the installed jaxlib does not know ends the
# process at once, and names change between versions; gptjax/cluster/compiler.py sets compiler options
# where the version is known. None of these settings has been measured on several GPUs.

# The share of a GPU's memory that jax takes at the start. Its default, 0.75, leaves a quarter unused
# (docs.jax.dev/en/latest/gpu_memory_allocation.html). NVIDIA sets 0.8 to 0.9 (JAX-Toolbox, "GPU
# performance"), because NCCL allocates from the rest and fails without one (jax issues 4950 and
# 17426). `--train.micro-batch auto` fits into nine tenths of this share.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

# WARN makes NCCL say why a link failed, not only that something failed (NCCL user guide, "Environment
# Variables"); INFO reports on every link.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# With several GPUs, make XLA overlap communication with computation, which it does not do by default
# (xla/docs/effort_levels.md: O1 turns on the latency-hiding scheduler, and takes longer to compile).
# The reason is that mesh.fsdp sends weights in every micro-step; the gain has not been measured.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -gt 1 ]; then
  export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"
fi
