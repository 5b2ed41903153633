"""Follow instructions: full fine-tuning on Alpaca's format or on chats, by the recipe of a book.

Raschka (2024), Build a Large Language Model (From Scratch), chapter 7: 1,100 instructions in
Alpaca's template, batches of 8 padded to their longest, AdamW at 5e-5 with weight decay 0.1, two
epochs. There GPT-2 355M goes from a validation loss of 3.76 to 0.657, and a judge (Llama 3 8B)
gives it 49 to 52 of 100. That loss is a mean over prompts and responses: --instruct.loss-on all
measures it. Ours is over responses alone, the default, as with Alpaca's own recipe.
85% of the examples are for training, 10% for validation and 5% for the test.

    python -m gptjax.train --config instruct_alpaca
    python -m gptjax.generate --run runs/instruct_alpaca --prompt "What is the opposite of hot?"

Add --data.examples FILE, and --train.init-from with a run or a directory of Hugging Face's.
Shape and tokenizer come from the model that it starts from. Without --train.init-from a small shape
is trained from random numbers.
"""

from gptjax.config import (
    Config,
    DataConfig,
    InstructConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """The run described above."""
    return Config(
        task="instruct",
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, n_ctx=256, dtype="float32", unroll=4),
        data=DataConfig(tokenizer="bpe:1024", val_fraction=0.1, test_fraction=0.05),
        instruct=InstructConfig(lengths="pad"),
        optim=OptimConfig(
            peak_lr=5e-4,
            final_lr=0.0,
            schedule="linear",
            warmup_steps=10,
            beta2=0.999,
            weight_decay=0.1,
        ),
        train=TrainConfig(
            batch_rows=8,
            micro_batch=8,
            epochs=2,
            eval_every_epochs=1,
            eval_tokens=None,
            sample_every_steps=0,
        ),
        sample=SampleConfig(
            prompt="What is the opposite of 'hot'?", max_new_tokens=256, temperature=0.0
        ),
    )
