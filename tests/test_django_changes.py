"""On demand in Django: in transactions, by signals of tracked models, in many-to-many relations."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import djangos
import pytest
from conftest import Browser, status_of
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models.signals import post_delete
from django.http import HttpRequest, HttpResponse
from django.test import TestCase
from django.urls import path
from djangos.models import Author, Dated, Entry, Named, Numbered, Post, PostProxy, Shelf

from wsgi_isr import RevalidationError, signals
from wsgi_isr.django import (
    invalidate,
    isr_page,
    revalidate,
    revalidate_tag,
    tag,
    track,
)
from wsgi_isr.django.tracking import tracked

ORIGIN = "http://localhost"


class Events(list[t.Any]):
    def listen(self, sender: object, url: str = "", **what: t.Any) -> None:
        names = [*what.get("paths", ()), *what.get("tags", ()), *what.get("patterns", ())]
        self.append(url or (*names, what.get("expire")))


@pytest.fixture
def events() -> Iterator[Events]:
    """Invalidations, and the URLs that are rendered on demand."""
    found = Events()
    with (
        signals.invalidated.connected_to(found.listen),
        signals.page_revalidated.connected_to(found.listen),
    ):
        yield found


@pytest.fixture
def browser(events: Events) -> Iterator[Browser]:
    """``/posts/1`` shows the titles of all entries, as the database has them."""

    @isr_page(tags=lambda request, slug: [f"post:{slug}"])
    def page(request: HttpRequest, slug: str) -> HttpResponse:
        return HttpResponse(", ".join(Entry.objects.values_list("title", flat=True)))

    @isr_page
    def broken(request: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError("no title")

    urls = path("posts/<slug>", page), path("broken", broken)
    with djangos.project(*urls, isr={"BASE_URL": ORIGIN}) as browser:
        browser.get("/posts/1")
        yield browser
        for model in (Post, Entry, Author, Named, Numbered, Shelf):
            model.objects.all().delete()


@pytest.fixture
def track_all(browser: Browser) -> Iterator[None]:
    track(Post, Author, "djangos.Named")
    yield
    tracked.clear()


class TestInATransaction:
    def test_a_page_is_rendered_when_it_is_committed(self, browser: Browser) -> None:
        with transaction.atomic():
            Post.objects.create(title="new")
            assert revalidate("/posts/1") is None
            assert browser.get("/posts/1").text == ""
        assert browser.get("/posts/1").text == "new"

    def test_nothing_happens_when_it_is_rolled_back(self, events: Events, browser: Browser) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            revalidate("/posts/1")
            revalidate_tag("lost")
            raise ZeroDivisionError
        with transaction.atomic():
            revalidate_tag("kept")
        assert events == [("kept", False)]

    def test_a_savepoint_that_is_rolled_back_takes_its_calls_with_it(
        self, events: Events, browser: Browser
    ) -> None:
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                revalidate_tag("lost", "both")
                raise ZeroDivisionError
            with transaction.atomic():
                revalidate_tag("kept", "both")
        assert events == [("kept", "both", False)]

    def test_calls_are_merged_and_renders_come_last(self, events: Events, browser: Browser) -> None:
        with transaction.atomic():
            revalidate("/posts/1")
            revalidate_tag("a", "b", expire=True)
            with transaction.atomic():
                revalidate("/posts/1")
                revalidate_tag("b", "c", expire=True)
            invalidate("/lists/*")
            invalidate("/lists/*")
            revalidate_tag("a")
        url = f"{ORIGIN}/posts/1"
        assert events == [
            ("a", "b", "c", True), ("/lists/*", False), ("a", False), ("/posts/1", False), url,
        ]  # fmt: skip

    def test_each_transaction_has_its_own(self, events: Events, browser: Browser) -> None:
        for _ in "12":
            with transaction.atomic():
                revalidate_tag("a")
        assert events == [("a", False)] * 2

    def test_that_of_another_database_is_waited_for(self, events: Events, browser: Browser) -> None:
        with transaction.atomic(using="other"):
            with transaction.atomic():
                revalidate_tag("a", using="other")
            assert events == []
        assert events == [("a", False)]

    @pytest.mark.parametrize(
        "call",
        [
            lambda: revalidate("posts"),
            lambda: invalidate("/posts/<slug>"),
            lambda: revalidate_tag("a,b"),
            lambda: revalidate("http://evil.example/"),
            lambda: revalidate("/posts/1", workers=0),
        ],
    )
    def test_mistakes_are_errors_at_once(self, call: t.Any, browser: Browser) -> None:
        with transaction.atomic(), pytest.raises(ValueError):
            call()

    def test_without_autocommit_nobody_can_say_when_it_ends(
        self, events: Events, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        track(Author)
        transaction.set_autocommit(False)
        try:
            with pytest.raises(transaction.TransactionManagementError, match="on_commit"):
                revalidate("/posts/1")
            Author.objects.create(name="a")
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)
            tracked.clear()
        assert events == [] and "pages that show Author were not revalidated" in caplog.text

    def test_a_failure_is_logged(self, browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
        with transaction.atomic():
            revalidate("/broken")
        assert "not revalidated: /broken" in caplog.text
        with pytest.raises(RevalidationError), transaction.atomic():
            revalidate("/broken", raise_errors=True)
        with transaction.atomic():
            # Another call's failure is still only logged.
            revalidate("/posts/1", raise_errors=True)
            revalidate("/broken")

    def test_callbacks_of_a_test_case_see_each_call(self, events: Events, browser: Browser) -> None:
        with transaction.atomic():
            revalidate_tag("before")
            for _ in "12":
                with TestCase.captureOnCommitCallbacks(execute=True):
                    revalidate_tag("a")
        assert events == [("before", "a", False), ("a", False)]


class TestOutsideOfATransaction:
    def test_it_is_as_the_middleware_has_it(self, browser: Browser) -> None:
        Post.objects.create(title="new")
        (result,) = revalidate("/posts/1") or []
        assert (result.outcome, browser.get("/posts/1").text) == ("rendered", "new")
        with pytest.raises(RevalidationError):
            revalidate("/broken")

    def test_it_leaves_the_callers_connection_alone(self, browser: Browser) -> None:
        for title in "abc":
            Post.objects.create(title=title)
        for post in Post.objects.iterator(chunk_size=1):
            revalidate(f"/posts/{post.title}")
        with transaction.atomic():
            with TestCase.captureOnCommitCallbacks(execute=True):
                revalidate("/posts/a")
            assert Post.objects.count() == 3

    def test_in_a_view_the_visitors_host_is_meant(self, events: Events) -> None:
        def save(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                revalidate("/a")
            return HttpResponse("")

        page = isr_page(lambda request: HttpResponse("a"))
        with djangos.project(path("a", page), path("save", save)) as browser:
            browser.get("/save", headers={"Host": "b.example"})
        assert events == [("/a", False), "http://b.example/a"]


class TestTags:
    def test_are_ascii_without_commas(self) -> None:
        key = Numbered().pk
        names = {
            Post: "djangos.post",
            PostProxy: "djangos.post",
            Post(pk=5): "djangos.post:5",
            PostProxy(pk=5): "djangos.post:5",
            Named(pk="a, é"): "djangos.named:a%2C%20%C3%A9",
            Numbered(pk=key): f"djangos.numbered:{key}",
        }
        assert {subject: tag(subject) for subject in names} == names
        long = tag(Named(pk="é" * 300))
        assert len(long) < 128 and long == tag(Named(pk="é" * 300))

    def test_are_of_saved_objects(self) -> None:
        with pytest.raises(ValueError, match="not saved"):
            tag(Post())
        with pytest.raises(TypeError, match="tag takes"):
            tag("djangos.post")  # type: ignore[arg-type]


@pytest.mark.usefixtures("track_all")
class TestTracking:
    def test_follows_saves_and_deletes(self, events: Events) -> None:
        author = Author.objects.create(name="a")
        names = ("djangos.author", f"djangos.author:{author.pk}", True)
        author.save()
        author.delete()
        assert events == [names] * 3

    def test_follows_models_that_extend_others(self, events: Events) -> None:
        post = PostProxy.objects.create(title="a")
        key = post.pk
        both = ("djangos.post", f"djangos.post:{key}", "djangos.entry", f"djangos.entry:{key}")
        Post.objects.filter(pk=key).delete()
        assert events == [(*both, True)] * 2

    def test_takes_effect_on_commit(self, events: Events) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Author.objects.create(name="a")
            raise ZeroDivisionError
        with transaction.atomic():
            one, two = (Author.objects.create(name=name) for name in "ab")
            one.save()
            assert events == []
        (names,) = events
        assert names == ("djangos.author", *(f"djangos.author:{a.pk}" for a in (one, two)), True)

    def test_follows_relations_from_both_sides(self, events: Events) -> None:
        author, post = Author.objects.create(name="a"), Post.objects.create(title="b")
        for change in (
            lambda: post.authors.add(author),
            lambda: author.entries.remove(post),
            lambda: author.entries.add(post),
            lambda: author.entries.clear(),
            lambda: post.authors.set([author]),
            lambda: post.authors.clear(),
        ):
            events.clear()
            with transaction.atomic():
                change()
            found = {name for event in events for name in event}
            assert {tag(author), tag(Author)} <= found
            # What is not tracked is not revalidated: the relation is one of entries.
            assert tag(Entry) in found or "entries" in change.__code__.co_names

    def test_follows_what_a_related_object_extends(self, events: Events) -> None:
        shelf, post = Shelf.objects.create(), Post.objects.create(title="a")
        track(Shelf)
        events.clear()
        shelf.posts.add(post)
        (names,) = events
        assert {tag(Shelf), tag(shelf), tag(Post), tag(post), tag(Entry)} < set(names)

    def test_follows_abstract_models(self, events: Events) -> None:
        track(Dated)
        shelf = Shelf.objects.create()
        assert events == [(tag(Shelf), tag(shelf), tag(Dated), True)]

    def test_finds_what_a_clear_takes_away(self, events: Events) -> None:
        author, post = Author.objects.create(name="a"), Post.objects.create(title="b")
        track(Entry)
        post.authors.add(author)
        events.clear()
        author.entries.clear()
        (names,) = events
        assert {f"djangos.entry:{post.pk}", tag(author)} <= set(names)

    def test_leaves_other_models_alone(self, events: Events) -> None:
        Numbered.objects.create()
        Author.objects.bulk_create([Author(name="a")])
        Author.objects.update(name="b")
        assert events == []

    def test_leaves_deletes_of_other_models_fast(self) -> None:
        assert post_delete.has_listeners(Post)
        assert not post_delete.has_listeners(Session)

    def test_may_leave_pages_stale(self, events: Events, browser: Browser) -> None:
        track(Numbered, expire=False)
        Numbered.objects.create()
        assert events[0][-1] is False

    def test_never_breaks_a_save(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise OSError("no store")

        monkeypatch.setattr("wsgi_isr.django.changes.get_middleware", fail)
        assert Author.objects.create(name="a").pk
        assert "pages that show Author were not revalidated" in caplog.text

    def test_takes_models(self) -> None:
        for wrong in ((), (Post(),), (object,), ("Post",)):
            with pytest.raises(TypeError, match="track takes models"):
                track(*wrong)  # type: ignore[arg-type]


def test_a_page_with_the_tag_of_a_saved_object_is_new_for_the_next_visitor(
    browser: Browser, track_all: None
) -> None:
    author = Author.objects.create(name="old")
    page = isr_page(tags=lambda request: [tag(author)])(
        lambda request: HttpResponse(Author.objects.get().name)
    )
    with djangos.project(path("", page)) as visitor:
        assert [visitor.get("/").text, status_of(visitor.get("/"))] == ["old", "isr; hit"]
        author.name = "new"
        author.save()
        assert visitor.get("/").text == "new"
