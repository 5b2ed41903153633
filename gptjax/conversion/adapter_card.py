"""README.md of exported adapters: which model they belong to, and the commands that load them.

It is written to be published, so it names files and directories without the places where they lie.
"""

from pathlib import Path
from shlex import quote

from gptjax.config import ModelConfig
from gptjax.conversion.model_card import name_of
from gptjax.model.size import parameter_count
from gptjax.model.trainable import trainable, trained_count


def adapter_card(cfg: ModelConfig, run: str, base: str, out: Path, flags: str | None) -> str:
    """The whole card of the adapters of `run`, written to `out`.

    `base` is the model beneath. PEFT needs it as a directory of Hugging Face's, so a run has to be
    exported, with these further flags; None says that it is such a directory already.
    """
    name, beneath = name_of(out), name_of(base)
    directory = f"{beneath.partition('@')[0]}-hf" if flags is not None else beneath
    export = (
        "PEFT needs the base as a Hugging Face directory; this writes one:\n\n```sh\n"
        f"python -m gptjax.convert --run {quote(beneath)} --to huggingface{flags} "
        f"--out {directory}\n"
        "```\n\n"
    )
    trained = trained_count(cfg, trainable(cfg))
    return f"""---
library_name: peft
license: unknown  # state it before you publish
tags: [gptjax, lora]
---

# {name}

LoRA adapters of rank {cfg.lora_rank} and alpha {cfg.lora_alpha:g}, beside \
{", ".join(cfg.lora_targets)}: {trained:,} parameters, written by gptjax from {name_of(run)}.
They belong to the model {beneath} of {parameter_count(cfg):,} parameters with them, and mean \
nothing beside another.

## Use

{export if flags is not None else ""}```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{directory}")
model = PeftModel.from_pretrained(base, "{name}")
```

In gptjax:

```sh
python -m gptjax.convert --from {quote(name)} --base {quote(beneath)} --out RUN
python -m gptjax.generate --run RUN
```
"""
