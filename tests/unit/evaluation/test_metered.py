import threading
import time
from collections.abc import Mapping, Sequence

from autoq.core.data import Array, Feed
from autoq.evaluation.metered import MeteredSession


class Sleeping:
    def __init__(self) -> None:
        self.is_closed = False

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(0.1)
        return {}

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        time.sleep(0.05)
        return 12.0

    def close(self) -> None:
        self.is_closed = True


def test_runs_side_by_side_count_once() -> None:
    session = MeteredSession(Sleeping())
    threads = [threading.Thread(target=session.run, args=({},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.09 < session.seconds < 0.7  # one after the other they would be 0.8


def test_time_outside_the_session_does_not_count() -> None:
    session = MeteredSession(Sleeping())
    assert session.time_block(1, []) == 12.0
    counted = session.seconds
    time.sleep(0.02)
    assert counted == session.seconds >= 0.049


def test_closing_reaches_the_session() -> None:
    inner = Sleeping()
    MeteredSession(inner).close()
    assert inner.is_closed
