"""The eight models of GPT-3, trained as its paper says. Read without jax.

Source: Brown et al. (2020), table 2.1 and appendix B. Where table 2.1 contradicts itself, its table
D.1 decides, which counts the parameters (125, 356, 760, 1,320, 2,650, 6,660, 12,850 and 174,600
million). This table here and EleutherAI's gpt-neox agree with it:

- XL: 24 heads of 128 would be 3,072 wide and not 2,048, with 1,517 million parameters: 16 heads.
- 13B: 5,140 is not 40 heads of 128, and would have 12,953 million parameters: 5,120 wide.

Every layer attends densely here. The paper alternates dense and locally banded sparse layers, as
the Sparse Transformer does, and gives no width of the band. No parameter depends on it.
"""

from bisect import bisect_right
from typing import NamedTuple

from gptjax.config.batches import BatchSchedule
from gptjax.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)

CONTEXT = 2048
TOKENS, DECAY_TOKENS, WARMUP_TOKENS = 300e9, 260e9, 375e6


class GPT3Size(NamedTuple):
    """A row of table 2.1; batches are powers of two near its 0.5M, 1M and 2M, and 3 x 2^20."""

    n_layer: int
    n_embd: int
    n_head: int
    batch_tokens: int
    peak_lr: float
    ramp_tokens: float
    """Tokens in which the batch grows. The paper says "4-12 billion, depending on the model size";
    the figures between are our own."""


GPT3_SIZES = {
    "Small": GPT3Size(12, 768, 12, 2**19, 6e-4, 4e9),
    "Medium": GPT3Size(24, 1024, 16, 2**19, 3e-4, 4e9),
    "Large": GPT3Size(24, 1536, 16, 2**19, 2.5e-4, 4e9),
    "XL": GPT3Size(24, 2048, 16, 2**20, 2e-4, 6e9),
    "2.7B": GPT3Size(32, 2560, 32, 2**20, 1.6e-4, 6e9),
    "6.7B": GPT3Size(32, 4096, 32, 2**21, 1.2e-4, 8e9),
    "13B": GPT3Size(40, 5120, 40, 2**21, 1e-4, 8e9),
    "175B": GPT3Size(96, 12_288, 96, 3 * 2**20, 6e-5, 12e9),
}


def gpt3(name: str) -> Config:
    """The run of a row of table 2.1, by the paper's name.

    Context 2048 and GPT-2's 50,257 tokens. Appendix B: Adam with betas 0.9 and 0.95 and epsilon
    1e-8, clipping at 1.0, decay 0.1, a warm-up over 375M tokens, cosine to a tenth of the peak over
    260e9 tokens, 300e9 tokens in all. The batch grows from a quarter to a half and to the whole;
    the paper's grows linearly from 32k tokens, 16 rows, which are too few to keep eight GPUs busy.
    Dropout is off: the paper names none. OpenAI never published its data: prepare your own into
    `data.path`. Raises `KeyError` for a name that the table does not have.

    >>> config = gpt3("13B")
    >>> config.model.n_embd, config.train.max_steps, config.optim.warmup_steps
    (5120, 149409, 715)
    """
    row = GPT3_SIZES[name]
    first = row.batch_tokens // 4
    ramp_steps = round(row.ramp_tokens / (1.5 * first))  # half of them with twice the tokens
    ramp = BatchSchedule(first // CONTEXT, row.batch_tokens // CONTEXT, ramp_steps)
    every = 1000 if row.batch_tokens <= 2**20 else 500
    return Config(
        model=ModelConfig(
            n_layer=row.n_layer,
            n_head=row.n_head,
            n_embd=row.n_embd,
            n_ctx=CONTEXT,
            n_vocab=50_257,
        ),
        data=DataConfig(path="data/gpt3_300b", tokenizer="gpt2", val_fraction=0.001),
        optim=OptimConfig(
            peak_lr=row.peak_lr,
            final_lr=round(row.peak_lr / 10, 9),
            warmup_steps=_step_after(WARMUP_TOKENS, ramp),
            decay_steps=_step_after(DECAY_TOKENS, ramp),
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            batch_tokens=row.batch_tokens,
            ramp_from_tokens=first,
            ramp_steps=ramp_steps,
            micro_batch="auto",
            max_steps=_step_after(TOKENS, ramp),
            eval_every_steps=every,
            save_every_steps=every,
            sample_every_steps=every if row.batch_tokens <= 2**20 else 0,
        ),
        sample=SampleConfig(prompt="Once upon a time"),
    )


def _step_after(tokens: float, ramp: BatchSchedule) -> int:
    """The step before which about `tokens` have been seen, to the nearest."""
    rows = tokens / CONTEXT
    step = bisect_right(range(10**8), rows, key=ramp.rows_before) - 1
    return step + round((rows - ramp.rows_before(step)) / ramp.rows(step))
