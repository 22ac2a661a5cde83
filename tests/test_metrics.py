"""Metrics for Prometheus: what they say, and who gets them."""

from __future__ import annotations

import json
import re
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import pytest
from conftest import Browser, Site
from flasks import flask_app, flask_browser
from prometheus_client.parser import text_string_to_metric_families

from wsgi_isr.metrics import Collector, exposition

Browse = Callable[..., Browser]

SECRET = "correct horse battery staple"
DASHBOARD = Path(__file__).parents[1] / "examples" / "grafana" / "dashboard.json"


class TestPrometheus:
    @pytest.fixture
    def browser(self, site: Site, browse: Browse, files: str) -> Browser:
        site.page("/")
        browser = browse(files, build_id='"b\\1"\n')
        for _ in range(3):
            browser.get("/")
        return browser

    def test_gets_totals_gauges_and_a_histogram(self, browser: Browser) -> None:
        found = {
            (sample.name, sample.labels.get("le", sample.labels.get("build"))): sample.value
            for family in text_string_to_metric_families(exposition(browser.isr).decode())
            for sample in family.samples
        }
        assert found["wsgi_isr_hits_total", None] == 2
        assert found["wsgi_isr_misses_total", None] == 1
        assert found["wsgi_isr_pages", None] == found["wsgi_isr_processes", None] == 1
        assert found["wsgi_isr_render_seconds_count", None] == 1
        assert found["wsgi_isr_render_seconds_bucket", "+Inf"] == 1
        assert found["wsgi_isr_build_processes", '"b\\1"\n'] == 1
        assert found["wsgi_isr_store_up", None] == 1
        assert found["wsgi_isr_max_pages", None] == 100_000
        assert {f"wsgi_isr_{name}_total" for name in ("renders", "evictions", "passed")} <= {
            name for name, _ in found
        }

    def test_registry_has_the_same(self, browser: Browser) -> None:
        registry = prometheus_client.CollectorRegistry()
        registry.register(Collector(browser.isr))
        text = prometheus_client.generate_latest(registry).decode()

        def families(text: str) -> list[t.Any]:
            return list(text_string_to_metric_families(text))

        assert families(text) == families(exposition(browser.isr).decode())

    def test_gets_no_totals_that_go_down(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> t.NoReturn:
            raise OSError("no disk")

        monkeypatch.setattr(browser.isr.store, "totals", fail)
        text = exposition(browser.isr).decode()
        assert "_total" not in text and "_bucket" not in text and "wsgi_isr_pages 1" in text

    def test_client_that_is_missing_is_named(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(ImportError, match=r"pip install 'wsgi-isr\[prometheus\]'"):
            Collector(browser.isr)

    def test_route_is_for_those_who_have_the_secret(self, tmp_path: Path) -> None:
        browser = flask_browser(flask_app(tmp_path), secret=SECRET)

        def get(token: str | None) -> t.Any:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return browser.get("/_isr/metrics", headers=headers)

        answer = get(SECRET)
        assert (answer.status_code, answer.mimetype) == (200, "text/plain")
        assert "wsgi_isr_hits_total 0\n" in answer.text
        assert answer.headers["Cache-Control"] == "private, no-store"
        for token in (None, "", "wrong", SECRET[:-1], f"{SECRET}\xe4"):
            assert (get(token).status_code, "wsgi_isr" in get(token).text) == (401, False)
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert browser.put("/_isr/metrics", headers=headers).status_code == 405
        without = flask_browser(flask_app(tmp_path, "other"))
        assert without.get("/_isr/metrics").status_code == 404

    def test_dashboard_shows_metrics_that_there_are(self, browser: Browser) -> None:
        known = {
            sample.name
            for family in text_string_to_metric_families(exposition(browser.isr).decode())
            for sample in family.samples
        }
        dashboard = json.loads(DASHBOARD.read_text("utf-8"))
        asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        names = set(re.findall(r"wsgi_isr_\w+", " ".join(asked)))
        assert len(names) > 15 and names <= known
