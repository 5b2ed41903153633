"""One of several processes that save or restore a step together; it reports the files it read.

    python two_savers.py COORDINATOR PROCESSES PROCESS DIRECTORY save|restore

Prints one line of JSON: the checksums that this process took, the restored step, the messages.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from gptjax.runs import integrity
from gptjax.runs.checkpoint import Checkpointer

COORDINATOR, PROCESSES, PROCESS, DIRECTORY, VERB = sys.argv[1:]
STEPS = (1, 2)


def main() -> None:
    """Meet, save or restore, report."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(PROCESSES) > 1:
        jax.distributed.initialize(COORDINATOR, int(PROCESSES), int(PROCESS))
    read, checksum = [], integrity._checksum

    def noting(path: Path) -> list[int]:
        read.append(str(path).split(".orbax-checkpoint-tmp/")[-1].removeprefix(DIRECTORY + "/"))
        return checksum(path)

    integrity._checksum = noting
    mesh = jax.make_mesh((jax.device_count(),), ("a",), (jax.sharding.AxisType.Auto,))
    divided, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("a"), jax.P()))
    checkpointer, said, found = Checkpointer(Path(DIRECTORY)), [], None
    numbers = np.arange(1 << 16, dtype=np.float32).reshape(-1, 64)
    if VERB == "save":
        for step in STEPS:
            items = {
                "params": {"x": jax.device_put(numbers + step, divided)},
                "opt_state": {"y": jax.device_put(numbers[0] * step, whole)},
            }
            checkpointer.save(step, items, {}, {"data": "d"})
            checkpointer.wait()
    else:
        like = {"params": {"x": jax.ShapeDtypeStruct(numbers.shape, "float32", sharding=divided)}}
        restored = checkpointer.restore(like, said.append)
        assert restored is not None
        for shard in restored.items["params"]["x"].addressable_shards:
            np.testing.assert_array_equal(shard.data, numbers[shard.index] + restored.step)
        found = restored.step
    checkpointer.close()
    print(json.dumps({"read": sorted(read), "step": found, "said": said}))


main()
