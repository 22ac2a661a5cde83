"""The bytes of a page: what was stored comes back as it was, and nothing else comes back at all."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from cachelib import SimpleCache
from conftest import Make, Site, status_of
from entries import KEY, Bomb, forge, make_page
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steps import visit

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.key import PageKey
from wsgi_isr.metadata import MAX_INTERNED, Metadata, header, intern
from wsgi_isr.page import MAX_CACHED_HEAD, Codec, Head, Page
from wsgi_isr.store.protocol import Record

SECRET = b"a key of 32 bytes that is secret"
CODECS = {"checksum": Codec(), "signed": Codec(SECRET)}
PAGES = {
    "small": make_page(),
    "empty": make_page(body=b""),
    "for ever": make_page(revalidate=None),
    "with codings": make_page(bodies={"identity": b"a" * 99, "gzip": b"\x1f\x8b", "br": b""}),
    "gone": make_page(status="410 Gone", headers=()),
    "with tags": make_page(expire=90, tags=("post:1", "gr\xfc\xdfe", "\u20ac")),
    "with variants": make_page(
        key=KEY._replace(vary=(("hx-request", None),)), vary=("Hx-Request",)
    ),
    "with a long head": make_page(tags=tuple(f"{n:>0200}" for n in range(MAX_CACHED_HEAD // 200))),
    "of bytes that are no text": make_page(body=bytes(range(256)) * 3),
    "of a path that is not ASCII": make_page("/gr\xc3\xbc\xc3\x9fe"),
}

#: Of a head.
FIELDS = ["key", "status", "headers", "metadata", "generated_at", "sequence", "lineage", "vary"]
FIELDS += ["digest", "bodies", "reason", "seconds", "history", "check"]


def stored(isr: ISRMiddleware, path: str = "/") -> Record:
    """What the store has of a page."""
    key = PageKey("http", "localhost", "", path, build=isr.build_id)
    found = isr.store.get(key.name)
    assert found is not None
    return found.record


codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def read(codec: Codec, entry: tuple[t.Any, bytes]) -> Page | None:
    head = codec.decode_head(entry[0])
    return head and codec.decode(head, entry[1])


@codecs
class TestEntries:
    @pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
    def test_come_back_as_they_were(self, codec: Codec, page: Page) -> None:
        found = read(codec, codec.encode(page))
        assert found == page
        assert (found.name, found.labels, found.digest) == (page.name, page.labels, page.digest)
        assert t.cast(Head, codec.decode_head(codec.encode(page)[0])).labels == page.labels

    def test_that_are_cut_off_or_longer_are_misses(self, codec: Codec) -> None:
        head, body = codec.encode(make_page())
        for part in (head, body):
            for wrong in (*(part[:length] for length in range(len(part))), part + b"\0"):
                entry = (wrong, body) if part is head else (head, wrong)
                assert read(codec, entry) is None

    def test_of_which_one_byte_was_changed_are_misses(self, codec: Codec) -> None:
        entry = codec.encode(make_page())
        for which in (0, 1):
            for place in range(len(entry[which])):
                for change in (0x01, 0x80):
                    parts = [bytearray(part) for part in entry]
                    parts[which][place] ^= change
                    assert read(codec, (bytes(parts[0]), bytes(parts[1]))) is None

    @pytest.mark.parametrize("other", [b"", None, 5, "ISR\x02", bytearray(b"ISR\x02")], ids=repr)
    def test_that_are_none_are_misses(self, codec: Codec, other: object) -> None:
        head, body = codec.encode(make_page())
        assert read(codec, (other, body)) is None
        assert read(codec, (head.replace(b"ISR\x02", b"ISR\x01", 1), body)) is None

    def test_never_execute_anything(self, codec: Codec, tmp_path: Path) -> None:
        bomb = Bomb(tmp_path / "went off")
        for data in (bomb.planted(), codec.seal(bomb.planted())):
            assert codec.decode_head(data) is None
        assert not bomb.went_off


class TestSigned:
    def test_entries_of_another_key_or_of_none_are_misses(self) -> None:
        page = make_page()
        for one, other in (
            (Codec(b"another key, as long as ours is."), Codec(SECRET)),
            (Codec(), Codec(SECRET)),
            (Codec(SECRET), Codec()),
        ):
            assert read(other, one.encode(page)) is None

    def test_entries_that_say_they_have_only_a_checksum_are_misses(self) -> None:
        head, body = Codec(SECRET).encode(make_page())
        assert read(Codec(SECRET), (head.replace(b"ISR\x02h", b"ISR\x02c", 1), body)) is None

    def test_bodies_of_another_page_are_misses(self) -> None:
        # As long, and with the same CRC: what only a digest tells apart.
        codec = Codec(SECRET)
        head, _ = codec.encode(make_page(body=b"plumless"))
        assert read(codec, (head, b"buckeroo")) is None

    @pytest.fixture
    def isr(self, site: Site, make: Make, files: str) -> ISRMiddleware:
        site.page("/", "the page", revalidate=False, tags=["t"])
        isr = make(files, signing_key=SECRET, rules={"/": Rule()}, memory_size=0)
        visit(isr)
        return isr

    def test_nobody_who_can_write_to_the_store_forges_a_page(self, isr: ISRMiddleware) -> None:
        real = stored(isr)
        key = PageKey("http", "localhost", "", "/", build=isr.build_id)
        sequence, lineage = real.number.sequence, real.number.lineage
        page = make_page(key=key, body=b"forged", sequence=sequence, lineage=lineage, tags=("t",))
        head, body = forge(page)
        isr.store.put(real._replace(head=head, body=body))
        assert visit(isr).text == "the page"

    def test_nobody_who_puts_an_old_page_back_undoes_an_invalidation(
        self, site: Site, isr: ISRMiddleware
    ) -> None:
        old = stored(isr)
        site.page("/", "new", revalidate=False, tags=["t"])
        isr.revalidate_tag("t", expire=True)
        assert visit(isr).text == "new"
        isr.store.delete(old.name)
        # Also with a number that is none of its own.
        for number in (old.number, isr.store.number()):
            isr.store.put(old._replace(number=number))
            assert visit(isr).text == "new"


#: What anybody who can write to an unsigned store may put into a head.
FORGED: dict[str, dict[str, t.Any]] = {
    "a header with CR and LF": {"headers": [["X", "a\r\nSet-Cookie: id=1"]]},
    "a header with NUL": {"headers": [["X", "a\0b"]]},
    "a header beyond latin-1": {"headers": [["X", "\u20ac"]]},
    "a name with CR and LF": {"headers": [["X\r\nSet-Cookie", "a"]]},
    "a name with a space": {"headers": [["X ", "a"]]},
    "headers that are no pairs": {"headers": [["X"]]},
    "headers that are text": {"headers": ["XY"]},
    "a status with CR and LF": {"status": "200 OK\r\nSet-Cookie: id=1"},
    "a status that is never stored": {"status": "500 Internal Server Error"},
    "no status": {"status": "OK"},
    "a status that is a number": {"status": 200},
    "an ETag with CR and LF": {"digest": "a\r\nSet-Cookie: id=1"},
    "no ETag": {"digest": ""},
    "a Vary with CR and LF": {"vary": ["X\r\nSet-Cookie: id=1"]},
    "a Vary that is text": {"vary": "Cookie"},
    "a tag with a line end": {"metadata": [60, None, ["a\nb"]]},
    "more tags than there may be": {"metadata": [60, None, [str(n) for n in range(129)]]},
    "no window": {"metadata": [0, None, []]},
    "an endless window": {"metadata": [float("inf"), None, []]},
    "a window beyond all numbers": {"metadata": [10**400, None, []]},
    "an expiry before the window": {"metadata": [60, 30, []]},
    "no time": {"generated_at": float("nan")},
    "an endless time": {"seconds": float("-inf")},
    "an endless number": {"sequence": float("inf")},
    "a number that is none": {"sequence": "5"},
    "a lineage that is none": {"lineage": 5},
    "a reason that is none": {"reason": ["x"]},
    "a body of negative length": {"bodies": [["gzip", -1, 0], ["identity", 10, 0]]},
    "a body of endless length": {"bodies": [["identity", float("inf"), 0]]},
    "a body longer than the entry": {"bodies": [["identity", 10**18, 0]]},
    "no body": {"bodies": []},
    "no plain body": {"bodies": [["gzip", 9, 0]]},
    "no key": {"key": None},
    "a key with a part too few": {"key": list(KEY)[:-1]},
    "a host that is a list": {"key": ["https", ["a"], "", "/", [], [], ""]},
    "a path beyond latin-1": {"key": ["https", "a", "", "/\u20ac", [], [], ""]},
    "a query beyond latin-1": {"key": ["https", "a", "", "/", [["\u20ac", ""]], [], ""]},
    "half a character": {"key": ["https", "\ud800", "", "/", [], [], ""]},
}


class TestForgedEntries:
    @pytest.mark.parametrize("fields", FORGED.values(), ids=FORGED)
    def test_with_what_no_render_makes_are_misses(self, fields: dict[str, t.Any]) -> None:
        page = make_page()
        assert read(Codec(), forge(page)) == page
        assert read(Codec(), forge(page, **fields)) is None

    @pytest.mark.parametrize("field", FIELDS)
    def test_without_a_field_are_misses(self, field: str) -> None:
        codec = Codec()
        head, body = codec.encode(make_page())
        fields = json.loads(codec.unseal(head) or b"")
        del fields[field]
        assert read(codec, (codec.seal(json.dumps(fields).encode()), body)) is None

    @pytest.mark.parametrize(
        "payload", [b"[" * 200_000, b"{}", b"null", b"5", b"\xff\xfe", b"9" * 5000, b""]
    )
    def test_whose_head_is_none_are_misses(self, payload: bytes) -> None:
        assert Codec().decode_head(Codec().seal(payload)) is None

    @pytest.mark.parametrize("signing_key", [None, SECRET], ids=CODECS)
    def test_under_each_others_names_are_misses(
        self, site: Site, make: Make, files: str, signing_key: bytes | None
    ) -> None:
        for path in ("/a", "/b"):
            site.page(path, f"this is {path}")
        isr = make(files, rules={"/*": Rule()}, memory_size=0, signing_key=signing_key)
        found = []
        for path in ("/a", "/b"):
            visit(isr, path)
            found.append(stored(isr, path))
        a, b = found
        isr.store.put(b._replace(head=a.head, body=a.body))
        isr.store.delete(a.name)
        isr.store.put(a._replace(head=b.head, body=b.body, number=isr.store.number()))
        assert list(isr.pages()) == []
        assert visit(isr, "/a").text == "this is /a"
        assert visit(isr, "/b").text == "this is /b"

    @pytest.mark.parametrize("signing_key", [None, SECRET], ids=CODECS)
    def test_copied_under_another_name_are_misses(
        self, site: Site, make: Make, signing_key: bytes | None
    ) -> None:
        cache = SimpleCache()
        isr = make(cache, rules={"/*": Rule()}, memory_size=0, signing_key=signing_key)
        for path in ("/a", "/b"):
            site.page(path, f"this is {path}")
            visit(isr, path)
        a, b = cache._cache
        cache._cache[a] = cache._cache[b]
        assert visit(isr, "/a").text == "this is /a"


def test_a_damaged_page_is_rendered_anew(
    site: Site, make: Make, files: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.page("/", lambda environ: f"render {site.renders('/')}")
    isr = make(files, rules={"/": Rule()}, memory_size=0)
    visit(isr)
    isr.store.put(stored(isr)._replace(body=b"x" * len(stored(isr).body)))
    answer = visit(isr)
    assert (answer.text, status_of(answer)) == ("render 2", "isr; fwd=uri-miss; stored")
    assert "damaged" in caplog.text
    assert status_of(visit(isr)) == "isr; hit; ttl=60"


FIELD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS), FIELD, min_size=1, max_size=2), st.binary())
@settings(max_examples=200, deadline=None)
@example({"seconds": 0.53125}, b"")
def test_whatever_a_head_says_it_is_a_miss_or_a_page_that_can_be_stored(
    fields: dict[str, t.Any], data: bytes
) -> None:
    found = read(Codec(), forge(make_page(), **fields))
    if found is not None:
        assert read(Codec(), Codec().encode(found)) == found
    for codec in CODECS.values():
        assert codec.decode_head(data) is None
        assert read(codec, (codec.seal(data), data)) is None


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_bytes_exchanged_in_a_head_make_a_miss_or_a_page_that_can_be_stored(
    data: st.DataObject,
) -> None:
    codec = Codec()
    head, body = codec.encode(make_page())
    payload = bytearray(codec.unseal(head) or b"")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    found = read(codec, (codec.seal(bytes(payload)), body))
    if found is not None:
        assert read(codec, codec.encode(found)) == found


class TestInterned:
    """Values that many pages have are one object, without being mixed up."""

    def test_equal_values_of_one_type_are_one_object(self) -> None:
        # Made while the test runs, so that they are not one object before.
        assert intern("".join(["a ", "host"])) is intern("".join(["a", " host"]))
        plain: tuple[t.Any, ...] = (77, None, ())
        assert type(intern(plain)) is tuple
        assert type(intern(Metadata(77))) is Metadata

    @pytest.mark.parametrize(("length", "one"), [(MAX_INTERNED, True), (MAX_INTERNED + 1, False)])
    def test_only_short_headers_are_kept(self, length: int, one: bool) -> None:
        first, other = (header("".join(["X-", "Long"]), "x" * length) for _ in range(2))
        assert first == other and (first is other) is one
