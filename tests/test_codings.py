"""Content codings: made behind where they take long, each with its size and its own validator."""

from __future__ import annotations

import gzip
import threading
import typing as t

import pytest
from conftest import status_of
from steps import HOLD
from steps import PATIENCE
from steps import result
from steps import start

from wsgi_isr import codings
from wsgi_isr import Rule
from wsgi_isr.key import PageKey
from wsgi_isr.metadata import Metadata
from wsgi_isr.page import Page

brotli = pytest.importorskip("brotli")
zstandard = pytest.importorskip("zstandard")

LONG = "a long page, " * 100
#: Compressed only when its first visitor has gone.
LARGE = LONG * 1000
CODINGS = ["gzip", "br", "zstd"]


def decoded(response: t.Any) -> str:
    coding = response.headers.get("Content-Encoding")
    decode: dict[str | None, t.Any] = {
        None: bytes,
        "gzip": gzip.decompress,
        "br": brotli.decompress,
        "zstd": zstandard.ZstdDecompressor().decompress,
    }
    return t.cast(str, decode[coding](response.data).decode())


@pytest.fixture
def client(site: t.Any, browse: t.Any) -> t.Any:
    site.page("/x", LONG)
    client = browse()
    client.get("/x")
    return client


class TestChoice:
    @pytest.mark.parametrize(
        ("accepted", "coding"),
        [
            ("gzip", "gzip"),
            ("br", "br"),
            ("zstd", "zstd"),
            # At equal quality the smallest or the fastest to read, as browsers send it.
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, br", "br"),
            ("gzip;q=1.0, br;q=0.9", "gzip"),
            ("gzip;q=0.2, br;q=0.5, zstd;q=0.1", "br"),
            ("br;q=0, gzip;q=0.1", "gzip"),
            ("*", "zstd"),
            ("*;q=0.5, zstd;q=0", "br"),
            ("gzip, *;q=0", "gzip"),
            ("identity;q=0", None),
            ("identity;q=0, br", "br"),
            ("identity;q=0.5, br;q=0.4", None),
            ("identity, *;q=0.5", None),
            ("BR", "br"),
            ("br;q=2", None),
            ("br;q=x", None),
            ("br;q=0.001", "br"),
        ],
    )
    def test_follows_the_qualities(self, client: t.Any, accepted: str, coding: str | None) -> None:
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": accepted})
            assert response.headers.get("Content-Encoding") == coding
            assert decoded(response) == LONG
            assert response.headers["Vary"] == "Accept-Encoding"
            assert response.headers["Content-Length"] == str(len(response.data))

    def test_of_two_header_lines_is_made_among_both(self, client: t.Any) -> None:
        # Servers join them with a comma.
        response = client.get("/x", headers={"Accept-Encoding": "gzip;q=0.5,br"})
        assert response.headers["Content-Encoding"] == "br"


class TestValidators:
    def test_are_four(self, client: t.Any) -> None:
        tags = {
            client.get("/x", headers={"Accept-Encoding": coding}).headers["ETag"]
            for coding in ["identity", *CODINGS]
        }
        assert len(tags) == 4

    @pytest.mark.parametrize("coding", CODINGS)
    def test_of_one_coding_spare_its_body_alone(self, client: t.Any, coding: str) -> None:
        tag = client.get("/x", headers={"Accept-Encoding": coding}).headers["ETag"]
        for other in ["identity", *CODINGS]:
            sent = {"Accept-Encoding": other, "If-None-Match": tag}
            response = client.get("/x", headers=sent)
            assert response.status_code == (304 if other == coding else 200)
            assert response.headers["Vary"] == "Accept-Encoding"

    @pytest.mark.parametrize("coding", CODINGS)
    def test_of_the_app_are_told_apart_as_well(
        self, site: t.Any, browse: t.Any, coding: str
    ) -> None:
        site.page("/x", LONG, headers=[("ETag", '"v1"')])
        client = browse()
        client.get("/x")
        tag = client.get("/x", headers={"Accept-Encoding": coding}).headers["ETag"]
        assert tag == f'"v1-{coding}"'


class TestSizes:
    def test_of_all_that_is_stored_are_listed(self, client: t.Any) -> None:
        (page,) = client.isr.pages()
        assert page.sizes.keys() == {"identity", *CODINGS}
        for coding, size in page.sizes.items():
            response = client.get("/x", headers={"Accept-Encoding": coding})
            assert len(response.data) == size
        assert page.size == sum(page.sizes.values())
        assert set(page.codings) == set(CODINGS)

    @pytest.mark.parametrize("body", ["short", "x" * 499])
    def test_of_a_short_body_are_one(self, site: t.Any, browse: t.Any, body: str) -> None:
        site.page("/x", body)
        client = browse()
        client.get("/x")
        (page,) = client.isr.pages()
        assert page.sizes == {"identity": len(body)}
        assert "Vary" not in client.get("/x").headers

    def test_leave_out_what_makes_a_body_longer(self, site: t.Any, browse: t.Any) -> None:
        import random

        noise = random.Random(1).randbytes(2000)
        site.answers["/x"] = lambda environ, start_response: (
            start_response("200 OK", [("Content-Type", "text/plain"), ("ISR-Revalidate", "60")]),
            [noise],
        )[1]
        client = browse()
        for _ in range(2):
            assert client.get("/x", headers={"Accept-Encoding": "gzip, br, zstd"}).data == noise
        (page,) = client.isr.pages()
        assert page.sizes == {"identity": 2000}

    def test_take_the_memory_of_their_bytes(self) -> None:
        import tracemalloc

        page = Page(
            PageKey("http", "localhost", "", "/x"),
            "200 OK",
            (("Content-Type", "text/plain"),),
            {"identity": "".join(map(str, range(5_000))).encode()},
            Metadata(60, None, ()),
            0.0,
        )
        codings.compress(page)
        sizes = []
        for _ in range(5):
            tracemalloc.start()
            try:
                compressed = codings.compress(page)
                sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
        # Threads of earlier tests may have taken some meanwhile.
        taken = min(sizes)
        assert set(compressed.codings) == set(CODINGS)
        assert taken < compressed.size - page.size + 3000


