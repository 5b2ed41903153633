"""GPT-1: norms after the sums, its own tokenizer, dropout everywhere, float32.

Shape: Radford et al. (2018), section 4.1: 12 layers, 12 heads, 768 wide, context 512, 40,478 tokens
of GPT-1's BPE. Layer norms follow the residual sums, no norm closes the stack, and all weights
start from N(0, 0.02), unscaled. 116,534,784 parameters, as in the released weights. Only
fine-tuning trains start, delimiter and extract, ids 40,478 to 40,480 in the vocabulary's padding.
Optimizer: section 4.1: Adam (0.9, 0.999, 1e-8), 2,000 steps of warm-up to 2.5e-4, cosine to 0,
dropout 0.1 at three places, decay 0.01 except for biases and norms. Clipping at 1.0 comes from the
released fine-tuning code. Its embedding dropout applies to the table, ours to the sum.
Batch: 64 x 512 = 32,768 tokens. Length: 100 epochs of 1e9 tokens = 3,051,758 steps; BooksCorpus
has 985M words (Zhu et al. 2015, table 2). `--train.max-steps` fits it to other data.
Arithmetic: float32, matrices in TF32, which the GPUs of 2018 did not have; 7.3e19 FLOP, 113 hours
of one H100 at 36% of TF32's peak, by the planner; not measured.
Data: BooksCorpus is no longer distributed. Prepare your own books, one file each; the tokenizer
needs ftfy: `pip install -e '.[gpt1]'`.
Expected: the paper's perplexity on BooksCorpus is 18.4 = 2.91 nats a token. Ours is not measured.

    python -m gptjax.plan --config gpt1_117m --gpu h100
    python -m gptjax.prepare --config gpt1_117m --input 'books/*.txt'
    python -m gptjax.train --config gpt1_117m
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        model=ModelConfig(
            n_layer=12,
            n_head=12,
            n_embd=768,
            n_ctx=512,
            n_vocab=40_478,
            norm="post",
            final_norm=False,
            scale_residual_init=False,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            resid_pdrop=0.1,
            dtype="float32",
            float32_matmul="tf32",
            unroll=12,
        ),
        data=DataConfig(path="data/books", tokenizer="gpt1", val_fraction=0.01),
        optim=OptimConfig(
            peak_lr=2.5e-4,
            final_lr=0.0,
            warmup_steps=2000,
            weight_decay=0.01,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            batch_tokens=64 * 512,
            micro_batch="auto",
            max_steps=3_051_758,
            eval_every_steps=5000,
            save_every_steps=5000,
            sample_every_steps=10_000,
        ),
        sample=SampleConfig(prompt="once upon a time"),
    )
