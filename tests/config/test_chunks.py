"""The length of the loss's chunks, by the memory of a device."""

import dataclasses

import pytest

from gptjax.config import Config, ModelConfig
from gptjax.config.chunks import loss_chunk

GIB = 2**30
CONFIG = Config(model=ModelConfig(n_vocab=50257))


def with_chunk(chunk: int | str, **model) -> Config:
    train = dataclasses.replace(CONFIG.train, loss_chunk_tokens=chunk)
    return dataclasses.replace(
        CONFIG, train=train, model=dataclasses.replace(CONFIG.model, **model)
    )


@pytest.mark.parametrize("memory", [None, 8 * GIB, 80 * GIB])
@pytest.mark.parametrize("chunk", [0, 1, 512, 100_000])
def test_a_number_is_kept(chunk, memory):
    assert loss_chunk(with_chunk(chunk), memory) == chunk


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(8, 2048), (24, 2048), (40, 4096), (48, 4096), (60, 8192), (80, 8192), (180, 8192)],
)
def test_larger_gpus_take_longer_chunks(gib, expected):
    assert loss_chunk(CONFIG, gib * GIB) == expected


def test_logits_of_more_bytes_make_chunks_shorter():
    assert loss_chunk(with_chunk("auto", dtype="float32"), 40 * GIB) == 4096
    assert loss_chunk(with_chunk("auto", dtype="float32"), 60 * GIB) == 4096
    assert loss_chunk(with_chunk("auto", n_vocab=4 * 50257), 80 * GIB) == 2048
    assert loss_chunk(with_chunk("auto", n_vocab=1000), 8 * GIB) == 8192


def test_without_a_gpu_the_vocabulary_need_not_be_known():
    assert loss_chunk(Config()) == 2048
