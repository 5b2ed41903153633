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

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`spam_classify_gpt1` with two endings, its own division, and the rate of GPT-1's weights."""
    config = load_config("spam_classify_gpt1")
    model = replace(config.model, n_ctx=512)
    data = replace(config.data, val_fraction=0.2, test_fraction=0.0, split_seed=3535999445)
    classify = replace(config.classify, form="choice")
    optim = replace(config.optim, peak_lr=6.25e-5)
    train = replace(config.train, micro_batch=8, best_by="accuracy", seed=42)
    return replace(config, model=model, data=data, classify=classify, optim=optim, train=train)
