"""Who is missed, by what the ranks last said of themselves."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jigsaw_forecast.parallel.heartbeats import (
    Beat,
    find_ended,
    find_missed,
    process_start,
    process_state,
)

NAME = "all-gather over tensor"


def beat(rank: int, **changes: object) -> Beat:
    first = Beat(
        count=10,
        at_s=10.0,
        host=f"n{rank}",
        pid=1,
        started=0,
        begun=7,
        waits_in=NAME,
        note="train step 12",
        closed=False,
    )
    return replace(first, **changes)  # type: ignore[arg-type]


def later(beats: list[Beat], *, silent: tuple[int, ...] = ()) -> list[Beat]:
    return [
        found if rank in silent else replace(found, count=found.count + 3, at_s=found.at_s + 3.5)
        for rank, found in enumerate(beats)
    ]


def test_a_rank_whose_heartbeat_stops_is_missed_before_one_that_computes() -> None:
    before = [beat(0), beat(1, waits_in=""), beat(2), beat(3)]
    found = find_missed(0, before, later(before, silent=(3,)))
    assert found.ranks == (3,)
    assert found.is_certain
    assert found.text == (
        "rank 3 on host n3 has ended or cannot be reached (last heard of 4 s ago, in train step 12)"
    )


def test_a_rank_that_left_the_run_has_ended() -> None:
    before = [beat(0), beat(1), beat(2, closed=True)]
    found = find_missed(0, before, later(before))
    assert (found.ranks, found.text) == ((2,), "rank 2 on host n2 has ended")


def test_a_rank_that_does_not_wait_is_missed_though_it_lives() -> None:
    before = [beat(0), beat(1), beat(2, waits_in="", begun=5)]
    found = find_missed(0, before, later(before))
    assert not found.is_certain
    assert found.text == (
        "rank 2 on host n2 does not go on (last heard of in train step 12, 2 collectives behind)"
    )


def test_where_all_wait_the_one_with_the_fewest_collectives_is_missed() -> None:
    before = [beat(0), beat(1, begun=3, waits_in="barrier"), beat(2)]
    found = find_missed(2, before, later(before))
    assert found.ranks == (1,)
    assert "waits in barrier, 4 collectives behind" in found.text


def test_where_all_wait_alike_what_they_wait_in_is_told() -> None:
    before = [beat(0, waits_in="barrier"), beat(1)]
    found = find_missed(0, before, later(before))
    assert "rank 0 waits in barrier; rank 1 waits in all-gather over tensor" in found.text


def test_of_many_missed_ranks_a_few_are_named() -> None:
    before = [beat(rank) for rank in range(10)]
    found = find_missed(0, before, later(before, silent=tuple(range(1, 10))))
    assert len(found.ranks) == 9
    assert found.text.endswith("; 5 more ranks alike")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_state_of_a_process_is_seen_and_ends_the_look() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = process_start(child.pid)
    near = [beat(rank, host="here", pid=child.pid, started=started) for rank in range(2)]
    try:
        assert process_state(child.pid, started) == "runs"
        assert find_ended(0, near) is None
        child.send_signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + 10.0
        while process_state(child.pid, started) != "stopped":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # left as a zombie
    assert process_state(child.pid, started) == "gone"
    child.wait()
    assert process_state(child.pid, started) == "gone"
    found = find_ended(0, near)
    assert found is not None
    assert found.ranks == (1,)
    elsewhere = [near[0], replace(near[1], host="there")]
    assert find_ended(0, elsewhere) is None


def test_without_a_start_time_the_state_of_a_process_is_unknown() -> None:
    assert process_state(os.getpid(), 0) == "unknown"
