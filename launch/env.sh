# shellcheck shell=bash
# Every XLA and NCCL setting of a run, once: sourced by node.sh and slurm.sbatch, and by the shells of
# sky.yaml and the Dockerfile through node.sh. What is set already stays as it is.
#
# There is no list of XLA_FLAGS here on purpose. A flag that the installed jaxlib does not know ends
# the process at once, and names change between versions; what is wanted of the compiler is set where
# its version is known (gptjax/cluster/compiler.py). None of these was measured by us on several GPUs.

# How much of a GPU's memory jax takes at the start. Its default, 0.75, leaves a quarter unused
# (docs.jax.dev/en/latest/gpu_memory_allocation.html); NVIDIA sets 0.8 to 0.9 (JAX-Toolbox, "GPU
# performance"), since NCCL allocates from the rest and fails where there is none (jax issues 4950 and
# 17426). `--train.micro-batch auto` fits into nine tenths of this.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

# NCCL says why a link failed, rather than only that something did (NCCL user guide, "Environment
# Variables"); INFO tells of every link, and is for looking into one.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# With several GPUs, have XLA schedule communication behind computation, which it does not do by itself
# (xla/docs/effort_levels.md: O1 turns the latency-hiding scheduler on, and compiles longer). That is
# reasoning: mesh.fsdp sends weights in every micro-step. What it gains was not measured.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -gt 1 ]; then
  export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"
fi
