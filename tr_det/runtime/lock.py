"""One writer for an output folder."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tr_det.runtime.processes import from_first, rank

_log = logging.getLogger(__name__)


@contextmanager
def only_writer(folder: str | Path, wait: bool = False, pause: float = 2.0) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if needed.

    The system takes the lock back when a process dies, however it dies. Processes that torchrun has
    started together are one run.

    Args:
        folder: of the run.
        wait: until the other run has ended, instead of refusing.
        pause: seconds between two looks.

    Raises:
        ValueError: another run writes there.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        told = False
        # The others ask the first one, again and again: no collective lasts as long as a run.
        while not from_first(rank() != 0 or _try_to_lock(file)):
            if not wait:
                raise ValueError(
                    f"run.output_dir={str(folder)!r}: another run writes there; must be another "
                    "folder, or wait for its end"
                )
            if not told:
                _log.info("Waiting for %s, which another run is training", folder)
                told = True
            time.sleep(pause)
        try:
            yield
        finally:
            # Closing would not do while loader processes have the file as well.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _try_to_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # file systems of clusters need not have locks
        _log.warning(
            "%s cannot be locked (%s): see that no other run writes there", file.name, error
        )
    return True
