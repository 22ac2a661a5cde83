"""A span (OpenTelemetry) for each render, where the app traces itself; nothing otherwise.

OpenTelemetry is used only where it is imported already: an app that has a provider has done that.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import typing as t
from collections.abc import Callable, Iterator

#: The span of the render that runs in this context.
_rendering: contextvars.ContextVar[t.Any] = contextvars.ContextVar("wsgi_isr_span", default=None)

#: Takes what came of a render: its outcome, the status, and the error.
Note: t.TypeAlias = "Callable[[str, int | None, Exception | None], None]"


def current() -> t.Any:
    """What names the span of the request that is served now; ``None`` without OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    return trace.get_current_span().get_span_context()


@contextlib.contextmanager
def span(cause: t.Any, url: str, reason: str) -> Iterator[Note]:
    """A render as a trace of its own, linked to the span of the request that caused it.

    It is no child of that span: nothing that a visitor sends gets into a page, their trace neither.

    :param cause: what `current` gave in that request.
    """
    if cause is None:
        yield lambda outcome, status, error: None
        return
    from opentelemetry import context, trace

    links = [trace.Link(cause)] if cause.is_valid else []
    attributes = {"url.full": url, "isr.reason": reason}
    made = trace.get_tracer("wsgi_isr").start_span(
        "isr.render", context.Context(), attributes=attributes, links=links
    )

    def note(outcome: str, status: int | None, error: Exception | None) -> None:
        made.set_attribute("isr.outcome", outcome)
        if status is not None:
            made.set_attribute("http.response.status_code", status)
        if error is not None:
            made.record_exception(error)
            made.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))

    with trace.use_span(made, end_on_exit=True):
        token = _rendering.set(made)
        try:
            yield note
        finally:
            _rendering.reset(token)


def hand_over(there: contextvars.Context) -> None:
    """Make the span of a render the current one of the empty context that its app runs in."""
    made = _rendering.get()
    if made is not None:
        from opentelemetry import context, trace

        there.run(context.attach, trace.set_span_in_context(made, context.Context()))
