"""OpenTelemetry: a span for each render, linked to the request that caused it."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Site
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wsgi_isr import RevalidationError, Rule

Browse = Callable[..., Browser]

HOME = "http://localhost/"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[t.Any]]:
    """Gives the spans of all renders that have ended."""
    # A provider that is set for the process could not be taken away.
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return lambda: [span for span in exporter.get_finished_spans() if span.name == "isr.render"]


@pytest.fixture
def browser(site: Site, browse: Browse) -> Browser:
    return browse(rules={"/**": Rule()})


def test_a_render_has_its_url_reason_and_outcome(
    site: Site, browser: Browser, spans: Callable[[], list[t.Any]]
) -> None:
    site.page("/")
    browser.get("/")
    browser.get("/")
    browser.isr.revalidate(HOME)
    first, second = spans()
    assert dict(first.attributes) == {
        "url.full": HOME,
        "isr.reason": "miss",
        "isr.outcome": "stored",
        "http.response.status_code": 200,
    }
    assert second.attributes["isr.reason"] == "revalidate"
    assert first.parent is None and not first.links


def test_it_is_linked_to_the_request_that_caused_it(
    site: Site, browser: Browser, spans: Callable[[], list[t.Any]], clock: Clock
) -> None:
    seen = []

    def body(environ: t.Any) -> str:
        with trace.get_tracer("app").start_as_current_span("query") as span:
            seen.append(span.parent.span_id)
        return "body"

    site.page("/", body)
    tracer = trace.get_tracer("server")
    with tracer.start_as_current_span("cold") as cold:
        browser.get("/")
    clock.advance(60)
    with tracer.start_as_current_span("stale") as stale:
        browser.get("/")
    browser.isr.close()
    assert [span.attributes["isr.reason"] for span in spans()] == ["miss", "stale"]
    for request, span in zip((cold, stale), spans(), strict=True):
        (link,) = span.links
        assert link.context == request.get_span_context()
        # Nothing of a visitor gets into a render, their trace neither.
        assert span.context.trace_id != request.get_span_context().trace_id
    # What the app traces while it renders belongs to the render.
    assert seen == [span.context.span_id for span in spans()]


def test_a_failure_has_its_error(
    site: Site, browser: Browser, spans: Callable[[], list[t.Any]]
) -> None:
    site.fail("/")
    with pytest.raises(RevalidationError):
        browser.isr.revalidate(HOME)
    (span,) = spans()
    assert span.attributes["isr.outcome"] == "failed"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.events[0].attributes["exception.type"] == "ZeroDivisionError"


@pytest.mark.processes
def test_an_app_that_does_not_trace_never_loads_it() -> None:
    program = """if True:
        import sys
        from werkzeug.test import Client
        from wsgi_isr import ISRMiddleware, page_headers

        def app(environ, start_response):
            start_response("200 OK", page_headers(60))
            return [b"a page"]

        assert Client(ISRMiddleware(app, "memory://")).get("/").text == "a page"
        assert not [name for name in sys.modules if name.startswith(("opentelemetry", "prom"))]
    """
    subprocess.run([sys.executable, "-c", program], check=True)
