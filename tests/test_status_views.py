"""The status page: what it says of the site, of its pages, and of one page."""

from __future__ import annotations

import re
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest
from conftest import Clock, Site, client_of
from operators import Operator, plain
from operators import operator as operator
from operators import outsider as outsider

from wsgi_isr.ondemand import called_by
from wsgi_isr.status import views

# Relative ones are fine since RFC 7231, and right behind any proxy.
pytestmark = pytest.mark.filterwarnings("ignore:Absolute URLs required for location header")


class TestTheOverview:
    def test_counts_what_all_processes_do(self, operator: Operator, site: Site) -> None:
        visitor = client_of(operator.isr)
        for _ in range(3):
            visitor.get("/a")
        text = plain(operator.get("/").text)
        assert "Hit ratio today 75.0%" in text
        assert "Renders 1" in text
        assert "Pages stored 1" in text
        assert "The store (sqlite) answers" in text
        assert re.search(r"Workers .* \d+ .* ok", text)

    def test_shows_the_last_hour(self, operator: Operator) -> None:
        last = int(time.time() // 60)
        minutes = {
            last - 70: {"hits": 1.0},
            last - 10: {"hits": 10.0, "misses": 1.0},
            last - 9: {"hits": 25.0, "misses": 1.0},
            last - 2: {"hits": 30.0, "misses": 2.0},
        }
        found = views.by_minute(minutes, {"hits": 37, "misses": 2}, 0.0)
        assert len(found) == 60
        hits = {59 - index: minute["hits"] for index, minute in enumerate(found) if minute}
        assert hits == {10: 15.0, 9: 5.0, 2: 7.0}
        # A minute's totals lack what was counted for the first time after it began.
        begun = views.by_minute({last: {"hits": 8.0}}, {"hits": 9, "misses": 1}, last * 60 + 7.5)
        assert (begun[-1]["hits"], begun[-1]["misses"]) == (9, 1)
        (later,) = filter(None, views.by_minute({last: {"hits": 8.0}}, {"hits": 9, "misses": 1}, 0))
        assert (later["hits"], later["misses"]) == (1, 1)
        chart = views.chart("Visits", found, hits="fresh", misses="waited")
        assert "most: 15" in chart and "in the last hour 27 fresh, 1 waited" in chart
        heights = [float(height) for height in re.findall(r'height="([\d.]+)"', chart)]
        assert max(heights) == 100.0


class TestTheList:
    @pytest.fixture
    def many(self, operator: Operator, site: Site) -> Callable[..., list[str]]:
        """Lists paths, as a query finds them among 120 pages."""
        for number in range(120):
            site.page(f"/p/{number:03}", "x" * number, tags=[f"t{number % 3}"])
        list(operator.isr.prerender([f"http://localhost/p/{n:03}" for n in range(120)], workers=1))

        def listed(**query: t.Any) -> list[str]:
            text = operator.get("/pages", query_string=query).text
            return re.findall(
                r'<td class="[^"]*" data-label="URL"><a [^>]*>http://localhost(.*?)</a>', text
            )

        return listed

    def test_is_searched_filtered_and_sorted(
        self, many: Callable[..., list[str]], operator: Operator
    ) -> None:
        assert many() == ["/a", *(f"/p/{n:03}" for n in range(49))]
        assert many(start=100) == [f"/p/{n:03}" for n in range(99, 120)]
        assert many(q="/P/11") == [f"/p/{n}" for n in range(110, 120)]
        assert many(q="http://localhost/p/007") == ["/p/007"]
        assert many(q="http://localhost/p/00", sort="size")[:2] == ["/p/009", "/p/008"]
        assert many(tag="t1", q="p/00") == ["/p/001", "/p/004", "/p/007"]
        assert many(sort="size")[:3] == ["/p/119", "/p/118", "/p/117"]
        assert many(q="nothing") == []
        operator.isr.invalidate("/p/00*")
        assert many(state="stale") == [f"/p/{n:03}" for n in range(10)]
        assert many(state="expired") == []

    def test_goes_through_so_many_pages_and_no_more(
        self,
        many: Callable[..., list[str]],
        operator: Operator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(views, "MAX_READ", 50)
        read, records = [0], operator.isr.store.records

        def counted(**kwargs: t.Any) -> Iterator[t.Any]:
            for record in records(**kwargs):
                read[0] += 1
                yield record

        monkeypatch.setattr(operator.isr.store, "records", counted)
        found: list[str] = []
        path: str | None = "/pages?tag=t0"
        while path is not None:
            read[0] = 0
            text = operator.get(path).text
            assert read[0] <= 50
            found += re.findall(r">http://localhost(/p/\d+)</a>", text)
            link = re.search(r'href="/_isr(/pages[^"]*)">Further pages', text)
            path = link and link[1].replace("&amp;", "&")
        assert sorted(found) == [f"/p/{n:03}" for n in range(0, 120, 3)]

    def test_has_those_that_never_rendered_well(self, operator: Operator, site: Site) -> None:
        def fail(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ZeroDivisionError("no database")

        site.answers["/broken"] = fail
        list(operator.isr.prerender(["http://localhost/broken"]))
        for query in ({}, {"state": "failed"}, {"q": "broken"}):
            text = plain(operator.get("/pages", query_string=query).text)
            assert "http://localhost/broken" in text and "no database" in text
        assert "/broken" not in plain(operator.get("/pages?state=fresh").text)


class TestAPage:
    URL = "http://localhost/a"

    def test_is_new(self, operator: Operator) -> None:
        text = operator.explained(self.URL)
        assert "This page is new. It was rendered 0 s ago, for its first visitor" in text
        assert "It stays fresh for another 60 s" in text
        assert re.search(r"Half of them took \d+ ms at most, 95% \d+ ms. When Why Took", text)

    def test_is_old_by_an_invalidation_or_by_its_age(
        self, operator: Operator, clock: Clock
    ) -> None:
        with called_by("the CMS"):
            operator.isr.revalidate_tag("post:a")
        text = operator.explained(self.URL)
        assert "This page is old: it was invalidated (tag:post:a)." in text
        assert "by the CMS" in text and "The next visitor gets it once more" in text
        operator.press("/regenerate", self.URL)
        clock.advance(61)
        assert "This page is old: its time is over." in operator.explained(self.URL)

    def test_may_fail_or_be_refused_or_not_be_there(self, operator: Operator, site: Site) -> None:
        def fail(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ZeroDivisionError("no database")

        site.answers["/a"] = site.answers["/cold"] = fail
        operator.press("/regenerate", self.URL)
        list(operator.isr.prerender(["http://localhost/cold"]))
        assert "The last 1 render failed: no database" in operator.explained(self.URL)
        assert "never rendered well" in operator.explained("http://localhost/cold")
        site.page("/b", headers=[("Set-Cookie", "a=b")])
        client_of(operator.isr).get("/b")
        refused = operator.explained("http://localhost/b")
        assert "refused (set-cookie" in refused and "do not set cookies" in refused
        assert "Nothing is stored for this URL." in operator.explained("http://localhost/c")

    def test_is_in_every_worker_or_not(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator.get("/")
        assert "It is the same in all workers (1)." in operator.explained(self.URL)
        (mine,) = operator.isr.store.processes()
        others = [
            {**mine, "pid": 1, "build": "old"},
            {**mine, "pid": 2, "store": "away"},
            {**mine, "pid": 3, "followed": mine["followed"] - 1},
        ]
        monkeypatch.setattr(operator.isr.store, "processes", lambda: [mine, *others])
        text = operator.explained(self.URL)
        assert "the same in all workers" not in text
        assert "Worker 1: of build old" in text and "Worker 2: without the store" in text
        assert "Worker 3" not in text
        kind = operator.isr.store.kind._replace(shared="network")
        monkeypatch.setattr(operator.isr.store, "kind", kind)
        assert "Worker 3: about to follow" in operator.explained(self.URL)
        assert "It does not answer all workers: 2 (away)." in plain(operator.get("/").text)

    def test_says_who_invalidated_what(self, operator: Operator) -> None:
        operator.press("/expire", self.URL)
        operator.press("/regenerate", self.URL)
        text = plain(operator.get("/invalidations").text)
        assert re.search(r"revalidate /a 1 page rendered status page, no address .*expired", text)
