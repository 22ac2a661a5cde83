"""Content codings: made behind where they take long, each with its size and its own validator."""

from __future__ import annotations

import gzip
import random
import sys
import threading
import typing as t

import pytest
from answers import BOTH, page
from conftest import status_of
from steps import HOLD, PATIENCE, result, start

from wsgi_isr import Rule, renders
from wsgi_isr.answer import encoders

brotli = pytest.importorskip("brotli")
zstandard = pytest.importorskip("zstandard")

LONG = "a long page, " * 100
#: Compressed only when its first visitor has gone.
LARGE = LONG * 1000
CODINGS = ["gzip", "br", "zstd"]
GZIP = {"Accept-Encoding": "gzip"}
DECODE: dict[str | None, t.Any] = {
    None: bytes,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": zstandard.ZstdDecompressor().decompress,
}


def decoded(response: t.Any) -> str:
    return t.cast(str, DECODE[response.headers.get("Content-Encoding")](response.data).decode())


@pytest.fixture
def client(site: t.Any, browse: t.Any) -> t.Any:
    site.page("/x", LONG)
    client = browse()
    client.get("/x")
    return client


def test_the_same_body_has_the_same_bytes_whenever_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In each process: they have the same strong validator."""
    now = {name: encode(LONG.encode()) for name, encode in encoders().items()}
    monkeypatch.setattr("time.time", lambda: 5.0)
    assert {name: encode(LONG.encode()) for name, encode in encoders().items()} == now


class TestChoice:
    @pytest.mark.parametrize(
        ("accepted", "coding"),
        [
            ("gzip", "gzip"),
            ("GZIP", "gzip"),
            ("br", "br"),
            # At equal quality the smallest or the fastest to read, as browsers send it.
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, br", "br"),
            ("gzip;q=1.0, br;q=0.9", "gzip"),
            ("gzip;q=0.2, br;q=0.5, zstd;q=0.1", "br"),
            ("br;q=0, gzip;q=0.1", "gzip"),
            ("gzip;q=0.5,br", "br"),
            ("*", "zstd"),
            ("*;q=0.5, zstd;q=0", "br"),
            ("gzip, *;q=0", "gzip"),
            ("compress, gzip;q=0.8, *;q=0.1", "gzip"),
            ("br;q=0.001", "br"),
            ("identity;q=0, br", "br"),
            ("identity;q=0.5, br;q=0.4", None),
            ("identity, *;q=0.5", None),
            ("identity;q=0", None),
            ("gzip;q=0, br;q=0, zstd;q=0, *", None),
            ("*;q=0", None),
            ("deflate", None),
            ("", None),
            ("br;q=2", None),
            ("br;q=x", None),
            ("nonsense;;;=", None),
        ],
    )
    def test_follows_the_qualities(self, client: t.Any, accepted: str, coding: str | None) -> None:
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": accepted})
            assert response.status_code == 200
            assert response.headers.get("Content-Encoding") == coding
            assert decoded(response) == LONG
            assert response.headers["Vary"] == "Accept-Encoding"
            assert response.headers["Content-Length"] == str(len(response.data))

    def test_never_reaches_the_app(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG)
        response = browse(rules={"/x": Rule()}).get("/x", headers=GZIP)
        assert response.headers["Content-Encoding"] == "gzip"
        assert "HTTP_ACCEPT_ENCODING" not in site.environs[0]

    def test_stands_in_vary_beside_declared_headers(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG, headers=[("Vary", "Accept-Encoding, Accept-Language, Cookie")])
        client = browse(rules={"/x": Rule(vary={"Accept-Language": ["en"]})})
        for _ in range(2):
            (value,) = client.get("/x").headers.getlist("Vary")
            assert sorted(value.lower().split(", ")) == ["accept-encoding", "accept-language"]


class TestTypes:
    @pytest.mark.parametrize(
        "kind",
        ["text/html; charset=utf-8", "TEXT/PLAIN", "application/json", "image/svg+xml"],
    )
    def test_that_are_compressible_always_have_gzip(
        self, site: t.Any, browse: t.Any, kind: str
    ) -> None:
        site.answers["/x"] = page(("Content-Type", kind), body=LONG.encode())
        client = browse()
        client.get("/x")
        assert "gzip" in next(client.isr.pages()).codings

    @pytest.mark.parametrize(
        ("kind", "control"),
        [("image/png", "public"), ("application/zip", "public"), ("text/html", "No-Transform")],
    )
    def test_others_have_one_body_and_do_not_vary(
        self, site: t.Any, browse: t.Any, kind: str, control: str
    ) -> None:
        headers = [("Content-Type", kind), ("Cache-Control", control)]
        site.answers["/x"] = page(*headers, body=LONG.encode())
        client = browse()
        for _ in range(2):
            headers = client.get("/x", headers=GZIP).headers
            assert not {"Content-Encoding", "Vary"} & set(headers.keys())
        assert next(client.isr.pages()).codings == ()

    def test_of_a_body_that_the_app_has_encoded_do_not_matter(
        self, site: t.Any, browse: t.Any
    ) -> None:
        # Not compressed at all, so that a second coding would be worth it.
        packed = gzip.compress(LONG.encode(), 0)
        site.answers["/x"] = page(("Content-Encoding", "gzip"), body=packed)
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers=GZIP)
            assert response.headers.getlist("Content-Encoding") == ["gzip"]
            assert response.data == packed


class TestSizes:
    def test_of_all_that_is_stored_are_listed(self, client: t.Any) -> None:
        (page,) = client.isr.pages()
        assert page.sizes.keys() == {"identity", *CODINGS}
        for coding, size in page.sizes.items():
            response = client.get("/x", headers={"Accept-Encoding": coding})
            assert len(response.data) == size
        assert page.size == sum(page.sizes.values())
        assert set(page.codings) == set(CODINGS)

    @pytest.mark.parametrize("body", [b"x" * 499, random.Random(1).randbytes(2000)])
    def test_leave_out_what_saves_nothing(self, site: t.Any, browse: t.Any, body: bytes) -> None:
        site.answers["/x"] = page(body=body)
        client = browse()
        for _ in range(2):
            assert client.get("/x", headers={"Accept-Encoding": "gzip, br, zstd"}).data == body
        (listed,) = client.isr.pages()
        assert listed.sizes == {"identity": len(body)}


@pytest.mark.parametrize(("missing", "coding"), [("brotli", "br"), ("zstandard", "zstd")])
def test_without_an_extra_there_are_the_other_codings(
    site: t.Any, browse: t.Any, missing: str, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    encoders.cache_clear()
    try:
        site.page("/x", LONG)
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": f"{coding}, gzip;q=0.1"})
            assert response.headers["Content-Encoding"] == "gzip"
        (page,) = client.isr.pages()
        assert set(page.codings) == {*CODINGS} - {coding}
    finally:
        encoders.cache_clear()


class Slow:
    """An encoder that takes as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        compress = renders.compress

        def slow(page: t.Any) -> t.Any:
            self.begun.set()
            assert self.released.wait(HOLD)
            return compress(page)

        monkeypatch.setattr(renders, "compress", slow)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Slow]:
    slow = Slow(monkeypatch)
    yield slow
    slow.released.set()


