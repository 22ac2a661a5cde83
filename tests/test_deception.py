"""Paths that programs read differently, and private pages that seem static.

What one reads as ``/static/x.css`` and another as ``/account`` is how a cache gets to store, and to
hand out, what is somebody's own (web cache deception).
"""

from __future__ import annotations

import itertools
import json
import typing as t

import pytest
from attacks import HOST, TOKEN
from raw import SERVERS, Program

from wsgi_isr import Rule, page_headers
from wsgi_isr.key import is_ambiguous

names = itertools.count(1)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: t.Any) -> t.Iterator[Program]:
    program = Program(request.param, tmp_path_factory.mktemp("server") / "log")
    yield program
    program.stop()


#: ``%s`` is a page; each of these is, to somebody, the same or another one.
TARGETS = """
/%s %s/ %s// %s/. %s/.. %s/../%s /.%s /..%s /x/..%s /%%2e%s /x/%%2e%%2e%s /x%%2f..%s %s%%2f %s%%2F
%s%%2F%%2F %s%%252f.. %s%%5c %s\\ \\..%s %s%%00 %s%%00.css %s%%0d%%0aX-Name:%%20a %s%%09 %s%%7f
%s%%c2%%85 %s%%c2%%9f.css %s%%20 %s%%a0 %s%%ff %s%%c0%%af %s%%ed%%a0%%80 %s%%f4%%90%%80%%80 %sé
%s;x.css
%s;jsessionid=1 %s.css %s/x.css %s%%3fx.css %s%%23x.css %s?x.css %s#x.css %s%% %s%%zz
http://%(host)s%s http://%(host)s/%s
""".split()
TARGETS.append("%s" + "/x" * 1500)


def path_of(body: str) -> str:
    """What the app saw, in WSGI's spelling."""
    return dict(json.loads(body)[0]).get("PATH_INFO", "") if body.startswith("[[[") else ""


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["declared", "undeclared"])
def test_targets_are_ambiguous_or_pages_and_the_same_to_all(server: Program, kind: str) -> None:
    path = f"/{kind}/{next(names)}"
    for target in TARGETS:
        target = target.replace("%(host)s", HOST).replace("%s", path).replace("%%", "%")
        victim = [f"Cookie: session={TOKEN}"]
        for headers in (victim, [], []):
            lines = [f"GET {target} HTTP/1.1", f"Host: {HOST}", *headers, "Connection: close"]
            answer = server.attack("\r\n".join([*lines, "", ""]).encode("latin-1"))
            if headers != victim:
                # The victim's cookie is in no answer to somebody else.
                assert TOKEN not in answer.raw.decode("latin-1"), target
        if "hit" in answer.headers.get("cache-status", ""):
            assert not is_ambiguous(path_of(answer.body)), target
    # Only what the app sees as the very path of the page is the page.
    answer = server.get(path)
    assert (answer.status, path_of(answer.body)) == (200, path)


class TestPrivatePagesThatLookStatic:
    """An app whose router takes ``/account/x.css`` for ``/account``."""

    @pytest.fixture(params=["says it is a page", "says nothing", "says it is private"])
    def account(self, request: pytest.FixtureRequest) -> t.Any:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            who = environ.get("HTTP_COOKIE", "nobody")
            headers = [("Content-Type", "text/html")]
            if request.param == "says it is a page":
                headers += page_headers(60)
            if request.param == "says it is private":
                headers += [*page_headers(60), ("Cache-Control", "private")]
            start_response("200 OK", headers)
            return [f"the account of {who}".encode()]

        return app

    @pytest.mark.parametrize(
        "path",
        [
            "/account/x.css",
            "/account.js",
            "/account;x.png",
            "/account/%2e%2e/static/x.css",
            "/static/..%2faccount",
            "/static/x.css",
        ],
    )
    @pytest.mark.parametrize("rules", [None, {"/static/**": 60}, {"/**": Rule()}])
    def test_are_seen_by_their_owner_alone(
        self, unchecked: t.Any, account: t.Any, path: str, rules: t.Any
    ) -> None:
        client = unchecked(app=account, rules=rules)
        client.set_cookie("session", "ada")
        client.get(path)
        client.delete_cookie("session")
        for _ in range(2):
            assert "ada" not in client.get(path).text
