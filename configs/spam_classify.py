"""Is a message spam? The book's classifier, on any labelled texts."""

from gptjax.config import ClassifyConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        task="classify",
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, n_ctx=256, dtype="float32", unroll=4),
        data=DataConfig(tokenizer="bpe:1024", val_fraction=0.1, test_fraction=0.2),
        classify=ClassifyConfig(read="last", lm_weight=0.0),
        optim=OptimConfig(
            peak_lr=5e-5,
            final_lr=5e-5,
            warmup_steps=0,
            weight_decay=0.1,
            beta2=0.999,
            trainable=("h/*", "ln_f/*", "clf/*"),
            trainable_layers=1,
        ),
        train=TrainConfig(
            batch_rows=8,
            micro_batch=8,
            epochs=5,
            eval_every_epochs=1,
            sample_every_steps=0,
            eval_tokens=None,
        ),
    )
