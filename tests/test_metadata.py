"""What an app says of a page in its response headers, and what happens if it does not parse."""

from __future__ import annotations

import logging
import typing as t

import pytest
from conftest import status_of
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from wsgi_isr import metadata
from wsgi_isr import page_headers
from wsgi_isr import Rule
from wsgi_isr.metadata import Metadata
from wsgi_isr.metadata import read_metadata

tag_texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=","), min_size=1, max_size=40
).filter(lambda tag: tag == tag.strip())


def answer(*isr: tuple[str, str], body: bytes = b"a page") -> t.Any:
    """An app that answers with these headers."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), *isr])
        return [body]

    return app


class TestPageHeaders:
    def test_a_window_in_seconds(self) -> None:
        assert page_headers(revalidate=60) == [("ISR-Revalidate", "60")]

    def test_without_arguments_the_page_changes_on_demand_only(self) -> None:
        assert page_headers() == page_headers(revalidate=False) == [("ISR-Revalidate", "false")]

    def test_an_expiry_and_tags(self) -> None:
        assert page_headers(revalidate=60, expire=90, tags=["a", "b"]) == [
            ("ISR-Revalidate", "60"),
            ("ISR-Expire", "90"),
            ("ISR-Tags", "a, b"),
        ]

    @pytest.mark.parametrize(
        "options",
        [
            {"revalidate": 0},
            {"revalidate": -1},
            {"revalidate": 1.5},
            {"revalidate": True},
            {"revalidate": "60"},
            {"revalidate": 60, "expire": 59},
            {"revalidate": False, "expire": 60},
            {"revalidate": 60, "expire": True},
            {"tags": ["a,b"]},
            {"tags": [""]},
            {"tags": ["x" * 257]},
            {"tags": ["line\nbreak"]},
            {"tags": [str(number) for number in range(129)]},
        ],
    )
    def test_what_the_middleware_would_refuse_is_an_error_at_once(
        self, options: dict[str, t.Any]
    ) -> None:
        with pytest.raises(ValueError):
            page_headers(**options)

    def test_one_text_is_not_a_list_of_tags(self) -> None:
        with pytest.raises(TypeError, match=r"\['news'\]"):
            page_headers(60, tags="news")

    @given(
        st.integers(1, 10**9) | st.just(False),
        st.integers(0, 10**6) | st.none(),
        st.lists(tag_texts, max_size=20, unique=True),
    )
    @settings(max_examples=100)
    def test_what_is_written_is_read(
        self, revalidate: int | t.Literal[False], more: int | None, tags: list[str]
    ) -> None:
        expire = None if more is None or revalidate is False else revalidate + more
        headers = page_headers(revalidate, expire, tags)
        for _, value in headers:
            value.encode("latin-1")
        assert read_metadata(headers, None) == Metadata(
            None if revalidate is False else revalidate, expire, tuple(tags)
        )


class TestParsing:
    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ([("ISR-Revalidate", "1")], Metadata(1)),
            ([("isr-revalidate", "60")], Metadata(60)),
            ([("ISR-Revalidate", "false")], Metadata(None)),
            ([("ISR-Revalidate", "60"), ("ISR-Expire", "60")], Metadata(60, 60)),
            (
                [("ISR-Revalidate", "60"), ("ISR-Tags", "a,b ,  c")],
                Metadata(60, None, ("a", "b", "c")),
            ),
            ([("ISR-Revalidate", "60"), ("ISR-Tags", "x" * 256)], Metadata(60, None, ("x" * 256,))),
        ],
    )
    def test_values_of_a_page(self, headers: t.Any, expected: Metadata) -> None:
        assert read_metadata(headers, None) == expected

    def test_128_tags_are_allowed(self) -> None:
        tags = tuple(f"tag-{number}" for number in range(128))
        headers = [("ISR-Revalidate", "60"), ("ISR-Tags", ", ".join(tags))]
        assert read_metadata(headers, None) == Metadata(60, None, tags)

    @pytest.mark.parametrize("headers", [[], [("ISR-Tags", "a")], [("ISR-Expire", "90")]])
    def test_without_a_window_there_is_no_page(self, headers: t.Any) -> None:
        assert read_metadata(headers, None) is None


BAD_VALUES = [
    (("ISR-Revalidate", "0"), "0"),
    (("ISR-Revalidate", "-1"), "-1"),
    (("ISR-Revalidate", "1.5"), "1.5"),
    (("ISR-Revalidate", "abc"), "abc"),
    (("ISR-Revalidate", "true"), "true"),
    (("ISR-Revalidate", ""), "ISR-Revalidate"),
    (("ISR-Revalidate", "+60"), "+60"),
    (("ISR-Revalidate", "60s"), "60s"),
    (("ISR-Revalidate", "60, 90"), "60, 90"),
    (("ISR-Revalidate", "60, 60"), "60, 60"),
    (("ISR-Revalidate", "9" * 40), "999"),
    (("ISR-Expire", "59"), "59"),
    (("ISR-Expire", "0"), "0"),
    (("ISR-Expire", "abc"), "abc"),
    (("ISR-Expire", "90, 90"), "90, 90"),
    (("ISR-Tags", "x" * 257), "xxx"),
    (("ISR-Tags", "bell\x7f"), "bell"),
    (("ISR-Tags", ",".join(map(str, range(129)))), "129"),
]


class TestValuesThatDoNotParse:
    @pytest.fixture(params=BAD_VALUES, ids=lambda case: f"{case[0][0]}: {case[0][1][:12]!r}")
    def bad(self, request: pytest.FixtureRequest) -> tuple[list[tuple[str, str]], str]:
        header, value = request.param
        window = [] if header[0] == "ISR-Revalidate" else [("ISR-Revalidate", "60")]
        return [*window, header], value

    def test_the_response_is_delivered_and_nothing_is_stored(
        self, site: t.Any, browse: t.Any, bad: t.Any
    ) -> None:
        site.answers["/x"] = answer(*bad[0])
        client = browse()
        response = client.get("/x")
        assert (response.status_code, response.text) == (200, "a page")
        assert list(client.isr.pages()) == []

    def test_one_warning_names_the_url_and_the_value(
        self, site: t.Any, browse: t.Any, bad: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/x"] = answer(*bad[0])
        client = browse()
        for _ in range(3):
            client.get("/x", base_url="http://example.com")
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("wsgi_isr", logging.WARNING)
        assert "http://example.com/x" in record.getMessage()
        assert bad[1] in record.getMessage()

    def test_the_headers_do_not_reach_the_client(
        self, site: t.Any, browse: t.Any, bad: t.Any
    ) -> None:
        site.answers["/x"] = answer(*bad[0])
        response = browse().get("/x")
        assert not [name for name in response.headers.keys() if name.lower().startswith("isr-")]

    @pytest.mark.parametrize(
        "headers",
        [
            [("ISR-Revalidate", "60"), ("ISR-Revalidate", "90")],
            [("ISR-Revalidate", "60"), ("ISR-Expire", "90"), ("ISR-Expire", "99")],
            [("ISR-Revalidate", "false"), ("ISR-Expire", "90")],
        ],
        ids=["two windows", "two expiries", "an expiry beside false"],
    )
    def test_headers_that_contradict_each_other(
        self, site: t.Any, browse: t.Any, caplog: pytest.LogCaptureFixture, headers: t.Any
    ) -> None:
        site.answers["/x"] = answer(*headers)
        client = browse()
        assert client.get("/x").text == "a page"
        assert list(client.isr.pages()) == []
        assert len(caplog.records) == 1

    def test_a_declared_page_is_warned_of_as_well(
        self, site: t.Any, browse: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/x"] = answer(("ISR-Revalidate", "soon"))
        client = browse(rules={"/x": 60})
        assert client.get("/x", base_url="http://example.com").text == "a page"
        assert list(client.isr.pages()) == []
        (record,) = caplog.records
        assert "http://example.com/x" in record.getMessage()
        assert "soon" in record.getMessage()

    def test_the_good_page_stays_when_a_regeneration_does_not_parse(
        self, site: t.Any, browse: t.Any, clock: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/x", "good")
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(("ISR-Revalidate", "soon"), body=b"bad")
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert client.get("/x").text == "good"
        assert "soon" in caplog.records[0].getMessage()


class TestHeadersOnTheWay:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS"])
    @pytest.mark.parametrize("enabled", [True, False])
    def test_they_never_reach_the_client(
        self, site: t.Any, browse: t.Any, method: str, enabled: bool
    ) -> None:
        site.page("/x", revalidate=60, expire=90, tags=["a"])
        client = browse(enabled=enabled)
        for _ in range(2):
            response = client.open("/x", method=method)
            assert response.status_code == 200
            assert not [name for name in response.headers.keys() if name.lower().startswith("isr-")]

    @pytest.mark.parametrize("name", ["ISR-Tags", "ISR-Expire"])
    def test_not_even_from_an_answer_that_is_no_page(
        self, site: t.Any, browse: t.Any, name: str
    ) -> None:
        site.answers["/x"] = answer((name, "90"))
        response = browse().get("/x")
        assert name not in response.headers
        assert status_of(response) == ""

    def test_not_even_from_one_that_never_was(self, site: t.Any, browse: t.Any) -> None:
        def answer(environ: t.Any, start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("isr-TAGS", "a"), ("Content-Type", "text/plain")])
            return [b"body"]

        site.answers["/"] = answer
        client = browse()
        for _ in range(3):
            assert list(client.get("/").headers) == [("Content-Type", "text/plain")]

    def test_names_of_others_are_remembered_within_a_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata, "HARMLESS", set())
        for number in range(2 * metadata.MAX_HARMLESS):
            assert not metadata.is_isr_header(f"X-{number}")
        assert len(metadata.HARMLESS) == metadata.MAX_HARMLESS

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_a_visitor_cannot_send_them_to_the_app(
        self, site: t.Any, browse: t.Any, method: str
    ) -> None:
        site.answers["/x"] = answer()
        sent = {"ISR-Revalidate": "60", "ISR-Expire": "90", "ISR-Tags": "a"}
        browse().open("/x", method=method, headers=sent)
        assert not [name for name in site.environs[0] if name.startswith("HTTP_ISR")]

    def test_an_app_that_echoes_headers_makes_no_page_of_a_visitors(
        self, site: t.Any, browse: t.Any
    ) -> None:
        def echo(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            own = [("ISR-Revalidate", v) for k, v in environ.items() if k == "HTTP_ISR_REVALIDATE"]
            start_response("200 OK", [("Content-Type", "text/plain"), *own])
            return [b"echo"]

        site.answers["/x"] = echo
        client = browse()
        response = client.get("/x", headers={"ISR-Revalidate": "3600"})
        assert status_of(response) == ""
        assert list(client.isr.pages()) == []


def test_the_time_of_a_page_begins_when_its_render_begins(
    site: t.Any, browse: t.Any, clock: t.Any
) -> None:
    def slow(environ: dict[str, t.Any]) -> str:
        clock.advance(10)
        return "slow"

    site.page("/x", slow)
    client = browse(rules={"/x": Rule()})
    client.get("/x")
    assert status_of(client.get("/x")) == "isr; hit; ttl=50"


def test_a_page_lists_the_metadata_it_was_given(site: t.Any, browse: t.Any) -> None:
    site.page("/x", revalidate=60, expire=90, tags=["news", "größe", "日本"])
    client = browse()
    client.get("/x")
    (page,) = client.isr.pages()
    assert (page.ttl, page.tags) == (60, ("news", "größe", "日本"))
