"""quickstart"""

from gptjax.config import *


def get_config() -> Config:
    return Config(
        model=ModelConfig(n_layer=4, n_head=4, n_embd=192, n_ctx=256, dtype="float32", unroll=4),
        data=DataConfig(
            path="data/quickstart", tokenizer="bpe:2048", source="stdlib", val_fraction=0.02
        ),
        optim=OptimConfig(peak_lr=3e-3, final_lr=3e-4, warmup_steps=50, beta2=0.99),
        train=TrainConfig(
            batch_tokens=4096,
            micro_batch=16,
            max_steps=100,
            eval_every_steps=50,
            eval_tokens=2**15,
            save_every_steps=50,
            sample_every_steps=100,
        ),
    )
