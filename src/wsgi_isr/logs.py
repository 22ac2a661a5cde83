"""What log records carry besides their text, for logs that programs read."""

from __future__ import annotations

import typing as t


def fields(event: str, **facts: t.Any) -> dict[str, t.Any]:
    """``extra`` of a log call: ``isr_event``, and each fact with the same prefix."""
    return {"isr_event": event, **{f"isr_{name}": value for name, value in facts.items()}}
