"""Ten minutes from nothing to a model that writes Python-like text, on two CPU cores.

The corpus is the source of Python's own standard library, which is on every machine: about 1,630
files, 29 MB, 9.6 million tokens of a BPE of 2,048 that is trained on it (3.0 bytes a token).
Numbers are our own, chosen by trial: 4 layers, 4 heads, 128 wide, context 256, 8 x 256 = 2,048
tokens a step, 800 steps (1.6 million tokens, a sixth of an epoch), learning rate 3e-3 to
3e-4. Higher rates and shorter warm-ups learn little faster but amplify rounding, so that
different numbers of devices drift apart. Dropout is off: nothing is seen twice.
Expected: 2.0 bits per byte of validation text at the end; more steps go on lowering it.

    python -m gptjax.train --config quickstart
    python -m gptjax.generate --run runs/quickstart --prompt "def "
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, n_ctx=256, dtype="float32", unroll=4),
        data=DataConfig(
            path="data/quickstart", tokenizer="bpe:2048", source="stdlib", val_fraction=0.02
        ),
        optim=OptimConfig(peak_lr=3e-3, final_lr=3e-4, warmup_steps=100, beta2=0.99),
        train=TrainConfig(
            batch_tokens=2048,
            micro_batch=8,
            max_steps=800,
            eval_every_steps=100,
            eval_tokens=2**15,
            save_every_steps=100,
            sample_every_steps=400,
        ),
        sample=SampleConfig(prompt="def ", max_new_tokens=96),
    )
