"""Reads GRIB files with a few damaged bytes: what is refused, what reads on, does any end the tool?

`python benchmarks/damaged_grib.py FILE... --cases 100`: of each file, up to two messages are taken,
one to four of their bytes are changed (seven times in ten within the first 260, where the headers
are), and all that `inspect` reads is read in a process of its own with 4 GB of memory and 20 s.
`refused`: with a message that names the file. `other`: fields, times or values that are not those
of the whole file, which no reader can know without a digest. `same`: nothing that is read was hit.
Ends with exit code 1 where a process crashed, hung or raised anything but a refusal.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.errors import DataError

LIMIT_S = 20
LIMIT_BYTES = 4 << 30
MOST_BYTES = 60_000  # of what a child tells: less than a pipe holds
HEADER_BYTES = 260
IN_HEADERS = 0.7
CRASHED = "crashed"


def read(path: Path) -> str:
    """Everything that a file says, as text; or the refusal."""
    try:
        source = GribSource(path)
        found = []
        for record in source.records():
            statistics = source.statistics(record)
            sums = [float(next(source.read([record])).sum())] if record.axes is not None else []
            what = (record.message, record.short_name, record.level, str(record.valid_time))
            found.append([*map(str, what), record.grid, str(statistics), *sums])
        return json.dumps(found)
    except DataError as error:
        return f"refused: {error}"


def read_in_child(path: Path) -> str:
    """The same from a process of its own; what ended it where it did not end by itself."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(LIMIT_S)
        code = 1
        try:
            os.write(theirs, read(path)[:MOST_BYTES].encode())
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(ours, "rb") as stream:
        text = stream.read().decode(errors="replace")
    if code == 0:
        return text
    return f"{CRASHED}: {'an exception' if code > 0 else signal.Signals(-code).name}"


def messages(content: bytes) -> list[bytes]:
    """The whole messages of a file."""
    found, position = [], 0
    while (start := content.find(b"GRIB", position)) >= 0:
        edition = content[start + 7]
        field = content[start + 8 : start + 16] if edition == 2 else content[start + 4 : start + 7]
        length = int.from_bytes(field, "big")
        if length < 20 or start + length > len(content):
            break
        found.append(content[start : start + length])
        position = start + length
    return found


def damage(whole: bytes, lengths: list[int], rng: random.Random) -> tuple[bytes, list[int]]:
    """A copy with one to four other bytes in one of its messages, and where they are."""
    damaged = bytearray(whole)
    number = rng.randrange(len(lengths))
    start, length = sum(lengths[:number]), lengths[number]
    places = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = min(length, HEADER_BYTES) if rng.random() < IN_HEADERS else length
        place = start + rng.randrange(8, end)
        if rng.random() < 0.5:
            damaged[place] ^= 1 << rng.randrange(8)
        else:
            damaged[place] = rng.choice((0, 255, rng.randrange(256)))
        places.append(place)
    return bytes(damaged), places


def try_file(path: Path, scratch: Path, cases: int, rng: random.Random) -> Counter[str]:
    """Damages a file again and again; prints what ended a process."""
    tally: Counter[str] = Counter()
    smallest = sorted(messages(path.read_bytes()), key=len)[:40]
    chosen = rng.sample(smallest, min(2, len(smallest)))
    whole = b"".join(chosen)
    if not whole:
        return tally
    scratch.write_bytes(whole)
    expected = read(scratch)[:MOST_BYTES]  # here, so that the children find eccodes' tables loaded
    for case in range(cases):
        damaged, places = damage(whole, [len(one) for one in chosen], rng)
        scratch.write_bytes(damaged)
        found = read_in_child(scratch)
        kind = found.partition(":")[0] if found.startswith((CRASHED, "refused")) else "other"
        tally["same" if found == expected else kind] += 1
        if kind == CRASHED:
            print(f"{path} case {case}, bytes {places}: {found}", flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="damaged-grib-") as folder:
        for path in options.files:
            total += try_file(path, Path(folder) / "damaged.grib", options.cases, rng)
    print(f"{len(options.files)} files, {total.total()} damaged copies: {dict(total)}")
    return 1 if total[CRASHED] else 0


if __name__ == "__main__":
    sys.exit(main())
