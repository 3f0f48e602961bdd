"""How many threads of a rank encode output."""

import os
from functools import cache

import torch

MAX_ENCODERS = 16  # beyond, the file system decides


@cache
def num_encoders() -> int:
    """Threads that may encode at once: the cores of this rank that its model leaves idle.

    On a GPU the model keeps one core busy. On CPUs it computes on as many as torch was given; one
    more thread then encodes, since a step has waits of its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    busy = 1 if torch.cuda.is_available() else torch.get_num_threads()
    return max(1, min(own - busy, MAX_ENCODERS))
