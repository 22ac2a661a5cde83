"""Signals: what they say, and that a receiver which raises harms nobody."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from steps import visit

from wsgi_isr import ISRMiddleware, RevalidationError, signals

Browse = Callable[..., Browser]
Heard = list[tuple[str, t.Any, dict[str, t.Any]]]

HOME = "http://localhost/"
NAMES = (
    "page_stored",
    "page_rejected",
    "regeneration_failed",
    "page_withdrawn",
    "page_revalidated",
    "invalidated",
    "store_failed",
)


@pytest.fixture
def heard() -> t.Iterator[Heard]:
    """What receivers of all signals get."""
    found: Heard = []

    def listener(name: str) -> Callable[..., None]:
        return lambda sender, **extra: found.append((name, sender, extra))

    with ExitStack() as stack:
        for name in NAMES:
            receiver = listener(name)
            stack.enter_context(getattr(signals, name).connected_to(receiver))
        yield found


@pytest.fixture
def raising() -> t.Iterator[None]:
    """A receiver of every signal, which raises."""

    def receiver(sender: object, **extra: t.Any) -> None:
        raise ZeroDivisionError("a receiver failed")

    with ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(getattr(signals, name).connected_to(receiver))
        yield


@pytest.mark.parametrize(
    ("headers", "rules", "name", "facts"),
    [
        ([], None, "page_stored", {"status": 200, "reason": "miss"}),
        ([("Set-Cookie", "a=b")], {"/": 60}, "page_rejected", {"reason": "set-cookie"}),
        # The visitor's own answer says enough.
        ([("Vary", "Origin")], None, "page_rejected", {"reason": "vary"}),
    ],
)
def test_what_comes_of_a_render_is_sent(
    site: Site,
    browse: Browse,
    heard: Heard,
    headers: t.Any,
    rules: t.Any,
    name: str,
    facts: dict[str, t.Any],
) -> None:
    site.page("/", "body", headers=headers)
    browser = browse(rules=rules)
    browser.get("/")
    assert heard == [(name, browser.isr, {"url": HOME, **facts})]


def test_failures_are_sent_and_counted(
    site: Site, browse: Browse, clock: Clock, heard: Heard
) -> None:
    site.page("/", "body", revalidate=10)
    browser = browse()
    browser.get("/")
    clock.advance(10)
    site.fail("/")
    heard.clear()
    for _ in range(2):
        browser.get("/")
        browser.isr.close()
    assert [(name, extra["url"], extra["failures"]) for name, _, extra in heard] == [
        ("regeneration_failed", HOME, 1),
        ("regeneration_failed", HOME, 2),
    ]
    assert all(isinstance(extra["error"], ZeroDivisionError) for _, _, extra in heard)


def test_a_page_revalidated_on_demand_is_sent(site: Site, browse: Browse, heard: Heard) -> None:
    site.page("/", "body")
    isr = browse().isr
    isr.revalidate(HOME)
    assert heard == [
        ("invalidated", isr, {"paths": ("/",), "tags": (), "patterns": (), "expire": False}),
        ("page_stored", isr, {"url": HOME, "status": 200, "reason": "revalidate"}),
        ("page_revalidated", isr, {"url": HOME, "status": 200}),
    ]


def test_an_invalidation_is_sent_with_what_a_cdn_has_to_purge(
    make: Make, site: Site, heard: Heard
) -> None:
    isr = make(base_url="http://localhost/app")
    isr.revalidate_tag("a", "b", expire=True)
    isr.invalidate("/app/blog/*", "/**")
    site.page("/caf\xc3\xa9")
    isr.revalidate("/app/caf%C3%A9")
    nothing = {"paths": (), "tags": (), "patterns": (), "expire": False}
    assert [sent for name, _, sent in heard if name == "invalidated"] == [
        {**nothing, "tags": ("a", "b"), "expire": True},
        {**nothing, "patterns": ("/app/blog/*", "/**")},
        {**nothing, "paths": ("/app/caf%C3%A9",)},
    ]
    assert isr.explain("/app/caf%C3%A9").state == "fresh"


def test_a_store_that_fails_is_sent_and_an_invalidation_that_it_did_not_take_is_not(
    site: Site, make: Make, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: t.Any) -> t.Any:
        raise OSError("the disk is full")

    site.page("/", "body")
    isr = make()
    monkeypatch.setattr(isr.store, "put", refuse)
    assert visit(isr).text == "body"
    ((name, sender, extra),) = [item for item in heard if item[0] == "store_failed"]
    assert (sender, extra["operation"], str(extra["error"])) == (isr, "put", "the disk is full")
    heard.clear()
    monkeypatch.setattr(isr.store, "invalidate", refuse)
    with pytest.raises(RevalidationError):
        isr.revalidate_tag("a")
    assert [name for name, _, _ in heard] == ["store_failed"]


def test_receivers_may_listen_to_one_middleware_only(site: Site, make: Make) -> None:
    site.page("/", "body")
    one, other = make(), make()
    senders: list[ISRMiddleware] = []

    def receiver(sender: ISRMiddleware, **extra: t.Any) -> None:
        senders.append(sender)

    with signals.page_stored.connected_to(receiver, sender=one):
        visit(one)
        visit(other)
    assert senders == [one]


class TestAReceiverThatRaises:
    def test_costs_no_visitor_their_page(
        self,
        site: Site,
        browse: Browse,
        cache: str,
        clock: Clock,
        raising: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        site.page("/", "old", revalidate=10)
        browser = browse(cache)
        assert browser.get("/").text == "old"
        assert "a receiver of page-stored failed" in caplog.text
        site.page("/", "new", revalidate=10)
        clock.advance(10)
        assert browser.get("/").text == "old"
        browser.isr.close()
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit; ttl=10")

    def test_does_not_keep_the_others_from_hearing_it(
        self, site: Site, browse: Browse, raising: None, heard: Heard
    ) -> None:
        site.page("/", "body")
        browse().get("/")
        assert [name for name, _, _ in heard] == ["page_stored"]
