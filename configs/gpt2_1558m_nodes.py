"""GPT-2 XL on several nodes of eight GPUs with a slow network between them.

The training is that of `gpt2_1558m`, whose docstring gives the sources.
Mesh: the eight GPUs of a node divide parameters, gradients and moments, because an A100 of 40 GB
cannot hold them whole. Nodes are groups; only one sum of gradients per step crosses between them.
It crosses in bfloat16, which halves the bytes; inside a node gradients were summed in float32.
Four nodes of A100-40 with Ethernet of 100 Gbit/s a node, 1.25 GB/s for each GPU: 19.6 hours
at 56% of the peak by the planner; float32 on the wire would take 23.5. Not measured.
Expected: as `gpt2_1558m`; the effect of bfloat16 on the wire has not been measured.

    python -m gptjax.plan --config gpt2_1558m_nodes --gpu a100-40 --gpus 32 --network 1.25
    python -m gptjax.prepare --config gpt2_1558m_nodes
    python -m gptjax.train --config gpt2_1558m_nodes
"""

from dataclasses import replace

from gptjax.config import Config, MeshConfig
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_1558m` with another mesh and a narrower wire."""
    config = load_config("gpt2_1558m")
    train = replace(config.train, wire_dtype="bfloat16")
    return replace(config, train=train, mesh=MeshConfig(fsdp=8))
