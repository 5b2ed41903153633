"""The progress of a preparation on a terminal: MB/s, tokens/s and the time left."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gptjax.base.terminal import byte_bars
from gptjax.preparation.sources import Progress


@contextmanager
def progress_bars(total: int, partitions: int = 1) -> Iterator[Progress]:
    """A bar for each stage, of `total` bytes or one partition's share of them.

    Compressed text turns out to be more than `total`, and a stream has no known end.
    """
    with byte_bars("{task.fields[rate]}") as bar:
        share = max(1, total // partitions)
        done, tasks = Counter[str](), {}
        tokens_made, begun = 0, 0.0

        def show(stage: str, size: int, tokens: int) -> None:
            nonlocal tokens_made, begun
            if stage not in tasks:
                begun = time.perf_counter()
                tasks[stage] = bar.add_task(f"{stage:10}", total=None, rate="")
            done[stage] += size
            tokens_made += tokens
            end = None if stage == "streaming" else max(share, *done.values())
            seconds = time.perf_counter() - begun
            rate = (
                f"{tokens_made / seconds / 1e6:,.2f} M tokens/s" if tokens and seconds > 1 else ""
            )
            bar.update(tasks[stage], total=end, advance=size, rate=rate)

        yield show
