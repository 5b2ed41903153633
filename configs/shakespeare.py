"""A character-class model of Shakespeare that a laptop trains in minutes.

The numbers are nanoGPT's CPU recipe for its character-level Shakespeare: 4 layers, 4 heads, 128
wide, context 64, batch 12 x 64 = 768 tokens, 2,000 steps, learning rate 1e-3 to 1e-4 with 100 of
warm-up, beta2 0.99, no biases, no dropout, the last tenth of the file for validation. 1,536,000
tokens, 1.5 epochs. The seed, the tokenizer and how often it is validated differ, and two things
more: GELU is GPT-2's, by tanh, and nanoGPT's by erf; nanoGPT counts to 2,000 from 0, and so makes
2,001 updates.

Tokens are bytes, which in this text are characters. By its 65 characters alone (`--tokenizer
chars`) a step is a little faster, but the loss ends 0.02 higher, as a torch loop's does:
rows of the tied embedding that no token uses seem to help.
Expected: 1.88 nats a character over the whole validation text (1.880, 1.885 and 1.891 with seeds 0,
1 and 1337). nanoGPT reports 1.88, from 20 random batches.

    python -m gptjax.prepare --config shakespeare --input tinyshakespeare.txt
    python -m gptjax.train --config shakespeare
    python -m gptjax.generate --run runs/shakespeare --prompt "ROMEO:"
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        model=ModelConfig(
            n_layer=4,
            n_head=4,
            n_embd=128,
            n_ctx=64,
            qkv_bias=False,
            bias=False,
            dtype="float32",
            unroll=4,
        ),
        data=DataConfig(
            path="data/shakespeare",
            tokenizer="bytes",
            inputs=("data/tinyshakespeare.txt",),
            val_fraction=0.1,
        ),
        optim=OptimConfig(peak_lr=1e-3, final_lr=1e-4, warmup_steps=100, beta2=0.99),
        train=TrainConfig(
            batch_tokens=12 * 64,
            micro_batch=12,
            cpu_devices=2,
            updates_per_call=10,
            max_steps=2000,
            eval_every_steps=1000,
            eval_tokens=None,
            save_every_steps=1000,
            sample_every_steps=0,
            seed=0,
        ),
    )
