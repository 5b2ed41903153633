"""The smallest run that uses every part: for tests, and to watch the machinery.

Shape and schedule are our own, made to finish 100 steps in seconds on one core: 2 layers, 2
heads, 32 wide, context 64, two micro-steps of 4 sequences, 51,200 bytes in all. It only learns
which bytes are common (about 2.9 nats per byte). It trains on any prepared data.

    python -m gptjax.train --config tiny
    python -m gptjax.train --config tiny --data.path data/NAME
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        model=ModelConfig(n_layer=2, n_head=2, n_embd=32, n_ctx=64, dtype="float32", unroll=2),
        data=DataConfig(path="data/tiny", tokenizer="bytes", source="stdlib", val_fraction=0.02),
        optim=OptimConfig(peak_lr=3e-3, final_lr=3e-4, warmup_steps=10),
        train=TrainConfig(
            batch_tokens=512,
            micro_batch=4,
            max_steps=100,
            eval_every_steps=50,
            eval_tokens=4096,
            save_every_steps=25,
            sample_every_steps=0,
        ),
        sample=SampleConfig(prompt="def ", max_new_tokens=32),
    )
