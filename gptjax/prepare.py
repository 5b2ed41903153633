"""Prepare text: `python -m gptjax.prepare --input a.txt b.txt --tokenizer gpt2 --out DIR`."""

import dataclasses
from collections.abc import Sequence

from gptjax.cli import main, parse
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.config.presets import load_config
from gptjax.preparation.options import (
    PrepareCommand,
    check,
    check_adoption,
    check_vocabulary,
    data_of,
    flags_given,
    refuse_unread_flags,
)


def prepare(argv: Sequence[str]) -> int:
    """Parse the flags and do the work that they name."""
    command = parse(PrepareCommand, argv, "python -m gptjax.prepare")
    refuse_unread_flags(command)
    if command.inspect is not None:
        from gptjax.preparation.inspection import inspect_with_report

        inspect_with_report(command.inspect)
        return 0
    if command.adopt is not None:
        from gptjax.preparation.adoption import adopt_with_progress

        check_adoption(command)
        out = command.out or command.adopt
        adopt_with_progress(command.adopt, command.tokenizer, out, command.shard_tokens)
        return 0
    config = load_config(command.config) if command.config else Config()
    data = data_of(command, config)
    check(command, dataclasses.replace(config, data=data))
    if command.train_tokenizer:
        from gptjax.preparation.oddities import Oddities
        from gptjax.preparation.sources import find_inputs
        from gptjax.preparation.vocabulary import train_tokenizer_with_report

        (out, n_vocab), oddities = check_vocabulary(command), Oddities()
        inputs = find_inputs(data, oddities)
        train_tokenizer_with_report(inputs, n_vocab, out, oddities)
        return 0
    if data.hub is not None:
        from gptjax.preparation.fetching import prepare_from_hub

        rows = batch_schedule(config).rows_before(config.train.max_steps)
        read = rows * config.context + 1 if command.config else None
        unread = flags_given(command, ("text_field", "val_fraction", "workers", "shard_tokens"))
        prepare_from_hub(data, command.tokens, read, command.workers, command.shard_tokens, unread)
        return 0

    from gptjax.preparation.pipeline import prepare_with_progress
    from gptjax.preparation.units import Partition

    partition = Partition.parse(command.partition) if command.partition else None
    prepare_with_progress(data, command.workers, partition, command.merge, command.shard_tokens)
    return 0


if __name__ == "__main__":
    main(prepare)
