"""Signals (blinker), with the middleware as sender. Receivers take ``sender, **extra``.

A receiver that raises is logged and harms nobody. blinker refers to receivers weakly: a lambda
vanishes unless you keep it.
"""

from __future__ import annotations

import logging
import typing as t

from blinker import NamedSignal, Namespace

logger = logging.getLogger("wsgi_isr")

_signals = Namespace()

page_stored = _signals.signal("page-stored")
"""A rendered page was stored. Extra: ``url``, ``status``, ``reason``."""

page_rejected = _signals.signal("page-rejected")
"""An answer was refused by the store's rules. Extra: ``url``, ``reason``."""

regeneration_failed = _signals.signal("regeneration-failed")
"""A render failed; the last good page stays. Extra: ``url``, ``error``, ``failures``."""

page_withdrawn = _signals.signal("page-withdrawn")
"""A page was removed: its app no longer offers it to everybody. Extra: ``url``, ``reason``."""

invalidated = _signals.signal("invalidated")
"""Pages were revalidated, or became stale or expired on demand: what a CDN has to purge.

Extra: ``paths`` and ``patterns`` (percent-encoded, with the mount point), ``tags``, ``expire``.
"""

page_revalidated = _signals.signal("page-revalidated")
"""A page was rendered on demand. Extra: ``url``, ``status``."""

store_failed = _signals.signal("store-failed")
"""The store did not do what was asked. Extra: ``operation``, ``error``."""


def fields(event: str, **facts: t.Any) -> dict[str, t.Any]:
    """``extra`` of a log call, for logs that programs read: ``isr_event``, and its facts."""
    return {"isr_event": event, **{f"isr_{name}": value for name, value in facts.items()}}


def send(signal: NamedSignal, sender: object, **extra: t.Any) -> None:
    """Send a signal without letting a receiver's error out."""
    if not signal.receivers:
        return
    for receiver in list(signal.receivers_for(sender)):
        try:
            receiver(sender, **extra)
        except Exception:
            logger.exception("a receiver of %s failed", signal.name)
