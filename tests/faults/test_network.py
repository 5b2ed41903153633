"""Networks between processes: one that loses packets, and one that takes a machine away.

Both processes run in a network of their own, in which the system drops packets.
"""

import subprocess
import time
from collections.abc import Iterator

import pytest
from killed_runs import assert_same_run
from paired_runs import ended_pair, start_pair
from test_hangs import PEER_SECONDS, options, start_training_pair

from gptjax.cluster.peers import LostPeerError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
RULE = "iptables -A INPUT -j DROP -m statistic --mode random --probability"
NETWORK = f"ip link set lo up && {RULE} 0 && echo up && exec sleep 1000"


class Network:
    """A network of its own; `within` begins the commands of those that use it."""

    def __init__(self, process: int):
        self.within = ["nsenter", "-t", str(process), "-n"]

    def lose(self, share: float) -> None:
        """Lose this share of all packets from now on."""
        subprocess.run([*self.within, *RULE.split(), str(share)], check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    words = ["unshare", "-n", "sh", "-c", NETWORK]
    try:
        holder = subprocess.Popen(words, stdout=-1, stderr=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    assert holder.stdout is not None
    if holder.stdout.readline() != "up\n":
        pytest.skip("a network of its own needs root, ip and iptables")
    yield Network(holder.pid)
    holder.kill()
    holder.communicate()


def test_a_network_that_loses_packets_changes_nothing(prepared, tmp_path, network, report):
    lossy, whole = tmp_path / "lossy", tmp_path / "whole"
    for place in (lossy, whole):
        place.mkdir()
    network.lose(0.05)
    codes, said = ended_pair(start_pair(options(prepared), lossy, within=network.within))
    assert codes == [0, 0], said
    codes, said = ended_pair(start_pair(options(prepared), whole))
    assert codes == [0, 0], said
    assert_same_run(lossy, whole)
    report("a network that loses 5% of all packets")


def test_a_machine_that_vanishes_ends_the_others_in_15_seconds(prepared, tmp_path, network, report):
    """It closes no connection, as a process that is killed does."""
    pair = start_training_pair(prepared, tmp_path, within=network.within)
    network.lose(1)
    began = time.monotonic()
    codes, said = ended_pair(pair)
    took = time.monotonic() - began
    assert codes == [LostPeerError.exit_code] * 2, said
    assert took < PEER_SECONDS, said
    assert said.count(str(LostPeerError())) == 2
    report("a network that goes away", lost=None, note="all ended in < 15 s")
