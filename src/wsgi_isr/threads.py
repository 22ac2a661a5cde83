"""Threads that go on working while no request is served, where there are any."""

from __future__ import annotations

import sys
import threading


def start(thread: threading.Thread) -> bool:
    """Start a thread; false where it would not run between requests.

    uWSGI without ``--enable-threads`` or ``--threads`` freezes threads between requests, in some
    versions and with whatever locks they hold: one of a file would stop all other workers.
    """
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {}) if uwsgi is not None else {"threads": True}
    # Their names are bytes or texts, depending on the version.
    if not {"threads", "enable-threads", b"threads", b"enable-threads"} & set(options):
        return False
    try:
        thread.start()
    except RuntimeError:
        # None in a sub-interpreter, at shutdown, or beyond the system's limit.
        return False
    return True
