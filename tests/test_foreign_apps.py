"""Apps that know nothing of the library, as they are published, and frameworks without extension.

klaus shows git repositories, WsgiDAV a folder; with ``rules=`` their URLs are pages.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Browser, Clock, status_of, strict
from flasks import COLD
from frameworks import FRAMEWORKS, Texts

from wsgi_isr import ISRMiddleware, Rule

App = Callable[..., t.Any]


@pytest.fixture
def serve(clock: Clock, files: str) -> Iterator[Callable[..., Browser]]:
    """A visitor of an app that is wrapped as it is; what the middleware sends is validated."""
    made = []

    def serve(app: App, **options: t.Any) -> Browser:
        middleware = ISRMiddleware(app, files, **options)
        middleware._clock = clock
        made.append(middleware)
        browser = Browser(strict(middleware))
        browser.isr = middleware
        return browser

    yield serve
    for middleware in made:
        middleware.close()


class Repository:
    """A git repository with one file."""

    def __init__(self, folder: Path) -> None:
        from dulwich import porcelain
        from dulwich.repo import Repo

        folder.mkdir()
        self.folder = folder
        self._git = porcelain
        # A second after another, long ago: klaus shows how long.
        self._time = 1_000_000_000
        Repo.init(str(folder), default_branch=b"master").close()
        self.commit("first", "print('one')\n")

    def commit(self, message: str, code: str) -> str:
        file = self.folder / "code.py"
        file.write_text(code)
        self._git.add(str(self.folder), [str(file)])
        self._time += 1
        made = self._git.commit(
            str(self.folder),
            message.encode(),
            author=b"Ann <ann@example.com>",
            author_timestamp=self._time,
            author_timezone=0,
            committer=b"Ann <ann@example.com>",
            commit_timestamp=self._time,
            commit_timezone=0,
        )
        return str(made.decode())


class TestKlaus:
    RULE: t.ClassVar = Rule(revalidate=60, tags=["repository"])
    RULES: t.ClassVar = {"/": RULE, "/project/**": RULE}

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Repository:
        return Repository(tmp_path / "project")

    @pytest.fixture
    def app(self, repository: Repository) -> App:
        import klaus

        return t.cast(App, klaus.make_app([str(repository.folder)], "our repositories"))

    @pytest.fixture
    def browser(self, app: App, serve: t.Any) -> Browser:
        return t.cast(Browser, serve(app, rules=self.RULES))

    @pytest.mark.parametrize(
        "path", ["/", "/project/", "/project/tree/master/", "/project/blob/master/code.py"]
    )
    def test_its_urls_are_pages_with_what_it_answers_alone(
        self, app: App, browser: Browser, path: str
    ) -> None:
        alone = Browser(app).get(path)
        first, second = browser.get(path), browser.get(path)
        assert alone.status_code == 200
        assert first.text == second.text == alone.text
        assert (status_of(first), status_of(second)) == (COLD, "isr; hit; ttl=60")

    def test_a_commit_is_seen_at_once_on_demand(
        self, repository: Repository, browser: Browser
    ) -> None:
        paths = ("/project/", "/project/blob/master/code.py")
        for path in paths:
            browser.get(path)
        repository.commit("the second commit", "print('two')\n")
        # What a git hook would do.
        browser.isr.revalidate_tag("repository", expire=True)
        assert "the second commit" in browser.get(paths[0]).text
        assert "two" in browser.get(paths[1]).text

    def test_its_pages_can_be_prerendered(
        self, repository: Repository, app: App, serve: t.Any
    ) -> None:
        made = repository.commit("second", "print('two')\n")
        browser = serve(app, rules=self.RULES, base_url="http://localhost")
        results = list(browser.isr.prerender(["/", f"/project/commit/{made}/"]))
        assert [result.error for result in results] == [None, None]
        answer = browser.get(f"/project/commit/{made}/")
        assert status_of(answer) == "isr; hit; ttl=60"
        assert "two" in answer.text

    def test_its_style_sheets_are_none(self, browser: Browser) -> None:
        answer = browser.get("/static/klaus.css")
        assert (answer.status_code, status_of(answer)) == (200, "")


class TestWsgiDav:
    RULES: t.ClassVar = {"/**": 60}

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "share"
        (folder / "docs").mkdir(parents=True)
        (folder / "docs" / "a.html").write_text("<p>old")
        return folder

    @pytest.fixture
    def browser(self, folder: Path, serve: t.Any) -> Browser:
        from wsgidav.wsgidav_app import WsgiDAVApp

        app = WsgiDAVApp(
            {
                "provider_mapping": {"/": str(folder)},
                "simple_dc": {"user_mapping": {"*": True}},
                "verbose": 0,
            }
        )
        return t.cast(Browser, serve(app, rules=self.RULES))

    def test_its_files_are_pages(self, browser: Browser) -> None:
        first, second = browser.get("/docs/a.html"), browser.get("/docs/a.html")
        assert first.text == second.text == "<p>old"
        assert (status_of(first), status_of(second)) == (COLD, "isr; hit; ttl=60")

    def test_its_other_methods_work_as_without_the_library(
        self, browser: Browser, folder: Path
    ) -> None:
        # Without validators, to which this method is unknown.
        client = Browser(browser.isr)
        answer = client.open("/docs/", method="PROPFIND", headers={"Depth": "1"})
        assert answer.status_code == 207
        assert "/docs/a.html" in answer.text
        assert client.put("/docs/b.html", data=b"<p>b").status_code == 201
        assert (folder / "docs" / "b.html").read_text() == "<p>b"
        assert status_of(answer) == ""

    def test_what_was_written_is_seen_on_demand(self, browser: Browser) -> None:
        browser.get("/docs/a.html")
        assert browser.put("/docs/a.html", data=b"<p>new").status_code == 204
        assert browser.get("/docs/a.html").text == "<p>old"
        browser.isr.revalidate("http://localhost/docs/a.html")
        assert browser.get("/docs/a.html").text == "<p>new"

    def test_a_listing_that_it_calls_private_is_not_stored(
        self, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            answer = browser.get("/docs/")
            assert "a.html" in answer.text
            assert status_of(answer) == "isr; fwd=uri-miss; detail=cache-control"
        assert caplog.text.count("/docs/ is not stored (cache-control: private)") == 1


@pytest.mark.parametrize("framework", FRAMEWORKS)
class TestFrameworks:
    @pytest.fixture
    def texts(self) -> Texts:
        return {"a": "old a", "b": "old b"}

    @pytest.fixture
    def browser(self, framework: str, texts: Texts, serve: t.Any) -> Browser:
        return t.cast(Browser, serve(FRAMEWORKS[framework](texts)))

    def test_headers_make_pages(self, browser: Browser, texts: Texts) -> None:
        first = browser.get("/blog/a")
        texts["a"] = "new a"
        second = browser.get("/blog/a")
        assert first.text == second.text == "old a"
        assert (status_of(first), status_of(second)) == (COLD, "isr; hit; ttl=60")
        assert not [name for name in second.headers.keys() if name.lower().startswith("isr")]

    def test_a_stale_page_is_rendered_behind_its_visitor(
        self, browser: Browser, texts: Texts, clock: Clock
    ) -> None:
        browser.get("/blog/a")
        texts["a"] = "new a"
        clock.advance(60)
        assert browser.get("/blog/a").text == "old a"
        browser.isr.close()
        assert browser.get("/blog/a").text == "new a"

    def test_a_404_is_a_page(self, browser: Browser) -> None:
        browser.get("/blog/none")
        answer = browser.get("/blog/none")
        assert (answer.status_code, answer.text) == (404, "no such post")
        assert status_of(answer) == "isr; hit; ttl=60"

    def test_a_view_revalidates_through_its_environ(self, browser: Browser) -> None:
        browser.get("/blog/a")
        saved = browser.post("/save/a", data={"text": "new a"})
        assert saved.text == "http://localhost/blog/a"
        answer = browser.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("new a", "isr; hit; ttl=60")

    def test_a_view_marks_by_tag_through_its_environ(self, browser: Browser) -> None:
        browser.get("/blog/a")
        browser.get("/blog/b")
        assert browser.post("/tag").text == "marked"
        assert {page.state for page in browser.isr.pages()} == {"stale"}