@pytest.mark.parametrize("missing", ["brotli", "zstandard"])
def test_without_an_extra_there_are_the_other_codings(
    client: t.Any, site: t.Any, browse: t.Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    coding = {"brotli": "br", "zstandard": "zstd"}[missing]
    monkeypatch.setitem(sys.modules, missing, None)
    codings.encoders.cache_clear()
    try:
        other = browse()
        for _ in range(2):
            response = other.get("/x", headers={"Accept-Encoding": f"{coding}, gzip;q=0.1"})
            assert response.headers["Content-Encoding"] == "gzip"
        (page,) = other.isr.pages()
        assert set(page.codings) == {*CODINGS} - {coding}
    finally:
        codings.encoders.cache_clear()


class Held:
    """An encoder that takes as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        compress = codings.compress

        def held(page: t.Any) -> t.Any:
            self.begun.set()
            assert self.released.wait(HOLD)
            return compress(page)

        monkeypatch.setattr(codings, "compress", held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.released.set()


GZIP = {"Accept-Encoding": "gzip"}


class TestBehind:
    """A large body takes long to compress; nobody waits for it."""

    @pytest.mark.parametrize("rules", [None, {"/x": Rule()}], ids=["undeclared", "declared"])
    def test_a_cold_page_goes_out_as_it_is(
        self, site: t.Any, browse: t.Any, held: Held, rules: t.Any
    ) -> None:
        site.page("/x", LARGE)
        client = browse(rules=rules)
        first = result(start(client.get, "/x", headers=GZIP))
        assert held.begun.wait(PATIENCE)
        meanwhile = result(start(client.get, "/x", headers=GZIP))
        for response in (first, meanwhile):
            assert "Content-Encoding" not in response.headers
            assert response.text == LARGE
            assert response.headers["Vary"] == "Accept-Encoding"
        assert status_of(meanwhile) == "isr; hit; ttl=60"
        held.released.set()
        client.isr.close()
        after = client.get("/x", headers=GZIP)
        assert after.headers["Content-Encoding"] == "gzip"
        assert decoded(after) == LARGE

    def test_so_does_one_that_had_expired(
        self, site: t.Any, browse: t.Any, clock: t.Any, held: Held
    ) -> None:
        site.page("/x", LARGE, revalidate=60, expire=60)
        client = browse()
        held.released.set()
        client.get("/x")
        client.isr.close()
        held.released.clear()
        held.begun.clear()
        clock.advance(60)
        response = result(start(client.get, "/x", headers=GZIP))
        assert "Content-Encoding" not in response.headers
        assert status_of(response) == "isr; fwd=stale; stored"
        assert held.begun.wait(PATIENCE)

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_page_that_was_dropped_meanwhile_does_not_return(
        self, site: t.Any, make: t.Any, browse: t.Any, listable: str, held: Held, elsewhere: bool
    ) -> None:
        site.page("/x", LARGE)
        client = browse(listable)
        client.get("/x")
        assert held.begun.wait(PATIENCE)
        # Another process would do the same, on a store that is shared.
        other = browse(listable).isr if elsewhere and listable != "memory://" else client.isr
        assert other._here().store.clear() <= 1
        held.released.set()
        client.isr.close()
        assert list(other.pages()) == []
        assert not any(page.state == "fresh" for page in client.isr.pages())
        site.page("/x", "new")
        assert client.get("/x").text == "new"

    def test_a_page_that_is_none_any_more_does_not_return(
        self, site: t.Any, browse: t.Any, listable: str, held: Held
    ) -> None:
        site.page("/x", LARGE)
        client = browse(listable)
        client.get("/x")
        assert held.begun.wait(PATIENCE)
        (entry,) = client.isr._here().store.memory
        client.isr._here().store.drop(entry.page.key)
        held.released.set()
        client.isr.close()
        assert list(client.isr.pages()) == []

    def test_a_newer_page_stays(self, site: t.Any, browse: t.Any, cache: str, held: Held) -> None:
        site.page("/x", LARGE)
        client = browse(cache, base_url="http://localhost")
        client.get("/x")
        assert held.begun.wait(PATIENCE)
        site.page("/x", "new")
        newer = start(client.isr.revalidate, "/x")
        held.released.set()
        result(newer)
        client.isr.close()
        assert client.get("/x").text == "new"

    def test_an_invalidation_meanwhile_holds(
        self, site: t.Any, browse: t.Any, listable: str, held: Held
    ) -> None:
        site.page("/x", LARGE)
        client = browse(listable)
        client.get("/x")
        assert held.begun.wait(PATIENCE)
        client.isr.invalidate("/x")
        held.released.set()
        client.isr.close()
        (page,) = client.isr.pages()
        assert (page.state, bool(page.codings)) == ("stale", True)
