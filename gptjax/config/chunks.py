"""The length of the loss's chunks: how many tokens have logits at once, by the device's memory.

A GPU computes a product in tiles, of 128 by 256 outputs for the largest kernels, and works on more
than a hundred of them at once. The gradient of 2,048 tokens that are 768 wide is only 48 such
tiles, that of 8,192 tokens is 192. On CPUs longer chunks gain nothing.
"""

from gptjax.config.schema import Config

SMALLEST, LARGEST = 2048, 8192
MEMORY_SHARE = 1 / 25  # of a GPU, for the logits of a chunk and their gradient


def loss_chunk(config: Config, gpu_memory: int | None = None) -> int:
    """The number for `train.loss_chunk_tokens`; 0 computes all logits of a micro-batch.

    `auto` takes the longest chunk of 2,048, 4,096 or 8,192 tokens whose logits leave most of
    `gpu_memory` bytes alone, and 2,048 without a GPU. All processes must give the same memory.

    >>> from gptjax.config import ModelConfig
    >>> config = Config(model=ModelConfig(n_vocab=50257))
    >>> [loss_chunk(config, memory) for memory in (None, 24 * 10**9, 40 * 10**9, 80 * 10**9)]
    [2048, 2048, 4096, 8192]
    """
    wanted = config.train.loss_chunk_tokens
    if wanted != "auto":
        return wanted
    if gpu_memory is None:
        return SMALLEST
    of_token = config.model.padded_vocab * (8 if config.model.dtype == "float32" else 6)
    chunk, most = SMALLEST, gpu_memory * MEMORY_SHARE
    while chunk < LARGEST and 2 * chunk * of_token <= most:
        chunk *= 2
    return chunk