class TestBehind:
    """A large body takes long to compress; nobody waits for it."""

    @BOTH
    def test_a_cold_page_goes_out_as_it_is(
        self, site: t.Any, browse: t.Any, slow: Slow, rules: t.Any
    ) -> None:
        site.page("/x", LARGE)
        client = browse(rules=rules)
        first = result(start(client.get, "/x", headers=GZIP))
        assert slow.begun.wait(PATIENCE)
        meanwhile = result(start(client.get, "/x", headers=GZIP))
        for response in (first, meanwhile):
            assert "Content-Encoding" not in response.headers
            assert response.text == LARGE
            assert response.headers["Vary"] == "Accept-Encoding"
        assert status_of(meanwhile) == "isr; hit; ttl=60"
        slow.released.set()
        client.isr.close()
        after = client.get("/x", headers=GZIP)
        assert after.headers["Content-Encoding"] == "gzip"
        assert decoded(after) == LARGE

    @pytest.fixture
    def busy(self, site: t.Any, browse: t.Any, listable: str, slow: Slow) -> t.Any:
        """A client of a page that is being compressed."""
        site.page("/x", LARGE)
        client = browse(listable, base_url="http://localhost")
        client.get("/x")
        assert slow.begun.wait(PATIENCE)
        return client

    def test_a_page_that_was_withdrawn_meanwhile_does_not_return(
        self, site: t.Any, busy: t.Any, slow: Slow
    ) -> None:
        site.page("/x", "private", headers=[("Cache-Control", "private")])
        assert [found.outcome for found in busy.isr.revalidate("/x")] == ["withdrawn"]
        slow.released.set()
        busy.isr.close()
        assert list(busy.isr.pages()) == []
        assert busy.get("/x").text == "private"

    def test_a_newer_page_stays(self, site: t.Any, busy: t.Any, slow: Slow) -> None:
        site.page("/x", "new")
        newer = start(busy.isr.revalidate, "/x")
        slow.released.set()
        result(newer)
        busy.isr.close()
        assert busy.get("/x").text == "new"

    def test_an_invalidation_meanwhile_holds(self, busy: t.Any, slow: Slow) -> None:
        busy.isr.invalidate("/x")
        slow.released.set()
        busy.isr.close()
        (page,) = busy.isr.pages()
        assert (page.state, bool(page.codings)) == ("stale", True)
