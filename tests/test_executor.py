"""``executor=``: stale pages are rendered where the app wants it."""

from __future__ import annotations

import os
import threading
import typing as t
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Clock, Make, Site
from flasks import flask_app, flask_browser
from steps import HOLD, visit, wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import threads as threads_module
from wsgi_isr.flask import isr_page


class Inline:
    """Runs a job where it is submitted, as executors for tests do; anything with submit will do."""

    def submit(self, fn: t.Any, /, *args: t.Any, **kwargs: t.Any) -> Future[t.Any]:
        future: Future[t.Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Dropping(Executor):
    """Takes jobs and never runs one."""

    def submit(self, fn: t.Any, /, *args: t.Any, **kwargs: t.Any) -> Future[t.Any]:
        return Future()


def in_a_fork(work: t.Callable[[], str]) -> str:
    """What a function returns in a forked child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def page(site: Site) -> None:
    site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=10)


def stale(isr: ISRMiddleware, clock: Clock) -> t.Any:
    visit(isr)
    clock.advance(11)
    return visit(isr)


@pytest.mark.usefixtures("page")
class TestRenders:
    def test_run_on_its_threads(self, site: Site, make: Make, clock: Clock) -> None:
        names = []

        def render(environ: t.Any) -> str:
            names.append(threading.current_thread().name)
            return ""

        site.page("/", render, 10)
        with ThreadPoolExecutor(1, thread_name_prefix="theirs") as executor:
            isr = make(executor=executor)
            stale(isr, clock)
            isr.close()
        assert [name.partition("_")[0] for name in names[-1:]] == ["theirs"]

    def test_run_on_one_that_a_callable_makes_in_each_process(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        made = []

        def executor() -> Inline:
            made.append(os.getpid())
            return Inline()

        isr = make(executor=executor)
        assert made == []
        stale(isr, clock)
        assert (visit(isr).text, made) == ("render 2", [os.getpid()])

    def test_that_a_callable_made_is_shut_down_with_the_middleware(
        self, make: Make, clock: Clock
    ) -> None:
        made = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        isr, other = make(executor=made.pop), make(executor=(own := ThreadPoolExecutor(1)))
        stale(isr, clock)
        visit(other)
        first = made[0]
        for middleware in (isr, other):
            middleware.close()
        assert made == [first]
        assert own.submit(int).result() == 0
        assert visit(isr).text == "render 2"


@pytest.mark.usefixtures("page")
class TestAnExecutorThatIsOfNoUse:
    def test_is_replaced_where_it_was_shut_down(
        self, make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        executor = ThreadPoolExecutor(1)
        isr = make(executor=executor)
        visit(isr)
        executor.shutdown()
        for render in (2, 3):
            clock.advance(11)
            visit(isr)
            wait_until(lambda text=f"render {render}": visit(isr).text == text)
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith("executor runs no jobs, threads of wsgi-isr replace it")

    def test_is_helped_out_by_visitors_where_its_jobs_hang(
        self, site: Site, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads_module, "STALLED", 0.0)
        go_on = threading.Event()
        began = threading.Event()

        def hang(environ: t.Any) -> str:
            if site.renders("/hangs") > 1:
                began.set()
                assert go_on.wait(HOLD)
            return ""

        site.page("/hangs", hang, revalidate=10)
        with ThreadPoolExecutor(1) as executor:
            isr = make(executor=executor, render_timeout=0.1)
            visit(isr, "/hangs")
            visit(isr)
            clock.advance(11)
            visit(isr, "/hangs")
            assert began.wait(10)
            visit(isr)
            wait_until(lambda: visit(isr).text == "render 2")
            go_on.set()

    def test_is_replaced_where_it_was_made_before_a_fork(self, make: Make, clock: Clock) -> None:
        with ThreadPoolExecutor(1) as executor:
            isr = make(executor=executor)
            stale(isr, clock)
            isr.close()

            def child() -> str:
                clock.advance(11)
                visit(isr)
                isr.close()
                return str(visit(isr).text)

            assert in_a_fork(child) == "render 3"

    def test_is_replaced_where_the_callable_raises(
        self, make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        isr = make(executor=lambda: 1 / 0)
        stale(isr, clock)
        isr.close()
        assert visit(isr).text == "render 2"
        assert "executor cannot be used" in caplog.text

    def test_is_helped_out_by_visitors_where_it_runs_nothing(
        self, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads_module, "STALLED", 0.0)
        isr = make(executor=Dropping())
        stale(isr, clock)
        assert visit(isr).text == "render 2"


def noted(names: list[str]) -> str:
    names.append(threading.current_thread().name)
    return "a page"


class TestFlask:
    def test_takes_it_as_an_argument_or_from_its_config(self, tmp_path: Path) -> None:
        for name, options in (("argument", {"executor": Inline}), ("config", {})):
            app = flask_app(tmp_path, name)
            if not options:
                app.config["ISR_EXECUTOR"] = Inline
            names: list[str] = []
            app.get("/")(isr_page(revalidate=1)(lambda n=names: noted(n)))
            isr = flask_browser(app, **options).isr
            isr._clock = clock = Clock()
            stale(isr, clock)
            # Where the visitor was served.
            assert names == [threading.current_thread().name] * 2


class TestMistakes:
    @pytest.mark.parametrize(
        ("executor", "workers", "error", "message"),
        [
            # Renders need this process.
            (ProcessPoolExecutor(1), 2, TypeError, "workers=0 and start 'python -m wsgi_isr"),
            (3, 2, TypeError, "takes anything with submit"),
            # Other processes render.
            (Inline(), 0, ValueError, "leave executor out"),
        ],
        ids=["of processes", "none", "beside workers=0"],
    )
    def test_are_refused(
        self, executor: t.Any, workers: int, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ISRMiddleware(Site(), executor=executor, workers=workers)
