"""What goes wrong at the start: options that cannot work, a folder that is not there, a fork."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Make, Site, status_of
from flask import Flask
from steps import PATIENCE, start, visit, wait_until

from wsgi_isr import RevalidationError, Rule
from wsgi_isr.flask import ISR, isr_page


class TestOptions:
    @pytest.mark.parametrize(
        "pattern", ["/blog/<slug>", "/blog/[slug]", "/blog/[a-z]+", "/?page=*", "/a#b", "/a//b"]
    )
    def test_a_rule_that_can_never_match_is_an_error(self, make: Make, pattern: str) -> None:
        with pytest.raises(ValueError, match="can never match"):
            make("memory://", rules={pattern: 60})

    def test_trusted_hosts_are_no_urls(self, make: Make) -> None:
        with pytest.raises(ValueError, match="not URLs"):
            make("memory://", trusted_hosts=["https://www.example.com"])


def test_a_folder_that_cannot_be_opened_is_a_store_that_is_away(
    site: Site, make: Make, tmp_path: Path
) -> None:
    site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
    (tmp_path / "cache").write_text("not a folder")
    url = f"file://{tmp_path}/cache"
    isr, rules = make(url, rules={"/**": Rule()}), {"/**": Rule()}
    assert status_of(visit(isr)) == "isr; fwd=uri-miss; detail=store-error"
    assert status_of(visit(isr)) == "isr; hit"
    with pytest.raises(RevalidationError):
        isr.revalidate("http://localhost/")
    (tmp_path / "cache").unlink()
    wait_until(lambda: _revalidates(isr))
    # It holds for a neighbour, too.
    assert visit(isr).text == visit(make(url, rules=rules)).text == f"render {site.renders()}"


def _revalidates(isr: object) -> bool:
    try:
        isr.revalidate("http://localhost/")  # type: ignore[attr-defined]
    except RevalidationError:
        return False
    return True


# Python 3.12 and newer warn of any fork of a process with threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.processes
def test_a_child_does_not_wait_for_a_list_of_paths_that_its_parent_makes(tmp_path: Path) -> None:
    app = Flask(__name__, instance_path=str(tmp_path))
    isr = ISR(app, cache="memory://", enabled=True)
    begun, goes_on = threading.Event(), threading.Event()
    parent = os.getpid()

    @app.get("/post/<slug>")
    @isr_page(fallback=False)
    def post(slug: str) -> str:
        return slug

    @isr.paths
    def post_paths() -> Iterator[tuple[str, dict[str, str]]]:
        begun.set()
        if os.getpid() == parent:
            assert goes_on.wait(3 * PATIENCE)
        yield "post", {"slug": "a"}

    visitor = start(app.test_client().get, "/post/a")
    assert begun.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))
        os._exit(app.test_client().get("/post/a").text != "a")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    goes_on.set()
    assert visitor.result(PATIENCE).text == "a"
    with app.app_context():
        isr.middleware.close()
