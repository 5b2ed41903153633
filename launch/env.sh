# shellcheck shell=bash
# Every XLA and NCCL variable of a run, in one place: node.sh and slurm.sbatch source it, and sky.yaml
# and the Dockerfile get it through node.sh. Variables that are already set stay as they are.
#
# There are no XLA variables here on purpose. The trainer itself takes its share of a GPU's memory
# (gptjax/cluster/environment.py) and chooses XLA's options for the devices it finds
# (gptjax/cluster/compiler.py; docs/performance.md gives the evidence for each), so that a run is the
# same without these scripts. A flag that the installed jaxlib does not know ends the process at once.

# WARN makes NCCL say why a link failed, not only that something failed (NCCL user guide, "Environment
# Variables"); INFO reports on every link.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# shellcheck disable=SC2034 # node.sh divides the machine by it
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
