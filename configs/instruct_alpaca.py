"""Follow instructions: full fine-tuning on Alpaca's format or on chats, by the recipe of a book.

Recipe: Raschka (2024), Build a Large Language Model (From Scratch), chapter 7: 1,100 instructions
in Alpaca's template, batches of 8 padded to their longest, AdamW with weight decay 0.1, two epochs
at 5e-5, which is for GPT-2 355M: with its weights give --optim.peak-lr 5e-5. The rate here is for
small shapes, after 10 steps of warm-up and then in a straight line to zero. In the book the
validation loss goes from 3.76 to 0.657, and a judge (Llama 3 8B) gives the responses 49 to 52 of
100. That loss is a mean over prompts and responses, as with --instruct.loss-on all; here it is over
responses alone. 85% of the examples are for training, 10% for validation, 5% for the test.
Expected: a GPT of 1,088,256 parameters after 400 steps on tinyshakespeare.txt, a vocabulary of
2,048, goes to a validation loss of 3.89 over responses, and all 55 of its responses to the test
split end by themselves; what they say is wrong, in a model that small.

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
            peak_lr=1e-3,
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
