"""Which of two endings fits a story? GPT-1's fine-tuning on ROCStories, its released experiment.

Recipe: the released code of Radford et al. (2018): each ending after the story and a delimiter,
between start and extract tokens; one linear unit scores the state at the extract token; a softmax
over both endings, whose dropout of 0.1 shares its mask; and the loss of the language model with
weight 0.5. 3 epochs of batches of 32, 6.25e-5 after a warm-up over 0.2% of the steps and then a
straight line to 0, AdamW (0.9, 0.999), decay 0.01, clipping at 1, dropout 0.1. The best epoch by
the accuracy on the validation split is measured on the test.
Shape: GPT-1's weights with --train.init-from; from scratch 4 layers, 4 heads, 128 wide, context
512, with GPT-1's switches, and a BPE of 1,024 from the training stories. A small shape needs a
higher rate, such as --optim.peak-lr 1e-3.
Data: the validation file of the Story Cloze Test of 2016, by its authors' permission: 1,871
stories, of which 374 are held out by the seed 3535999445 (ours draws others than theirs). Their
test file is given by --data.test-examples.
Expected: 85.8% on the test, the median of 10 runs of the released code; 86.5% in the paper. Ours
is not measured, without weights or stories here.

    python -m gptjax.train --config rocstories_gpt1

Add --data.examples and --data.test-examples with the two files, and --train.init-from with GPT-1's
weights as Hugging Face has them.
"""

from gptjax.config import ClassifyConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The run described above."""
    return Config(
        task="classify",
        model=ModelConfig(
            n_layer=4,
            n_head=4,
            n_embd=128,
            n_ctx=512,
            norm="post",
            final_norm=False,
            scale_residual_init=False,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            resid_pdrop=0.1,
            clf_pdrop=0.1,
            dtype="float32",
            unroll=4,
        ),
        data=DataConfig(
            tokenizer="bpe:1024", val_fraction=0.2, test_fraction=0.0, split_seed=3535999445
        ),
        classify=ClassifyConfig(form="choice", read="extract", lm_weight=0.5),
        optim=OptimConfig(
            peak_lr=6.25e-5,
            final_lr=0.0,
            schedule="linear",
            warmup_fraction=0.002,
            weight_decay=0.01,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            batch_rows=32,
            micro_batch=8,
            epochs=3,
            eval_every_epochs=1,
            best_by="accuracy",
            sample_every_steps=0,
            eval_tokens=None,
            seed=42,
        ),
    )
