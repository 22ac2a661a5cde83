"""What an app says of a page in its response headers, and what happens if it does not parse."""

from __future__ import annotations

import logging
import typing as t

import pytest
from answers import BOTH, answer, renew
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgi_isr import metadata, page_headers
from wsgi_isr.metadata import Metadata, read_metadata

tag_texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=","), min_size=1, max_size=40
).filter(lambda tag: tag == tag.strip())


class TestPageHeaders:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [("ISR-Revalidate", "false")]),
            ({"revalidate": False}, [("ISR-Revalidate", "false")]),
            (
                {"revalidate": 60, "expire": 90, "tags": ["a", "b"]},
                [("ISR-Revalidate", "60"), ("ISR-Expire", "90"), ("ISR-Tags", "a, b")],
            ),
        ],
    )
    def test_say_what_they_are_given(self, options: t.Any, expected: t.Any) -> None:
        assert page_headers(**options) == expected

    @pytest.mark.parametrize(
        "options",
        [
            {"revalidate": 0},
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
            {"tags": ["\ud800"]},
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
        assert read_metadata(headers) == Metadata(
            None if revalidate is False else revalidate, expire, tuple(tags)
        )


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([("isr-revalidate", "1 ")], Metadata(1)),
        ([("ISR-Revalidate", "FALSE")], Metadata(None)),
        ([("ISR-Revalidate", "60"), ("ISR-Expire", "60")], Metadata(60, 60)),
        ([("ISR-Revalidate", "60"), ("ISR-Tags", "a,b ,  c,")], Metadata(60, None, (*"abc",))),
        ([("ISR-Revalidate", "60"), ("ISR-Tags", "x" * 256)], Metadata(60, None, ("x" * 256,))),
    ],
)
def test_values_of_a_page(headers: t.Any, expected: Metadata | None) -> None:
    assert read_metadata(headers) == expected


WINDOW = ("ISR-Revalidate", "60")
#: Headers, and what a warning says of them.
BAD = [
    *(
        ([("ISR-Revalidate", value)], repr(value))
        for value in ("0", "-1", "1.5", "abc", "true", "", "+60", "60s", "60, 90", "9" * 40)
    ),
    ([WINDOW, ("ISR-Revalidate", "90")], "60, 90"),
    ([("isr-TAGS", "a")], "isr-tags without ISR-Revalidate"),
    ([("ISR-Expire", "90")], "isr-expire without ISR-Revalidate"),
    ([WINDOW, ("ISR-Expire", "59")], "59"),
    ([WINDOW, ("ISR-Expire", "abc")], "abc"),
    ([WINDOW, ("ISR-Expire", "90"), ("ISR-Expire", "99")], "90, 99"),
    ([("ISR-Revalidate", "false"), ("ISR-Expire", "90")], "90"),
    ([WINDOW, ("ISR-Tags", "x" * 257)], "xxx"),
    ([WINDOW, ("ISR-Tags", "bell\x7f")], "bell"),
    ([WINDOW, ("ISR-Tags", ",".join(map(str, range(129))))], "129"),
]


@BOTH
class TestValuesThatDoNotParse:
    @pytest.mark.parametrize(("headers", "said"), BAD)
    def test_the_response_is_delivered_and_nothing_is_stored(
        self,
        site: t.Any,
        browse: t.Any,
        headers: t.Any,
        said: str,
        caplog: pytest.LogCaptureFixture,
        rules: t.Any,
    ) -> None:
        site.answers["/x"] = answer(*headers)
        client = browse(rules=rules)
        for _ in range(3):
            response = client.get("/x", base_url="http://example.com")
            assert (response.status_code, response.text) == (200, "an answer")
            assert response.headers["Cache-Control"] == "private, no-store"
            assert not [name for name, _ in response.headers if name.lower().startswith("isr-")]
        assert all(page.size == 0 for page in client.isr.pages())
        (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
        assert record.name == "wsgi_isr"
        assert "http://example.com/x" in record.getMessage()
        assert said in record.getMessage()

    def test_the_good_page_stays_when_a_regeneration_does_not_parse(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        caplog: pytest.LogCaptureFixture,
        rules: t.Any,
    ) -> None:
        site.page("/x", "good")
        client = browse(rules=rules)
        client.get("/x")
        site.answers["/x"] = answer(("ISR-Revalidate", "soon"))
        assert renew(client, clock).text == "good"
        assert "soon" in caplog.records[0].getMessage()
        assert "soon" in next(client.isr.pages()).last_error


class TestHeadersOnTheWay:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    @pytest.mark.parametrize("enabled", [True, False])
    def test_they_never_reach_the_client(
        self, site: t.Any, browse: t.Any, method: str, enabled: bool
    ) -> None:
        site.page("/x", revalidate=60, expire=90, tags=["a"])
        client = browse(enabled=enabled)
        for _ in range(2):
            response = client.open("/x", method=method)
            assert response.status_code == 200
            assert not [name for name, _ in response.headers if name.lower().startswith("isr-")]

    def test_names_of_others_are_remembered_within_a_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata, "HARMLESS", set())
        for number in range(2 * metadata.MAX_HARMLESS):
            assert not metadata.is_isr_header(f"X-{number}")
        assert len(metadata.HARMLESS) == metadata.MAX_HARMLESS

    @pytest.mark.parametrize("name", ["ISR-Revalidate", "isr_revalidate", "Isr-Expire", "ISR-Tags"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_a_visitor_cannot_send_them_to_the_app(
        self, site: t.Any, browse: t.Any, method: str, name: str
    ) -> None:
        site.answers["/x"] = answer()
        browse().open("/x", method=method, headers={name: "60"})
        assert not [key for key in site.environs[0] if "ISR_" in key]


def test_a_page_lists_the_metadata_it_was_given(site: t.Any, browse: t.Any) -> None:
    site.page("/x", revalidate=60, expire=90, tags=["news", "größe", "日本"])
    client = browse()
    client.get("/x")
    (page,) = client.isr.pages()
    assert (page.ttl, page.tags) == (60, ("news", "größe", "日本"))
