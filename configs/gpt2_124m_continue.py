"""GPT-2 small, OpenAI's weights, trained on: its style becomes Shakespeare's.

The recipe is nanoGPT's for fine-tuning on Shakespeare (config/finetune_shakespeare.py): 32 windows
of 1,024 tokens a step, AdamW at a constant 3e-5, 20 steps, no dropout, the last tenth of the file
for validation. 655,360 tokens, a little more than two epochs of 301,966. nanoGPT starts from the
1558M model; ours starts from the smallest, and `--train.init-from` takes any other: shape and
tokenizer come from there.
The optimizer is new, so the rate warms up over 2 steps, which nanoGPT's does not.
For other text, take another `--data.path`, and a longer run with a schedule that ends low. A rate
above 1e-4 forgets what GPT-2 knew.
Expected: not measured by us.

    python -m gptjax.convert --from openai-community/gpt2 --out runs/gpt2
    python -m gptjax.prepare --config gpt2_124m_continue --input tinyshakespeare.txt
    python -m gptjax.train --config gpt2_124m_continue
    python -m gptjax.train --config gpt2_124m_continue --train.init-from runs/gpt2_774m \\
        --run-dir runs/gpt2_774m_continue
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        # the model of runs/gpt2 has this shape; that of another --train.init-from takes its place
        model=ModelConfig(n_layer=12, n_head=12, n_embd=768, n_ctx=1024, n_vocab=50257, unroll=12),
        data=DataConfig(
            path="data/shakespeare_gpt2",
            tokenizer="gpt2",
            inputs=("data/tinyshakespeare.txt",),
            val_fraction=0.1,
        ),
        optim=OptimConfig(
            peak_lr=3e-5,
            final_lr=3e-5,
            schedule="wsd",
            cooldown_fraction=0.0,
            warmup_steps=2,
            weight_decay=0.1,
            beta2=0.95,
        ),
        train=TrainConfig(
            init_from="runs/gpt2",
            batch_tokens=32 * 1024,
            micro_batch="auto",
            max_steps=20,
            eval_every_steps=5,
            eval_tokens=None,
            save_every_steps=5,
            sample_every_steps=10,
        ),
        sample=SampleConfig(prompt="\n"),
    )
