"""GPT-2 small on ten billion tokens of FineWeb.

Shape: Radford et al. (2019), table 2, the smallest: 12 layers, 768 wide, context 1024, 50,257 BPE
tokens; 12 heads as in the released model. 124,439,808 parameters with the tied head (the paper's
"117M" is a miscount that OpenAI corrected with the release).
Batch: 2^19 tokens; Brown et al. (2020), table 2.1, has 0.5M for this size and the peak learning
rate of 6e-4. Cosine to a tenth of it, beta2 0.95, clipping at 1.0 and decay 0.1: its appendix B.
Warm-up: 375M tokens (the same appendix) = 715 steps of 2^19.
Length: 10e9 / 2^19 = 19,073 steps, one epoch. 6 N D = 7.5e18 FLOP without attention.
Data: FineWeb (Penedo et al. 2024) in GPT-2's tokens and llm.c's format, which modded-nanogpt uses
too: 100 of the 103 files of kjj0/fineweb10B-gpt2, and its 100M tokens of validation; 20 GB.
`--hub HuggingFaceFW/fineweb-edu:sample-10BT --out data/fineweb_edu` tokenises ten billion tokens of
FineWeb-Edu instead.
Dropout is off, as in every public run of this size over one epoch; `--model.embd-pdrop 0.1
--model.attn-pdrop 0.1 --model.resid-pdrop 0.1` turns it on.
Expected: OpenAI's own weights have 3.29 nats per token on FineWeb's validation set, and llm.c's run
of this length over FineWeb ends at 3.29 as well. We have not measured it yet.

    python -m gptjax.prepare --config gpt2_124m
    python -m gptjax.train --config gpt2_124m
"""

from gptjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        model=ModelConfig(n_layer=12, n_head=12, n_embd=768, n_ctx=1024, n_vocab=50257, unroll=12),
        data=DataConfig(
            path="data/fineweb_10b",
            tokenizer="gpt2",
            hub="kjj0/fineweb10B-gpt2",
            val_fraction=0.01,
        ),
        optim=OptimConfig(
            peak_lr=6e-4,
            final_lr=6e-5,
            warmup_steps=715,
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.95,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            batch_tokens=2**19,
            micro_batch="auto",
            max_steps=19_073,
            eval_every_steps=250,
            eval_tokens=10 * 2**20,
            save_every_steps=500,
            sample_every_steps=1000,
        ),
        sample=SampleConfig(prompt="Once upon a time"),
    )
