"""Worker processes of this machine that are no ranks: they end with the process that started them.

Nothing here needs torch, whose import takes seconds that a worker would spend too.
"""

import multiprocessing
import os
import threading
import time

_CHECK_PERIOD_S = 0.5
_EXIT_STOPPED = 3


def end_with_parent() -> None:
    """Ends this process within a second of its parent's end, however that came; returns at once.

    A parent that was killed tells nobody, and a pool's workers would wait for it for ever. It may
    have ended before this is called.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process of multiprocessing"
    assert parent.pid is not None
    threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_PERIOD_S)
    os._exit(_EXIT_STOPPED)
