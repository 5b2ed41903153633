"""Hugging Face's Trainer on instructions, as its users run it: grouped by length and padded."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Figures, Round, Skipped, cores
from shapes import Shape
from torch_side import hugging_face

try:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
except ImportError as error:
    raise Skipped(
        "transformers or torch is not installed: pip install -e '.[reference]'"
    ) from error

IGNORED = -100  # the label of a token that is not learnt


class Clock(TrainerCallback):
    """The time of an epoch, from its first batch to its last step."""

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started


def tune(shape: dict, tokens: str, rows: int) -> tuple[Round, dict]:
    """An epoch a round, after two untimed steps; `tokens` is the file that gptjax's side wrote."""
    try:
        import accelerate  # noqa: F401 - the Trainer needs it
    except ImportError as error:
        raise Skipped("accelerate is not installed: pip install accelerate") from error
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    net = hugging_face(Shape(**shape)).train()
    examples = [
        {
            "input_ids": ids,
            "labels": [IGNORED]
            + [t if w else IGNORED for t, w in zip(ids[1:], weights, strict=True)],
        }
        for ids, weights in json.loads(Path(tokens).read_text())
    ]
    scratch = tempfile.mkdtemp()

    def epoch(steps: int = -1) -> float:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=rows,
            num_train_epochs=1,
            max_steps=steps,
            train_sampling_strategy="group_by_length",
            learning_rate=6e-4,
            weight_decay=0.1,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        clock = Clock()
        data: Any = examples
        Trainer(
            net, arguments, data_collator=_padded, train_dataset=data, callbacks=[clock]
        ).train()
        return clock.seconds

    epoch(2)
    return lambda: _figures(epoch()), {"parameters": sum(p.numel() for p in net.parameters())}


def _figures(seconds: float) -> Figures:
    return {"seconds": seconds}


def _padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """The examples of a batch, padded to the longest."""
    longest = max(len(example["input_ids"]) for example in batch)

    def stacked(name: str, filling: int) -> torch.Tensor:
        lists = (example[name] for example in batch)
        return torch.tensor([ids + [filling] * (longest - len(ids)) for ids in lists])

    lengths = torch.tensor([len(example["input_ids"]) for example in batch])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {
        "input_ids": stacked("input_ids", 0),
        "labels": stacked("labels", IGNORED),
        "attention_mask": mask,
    }
