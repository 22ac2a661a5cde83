"""The bytes of a page: what was stored comes back as it was, and nothing else comes back at all."""

from __future__ import annotations

import json
import struct
import tracemalloc
import typing as t
from pathlib import Path

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from entries import Bomb
from entries import forge
from entries import KEY
from entries import make_page
from entries import reseal
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from steps import visit

from wsgi_isr import Rule
from wsgi_isr.key import PageKey
from wsgi_isr.page import Codec
from wsgi_isr.page import MAX_KNOWN_HEAD
from wsgi_isr.page import Page
from wsgi_isr.page import peek

SECRET = b"a key of 32 bytes that is secret"
CODECS = {"checksum": Codec(), "signed": Codec(SECRET)}
PAGES = {
    "small": make_page(),
    "empty": make_page(body=b""),
    "for ever": make_page(revalidate=None),
    "with codings": make_page(bodies={"identity": b"a" * 99, "gzip": b"\x1f\x8b", "br": b""}),
    "gone": make_page(status="410 Gone", headers=()),
    "with tags": make_page(expire=90, tags=("post:1", "gr\xfc\xdfe", "\u20ac")),
    "with variants": make_page(vary=("Accept-Language",)),
    "with a long head": make_page(tags=tuple(f"{n:>0200}" for n in range(MAX_KNOWN_HEAD // 200))),
    "of bytes that are no text": make_page(body=bytes(range(256)) * 3),
    "of a path that is not ASCII": make_page("/gr\xc3\xbc\xc3\x9fe"),
}

#: Of a head.
FIELDS = ["key", "status", "headers", "metadata", "generated_at", "sequence", "lineage", "vary"]
FIELDS += ["digest", "bodies"]

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


class TestEntries:
    @codecs
    @pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
    def test_come_back_as_they_were(self, codec: Codec, page: Page) -> None:
        found = codec.decode(codec.encode(page), page.key)
        assert found == page
        assert (found.name, found.labels, found.digest) == (page.name, page.labels, page.digest)

    @codecs
    def test_that_are_cut_off_anywhere_are_misses(self, codec: Codec) -> None:
        data = codec.encode(make_page())
        assert all(codec.decode(data[:length]) is None for length in range(len(data)))

    @codecs
    def test_that_are_longer_than_they_were_are_misses(self, codec: Codec) -> None:
        assert codec.decode(codec.encode(make_page()) + b"\0") is None

    @codecs
    def test_of_which_one_byte_was_changed_are_misses(self, codec: Codec) -> None:
        data = codec.encode(make_page())
        for place in range(len(data)):
            for change in (0x01, 0x80, 0xFF):
                changed = bytearray(data)
                changed[place] ^= change
                assert codec.decode(bytes(changed)) is None

    @codecs
    def test_of_another_version_are_misses(self, codec: Codec) -> None:
        data = codec.encode(make_page())
        assert codec.decode(data.replace(b"ISR\x01", b"ISR\x02", 1)) is None

    @codecs
    @pytest.mark.parametrize("other", [b"", None, 5, "ISR\x01", bytearray(b"ISR\x01")], ids=repr)
    def test_that_are_none_are_misses(self, codec: Codec, other: object) -> None:
        assert codec.decode(other) is None

    @codecs
    def test_never_execute_anything(self, codec: Codec, tmp_path: Path) -> None:
        bomb = Bomb(tmp_path / "went off")
        planted = bomb.planted()
        for data in (planted, codec.seal(planted), reseal(codec, planted, b"")):
            assert codec.decode(data) is None
            assert peek(data) is None
        assert not bomb.went_off

    @codecs
    def test_of_another_page_are_misses(self, codec: Codec) -> None:
        data = codec.encode(make_page())
        for other in (
            KEY._replace(host="evil.example"),
            KEY._replace(mount="", path="/app/blog/1"),
            KEY._replace(query=()),
            KEY._replace(build="b2"),
        ):
            assert codec.decode(data, other) is None
        assert codec.decode(data, KEY) is not None


class TestSigned:
    def test_entries_of_another_key_are_misses(self) -> None:
        data = Codec(b"another key, as long as ours is.").encode(make_page())
        assert Codec(SECRET).decode(data) is None

    def test_entries_without_a_signature_are_misses_and_the_other_way_round(self) -> None:
        assert Codec(SECRET).decode(Codec().encode(make_page())) is None
        assert Codec().decode(Codec(SECRET).encode(make_page())) is None

    def test_entries_that_say_they_have_only_a_checksum_are_misses(self) -> None:
        data = Codec(SECRET).encode(make_page())
        assert Codec(SECRET).decode(data.replace(b"ISR\x01h", b"ISR\x01c", 1)) is None

    def test_whoever_can_write_to_the_store_cannot_forge_a_page(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/", "the page")
        isr = make(files, signing_key=SECRET, rules={"/": Rule()}, memory_size=0)
        visit(isr)
        store = isr._here().store
        key = PageKey("http", "localhost", "", "/")
        real = store.load(key)
        assert real is not None
        forged = forge(make_page(key=key, body=b"forged", lineage=real.page.lineage))
        store.storage.set(key.name, forged)
        assert visit(isr).text == "the page"

    def test_whoever_puts_an_old_page_back_does_not_undo_an_invalidation(
        self, site: Site, make: Make, clock: Clock, files: str
    ) -> None:
        site.page("/", "old", revalidate=False, tags=["t"])
        isr = make(files, signing_key=SECRET, rules={"/": Rule()}, memory_size=0)
        visit(isr)
        store = isr._here().store
        name = PageKey("http", "localhost", "", "/").name
        old = store.storage.get(name)
        assert old is not None
        site.page("/", "new", revalidate=False, tags=["t"])
        isr.revalidate_tag("t", expire=True)
        assert visit(isr).text == "new"
        store.storage.set(name, old)
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")


#: What whoever can write to an unsigned store may put into a head.
FORGED: dict[str, dict[str, t.Any]] = {
    "a header with CR and LF": {"headers": [["X", "a\r\nSet-Cookie: id=1"]]},
    "a header with LF": {"headers": [["X", "a\nb"]]},
    "a header with NUL": {"headers": [["X", "a\0b"]]},
    "a header beyond latin-1": {"headers": [["X", "\u20ac"]]},
    "a name with CR and LF": {"headers": [["X\r\nSet-Cookie", "a"]]},
    "a name with a space": {"headers": [["X ", "a"]]},
    "no name": {"headers": [["", "a"]]},
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
    "a negative window": {"metadata": [-5, None, []]},
    "an endless window": {"metadata": [float("inf"), None, []]},
    "a window beyond all numbers": {"metadata": [10**400, None, []]},
    "an expiry before the window": {"metadata": [60, 30, []]},
    "no time": {"generated_at": float("nan")},
    "an endless time": {"generated_at": float("-inf")},
    "an endless number": {"sequence": float("inf")},
    "a number that is none": {"sequence": "5"},
    "a lineage that is none": {"lineage": 5},
    "a body of negative length": {"bodies": [["gzip", -1], ["identity", 10]]},
    "a body of endless length": {"bodies": [["identity", float("inf")]]},
    "a body longer than the entry": {"bodies": [["identity", 10**18]]},
    "no body": {"bodies": []},
    "no plain body": {"bodies": [["gzip", 9]]},
    "no key": {"key": None},
    "a key with a part too few": {"key": list(KEY)[:-1]},
    "a host that is a list": {"key": ["https", ["a"], "", "/", [], [], ""]},
    "a host that is a number": {"key": ["https", 5, "", "/", [], [], ""]},
    "a path beyond latin-1": {"key": ["https", "a", "", "/\u20ac", [], [], ""]},
    "a query beyond latin-1": {"key": ["https", "a", "", "/", [["\u20ac", ""]], [], ""]},
    "half a character": {"key": ["https", "\ud800", "", "/", [], [], ""]},
}


class TestForgedEntries:
    @pytest.mark.parametrize("head", FORGED.values(), ids=FORGED)
    def test_with_what_no_render_makes_are_misses(self, head: dict[str, t.Any]) -> None:
        page = make_page()
        assert Codec().decode(forge(page)) == page
        assert Codec().decode(forge(page, **head)) is None

    @pytest.mark.parametrize("field", FIELDS)
    def test_without_a_field_are_misses(self, field: str) -> None:
        codec = Codec()
        payload = t.cast(memoryview, codec.unseal(forge(make_page())))
        length = int.from_bytes(payload[:4], "big")
        head = json.loads(bytes(payload[4 : 4 + length]))
        del head[field]
        data = reseal(codec, json.dumps(head).encode(), bytes(payload[4 + length :]))
        assert codec.decode(data) is None

    @pytest.mark.parametrize(
        "head",
        [b"[" * 200_000, b"{}", b"[]", b"null", b"5", b"\xff\xfe", b"9" * 5000, b""],
        ids=["deep", "empty", "list", "null", "number", "no text", "huge number", "nothing"],
    )
    def test_whose_head_is_none_are_misses(self, head: bytes) -> None:
        assert Codec().decode(reseal(Codec(), head, b"")) is None
        assert not peek(reseal(Codec(), head, b""))

    def test_take_no_more_memory_than_their_bytes(self) -> None:
        data = forge(make_page(), bodies=[["identity", 2**40], ["gzip", 2**40]])
        lengths = Codec().seal(struct.pack("!I", 2**32 - 1) + b"{}")
        tracemalloc.start()
        try:
            assert Codec().decode(data) is Codec().decode(lengths) is None
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


class TestSwappedEntries:
    """Authentic entries under each other's names: the key in an entry counts."""

    @pytest.mark.parametrize("signing_key", [None, SECRET], ids=CODECS)
    def test_are_misses(
        self, site: Site, make: Make, files: str, signing_key: bytes | None
    ) -> None:
        for path in ("/a", "/b"):
            site.page(path, f"this is {path}")
        isr = make(files, rules={"/*": Rule()}, memory_size=0, signing_key=signing_key)
        names = []
        for path in ("/a", "/b"):
            visit(isr, path)
            names.append(PageKey("http", "localhost", "", path).name)
        storage = isr._here().store.storage
        first, second = (storage.get(name) for name in names)
        assert first is not None and second is not None
        storage.set(names[0], second)
        storage.set(names[1], first)
        assert list(isr.pages()) == []
        assert isr.revalidate("http://localhost/a")[0].url == "http://localhost/a"
        assert visit(isr, "/a").text == "this is /a"
        assert visit(isr, "/b").text == "this is /b"


class TestWhatIsStored:
    @pytest.mark.parametrize("value", ["a\r\nSet-Cookie: id=1", "a\nb", "a\0b", "\u20ac"], ids=repr)
    def test_has_no_header_that_cannot_be_sent(
        self, site: Site, unchecked: t.Any, files: str, value: str
    ) -> None:
        site.page("/", headers=[("X-Value", value)])
        visitor = unchecked(files, rules={"/": Rule()})
        try:
            visitor.get("/")
        except (ValueError, UnicodeError):
            # Nor does the test client take it.
            pass
        assert list(visitor.isr.pages()) == []


def heads() -> st.SearchStrategy[dict[str, t.Any]]:
    """Heads of which some fields are anything that JSON can say."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    )
    return st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1, max_size=2)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_misses(data: bytes) -> None:
    for codec in CODECS.values():
        assert codec.decode(data) is None
        assert codec.decode(codec.seal(data)) is None
    assert not peek(data)


@given(heads())
@settings(max_examples=300, deadline=None)
def test_whatever_a_head_says_it_is_a_miss_or_a_page_that_can_be_stored(
    head: dict[str, t.Any],
) -> None:
    found = Codec().decode(forge(make_page(), **head))
    if found is not None:
        assert Codec().decode(Codec().encode(found), found.key) == found


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_exchanged_in_a_head_make_a_miss_or_a_page_that_can_be_stored(
    data: st.DataObject,
) -> None:
    codec = Codec()
    payload = bytearray(t.cast(memoryview, codec.unseal(codec.encode(make_page()))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    found = codec.decode(codec.seal(bytes(payload)))
    if found is not None:
        assert codec.decode(codec.encode(found), found.key) == found
