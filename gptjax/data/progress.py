"""The progress of a preparation on a terminal: MB/s, tokens/s and the time that is left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gptjax.data.bars import byte_bars
from gptjax.data.sources import Progress


@contextmanager
def progress_bars(total: int, partitions: int = 1) -> Iterator[Progress]:
    """A bar for reading and one for tokenising `total` bytes, or one of the partitions' shares.

    What was compressed turns out to be more than `total`: tokenising then counts to what was read.
    What is streamed before has a bar of its own, which knows no end.
    """
    with byte_bars("{task.fields[rate]}") as bar:
        share = max(1, total // partitions)
        tasks = {"reading": bar.add_task("reading   ", total=share, rate="")}
        read = tokens_made = 0
        begun = 0.0

        def show(stage: str, size: int, tokens: int) -> None:
            nonlocal read, tokens_made, begun
            if stage == "streaming":
                if stage not in tasks:
                    tasks[stage] = bar.add_task("streaming ", total=None, rate="")
                bar.update(tasks[stage], advance=size)
                return
            if stage == "reading":
                read += size
                bar.update(tasks[stage], total=max(share, read), advance=size)
                return
            if stage not in tasks:
                begun = time.perf_counter()
                bar.update(tasks["reading"], total=read)
                tasks[stage] = bar.add_task("tokenising", total=read, rate="")
            tokens_made += tokens
            seconds = time.perf_counter() - begun
            rate = f"{tokens_made / seconds / 1e6:,.2f} M tokens/s" if seconds > 1 else ""
            bar.update(tasks[stage], advance=size, rate=rate)

        yield show
