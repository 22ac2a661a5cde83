"""What a process of ``regenerate`` does: it renders the pages that web workers hand over.

A render that needs the processor costs the visitors of a web worker milliseconds, whichever thread
it is in. In another process it costs them nothing.
"""

from __future__ import annotations

import json
import threading

from .page import parse_key
from .process import Process
from .store.protocol import Wanted
from .threads import Background

#: Seconds for which a page is this process's to render; said again while it renders.
CLAIM = 8.0
#: Longest wait for a page, or for a thread: for so long nobody asks whether to stop.
WAIT = 0.25
#: Seconds for renders that have begun when it is ended.
FINISHING = 10.0


def regenerate(process: Process, stop: threading.Event, workers: int) -> None:
    """Render until ``stop`` is set.

    :raises NotImplementedError: on a store that cannot hand pages over.
    """
    pages, config = process.pages, process.config
    store, guard = pages.store, pages.guard
    if not store.kind.wants:
        raise NotImplementedError("this store cannot hand pages over; file:// URLs and Redis can")
    background = Background(workers, config.render_timeout)

    def render(wanted: Wanted) -> None:
        try:
            payload = process.unseal(wanted.data)
            if payload is not None:
                key = parse_key(json.loads(payload))
                # Anybody who can write to the store can ask for anything.
                if config.is_canonical(key):
                    process.renders.regenerate(key)
        except (ValueError, TypeError, RecursionError):
            pass
        finally:
            guard.ask("done", lambda: store.done(config.build_id, wanted.name), write=True)

    while not stop.is_set():
        process.poll()
        if not background.has_room(WAIT):
            # It still says that it is there.
            continue
        wanted = guard.ask("take", lambda: store.take(config.build_id, CLAIM), write=True)
        if wanted is not None:
            background.submit(lambda wanted=wanted: render(wanted))  # type: ignore[misc]
        elif pages.is_local:
            if not guard.is_well or not guard.ask("listen", lambda: store.listen(WAIT)):
                stop.wait(0.0 if guard.is_well else WAIT)
        else:
            stop.wait(WAIT / 5)
    background.wait(FINISHING)
