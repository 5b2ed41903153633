"""Follow instructions."""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        task="instruct",
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, n_ctx=256, dtype="float32", unroll=4),
        data=DataConfig(tokenizer="bpe:1024", val_fraction=0.1, test_fraction=0.05),
        optim=OptimConfig(peak_lr=5e-4, final_lr=0.0, warmup_steps=10),
        train=TrainConfig(
            batch_rows=8,
            micro_batch=8,
            epochs=2,
            eval_every_epochs=1,
            sample_every_steps=0,
            eval_tokens=None,
        ),
    )
