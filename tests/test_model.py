"""The whole middleware on its files against a simple model: whatever happens, in whatever order.

``LONG=1`` plays for minutes, and something else each time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import typing as t

import pytest
from conftest import Clock, status_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from werkzeug.test import Client

from wsgi_isr import ISRMiddleware, RevalidationError, Rule, page_headers

BASE = "http://localhost"
#: Longer than any pause between attempts at a page that fails, and than a URL counts as no page.
PATIENCE = 61.0
LONG = "LONG" in os.environ


class Post:
    """A page of the site, and what can be said of it from outside.

    :param window: its ``revalidate`` and ``expire``.
    """

    def __init__(self, path: str, window: tuple[int | None, int | None], tags: list[str]) -> None:
        self.path = path
        self.window = window
        self.tags = tags
        #: The status of each version of the content.
        self.statuses = ["200 OK"]
        self.fails: str | None = None
        #: The version and the time of the last good render.
        self.rendered: tuple[int, float] | None = None
        #: The oldest version that a visitor may still get.
        self.oldest = 0
        #: What happened since the last good render.
        self.soft = self.hard = self.removed = False

    @property
    def version(self) -> int:
        return len(self.statuses) - 1

    @property
    def headers(self) -> list[tuple[str, str]]:
        revalidate, expire = self.window
        return page_headers(False if revalidate is None else revalidate, expire, self.tags)

    def invalidate(self, hard: bool) -> None:
        self.soft = True
        if hard:
            self.hard = True
            self.oldest = self.version

    def may_be_missing(self, now: float) -> bool:
        """Whether there need not be a page that a visitor can get without a render."""
        if self.rendered is None or self.hard or self.removed:
            return True
        expire = self.window[1]
        return expire is not None and now - self.rendered[1] >= expire


posts = st.sampled_from(["/window", "/expire", "/false"])
workers = st.integers(0, 1)


class SiteMachine(RuleBasedStateMachine):
    """Two workers on one folder, an editor, and an administrator."""

    @initialize(memory_size=st.sampled_from([0, 2**20]), signed=st.booleans())
    def start(self, memory_size: int, signed: bool) -> None:
        self.folder = tempfile.mkdtemp()
        self.options = {
            "rules": {"/**": Rule()},
            "base_url": BASE,
            "memory_size": memory_size,
            "signing_key": b"a key of 16 bytes or more" if signed else None,
            "workers": 1,
        }
        self.clock = Clock()
        self.posts = {
            post.path: post
            for post in (
                Post("/window", (10, None), ["all"]),
                Post("/expire", (10, 20), ["all", "some"]),
                Post("/false", (None, None), ["all", "some"]),
            )
        }
        self.workers = [self.make(), self.make()]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for isr in self.workers:
                isr.close()
            # Counters may be written to it meanwhile.
            shutil.rmtree(self.folder, ignore_errors=True)

    def make(self) -> ISRMiddleware:
        isr = ISRMiddleware(self.app, f"file://{self.folder}/cache", **self.options)
        isr._clock = self.clock
        return isr

    def app(self, environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        post = self.posts[environ["PATH_INFO"]]
        if post.fails == "raises":
            raise ZeroDivisionError("the render failed")
        if post.fails is not None:
            if post.fails.startswith("403"):
                post.removed = True
            start_response(post.fails, [("Content-Type", "text/plain")])
            return [b"an error"]
        post.rendered = (post.version, self.clock.now)
        post.soft = post.hard = post.removed = False
        start_response(post.statuses[-1], [("Content-Type", "text/plain"), *post.headers])
        return [f"{post.version} {self.clock.now}".encode()]

    # What happens.

    @rule(worker=workers)
    def visitors_come(self, worker: int) -> None:
        for path in self.posts:
            self.visit(path, worker)

    @rule(path=posts, worker=workers)
    def somebody_visits(self, path: str, worker: int) -> None:
        self.visit(path, worker)

    def visit(self, path: str, worker: int) -> None:
        post = self.posts[path]
        # Before the visit, which may bring a render about.
        may_fail = post.fails is not None and (
            post.may_be_missing(self.clock.now) or post.fails.startswith("403")
        )
        soft, hard, oldest = post.soft, post.hard, post.oldest
        try:
            answer = Client(self.workers[worker]).get(path)
        except ZeroDivisionError:
            answer = None
        if answer is None or answer.text == "an error":
            assert may_fail, "a render that failed took the last good page away"
        else:
            version, began = answer.text.split()
            assert oldest <= int(version) <= post.version, "an older content came back"
            assert answer.status == post.statuses[int(version)]
            if is_fresh(status_of(answer)):
                assert not soft and not hard, "an invalidation was lost"
                age = self.clock.now - float(began)
                assert -5 <= age < (post.window[0] or age + 1), "it had become stale"
        # Renders behind visitors end; what the worker has in memory stays.
        assert self.workers[worker]._here().background.wait(PATIENCE)

    @rule(path=posts, status=st.sampled_from(["200 OK", "404 Not Found", "410 Gone"]))
    def the_content_changes(self, path: str, status: str) -> None:
        self.posts[path].statuses.append(status)

    @rule(
        path=posts, fails=st.sampled_from(["raises", "500 Internal Server Error", "403 Forbidden"])
    )
    def renders_begin_to_fail(self, path: str, fails: str) -> None:
        self.posts[path].fails = fails

    @rule(path=posts)
    def renders_work_again(self, path: str) -> None:
        self.posts[path].fails = None

    @rule(path=posts, worker=workers)
    def the_editor_revalidates(self, path: str, worker: int) -> None:
        post = self.posts[path]
        failed = False
        # If the render fails, visitors still get the old page, as a stale one.
        post.invalidate(hard=False)
        try:
            self.workers[worker].revalidate(path)
        except RevalidationError:
            failed = True
        if post.fails == "403 Forbidden":
            # The app withdraws it: an error only where there was nothing to withdraw.
            post.oldest = post.version
            return
        assert failed == (post.fails is not None)
        if not failed:
            post.oldest = post.version

    @rule(tag=st.sampled_from(["all", "some"]), expire=st.booleans(), worker=workers)
    def the_editor_revalidates_a_tag(self, tag: str, expire: bool, worker: int) -> None:
        self.workers[worker].revalidate_tag(tag, expire=expire)
        for post in self.posts.values():
            if tag in post.tags:
                post.invalidate(expire)

    @rule(path=posts, expire=st.booleans(), worker=workers)
    def the_editor_invalidates_a_pattern(self, path: str, expire: bool, worker: int) -> None:
        self.workers[worker].invalidate(path, expire=expire)
        self.posts[path].invalidate(expire)

    @rule(seconds=st.sampled_from([1, 9, 10, 20, 60]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-1, -15, -3600, 3600]))
    def the_clock_jumps(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(worker=workers)
    def a_worker_is_restarted(self, worker: int) -> None:
        self.workers[worker] = self.make()

    @rule(path=posts, damaged=st.booleans())
    def a_page_is_removed_or_damaged(self, path: str, damaged: bool) -> None:
        store = self.workers[0].store
        for found in list(store.records(path=path)):
            store.delete(found.record.name)
            if damaged:
                store.put(found.record._replace(head=b"damaged"))
        self.posts[path].removed = True

    # What has to be true after a while.

    @rule()
    def all_works_again_and_everybody_gets_the_new_pages(self) -> None:
        self.clock.advance(PATIENCE)
        stale = [
            path
            for path, post in self.posts.items()
            if post.soft or post.window[0] is not None or post.rendered is None
        ]
        for path, post in self.posts.items():
            post.fails = None
            self.visit(path, 0)
        for path in stale:
            for isr in self.workers:
                answer = Client(isr).get(path)
                assert answer.text.startswith(f"{self.posts[path].version} ")
                assert is_fresh(status_of(answer))

    @rule(worker=workers)
    def the_list_has_what_is_stored(self, worker: int) -> None:
        for page in self.workers[worker].pages():
            if page.state == "failed":
                continue
            post = self.posts[page.url.removeprefix(BASE)]
            assert post.rendered is not None
            if post.hard and not post.removed:
                assert page.state == "expired"


def is_fresh(status: str) -> bool:
    """Whether an answer calls itself a hit of a fresh page."""
    return status.startswith("isr; hit") and not status.startswith(
        ("isr; hit; ttl=-", "isr; hit; ttl=0")
    )


TestSite = pytest.mark.slow(SiteMachine.TestCase)
TestSite.settings = settings(
    max_examples=2000 if LONG else 50,
    stateful_step_count=50 if LONG else 30,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow],
)
