"""Nobody can poison a page: attacks of record over the wire to real servers, and made-up requests.

The site reflects all it can see. An attacker comes first to a cold page, or is the one who has a
page rendered anew; then a clean visitor comes. They get what they would have got without.
"""

from __future__ import annotations

import itertools
import typing as t

import pytest
from answers import Sent, run
from attacks import ATTACKS, HOST, TOKEN, Attack
from conftest import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror import mirror
from raw import SERVERS, Answer, Program
from steps import wait_until

from wsgi_isr import ISRMiddleware, Rule

#: Attacks that get through a cache which stores the first answer to a path, at the least.
REAL = 55

names = itertools.count(1)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: t.Any) -> t.Iterator[Program]:
    program = Program(request.param, tmp_path_factory.mktemp("server") / "log")
    yield program
    program.stop()


#: Header fields of a page that the app or the library makes.
OF_THE_PAGE = ("content-type", "x-seen", "content-language", "link", "vary")


def essence(answer: Answer, path: str) -> t.Any:
    """What a page is, whatever its path and however often it was rendered."""
    if answer.status != 200 or TOKEN in answer.raw.decode("latin-1"):
        return answer.raw
    headers = {name: answer.headers.get(name) for name in OF_THE_PAGE}
    text = f"{headers}\n{answer.body}"
    return text.replace(path, "PATH")


def prepare_cold(server: Program, path: str, attack: Attack) -> None:
    server.attack(attack.to(path))


def prepare_stale(server: Program, path: str, attack: Attack) -> None:
    """The attacker gets the stale page, and has it rendered behind."""
    server.get(path)
    server.get(f"/-/invalidate{path}", method="POST")
    server.attack(attack.to(path))
    wait_until(lambda: server.get(path).headers.get("x-render") == "2")


def prepare_expired(server: Program, path: str, attack: Attack) -> None:
    """The attacker waits for the new page."""
    server.get(path)
    server.get(f"/-/expire{path}", method="POST")
    server.attack(attack.to(path))


def prepare_on_demand(server: Program, path: str, attack: Attack) -> None:
    """The attack is the request in which the app revalidates the page."""
    server.get(path)
    start = attack.start.replace("GET ", "POST ").replace("%s", f"/-/revalidate{path}")
    server.attack(attack._replace(start=start).to(path))


WAYS = {
    "cold": prepare_cold,
    "stale": prepare_stale,
    "expired": prepare_expired,
    "on demand": prepare_on_demand,
}


def after_each(server: Program, kind: str, way: str) -> dict[str, tuple[str, Answer]]:
    """What a clean visitor gets after each of the attacks, each on a path of its own."""
    found = {}
    for name, attack in ATTACKS.items():
        path = f"/{kind}/{next(names)}"
        WAYS[way](server, path, attack)
        found[name] = path, server.get(path)
    return found


@pytest.mark.processes
class TestKnownAttacks:
    @pytest.mark.parametrize(
        ("kind", "way"),
        [
            ("undeclared", "cold"),
            ("declared", "cold"),
            ("declared", "stale"),
            ("undeclared", "expired"),
            ("declared", "on demand"),
        ],
    )
    def test_leave_no_trace(self, server: Program, kind: str, way: str) -> None:
        path = f"/{kind}/{next(names)}"
        clean = essence(server.get(path), path)
        answers = after_each(server, kind, way)
        poisoned = [
            name for name, (path, answer) in answers.items() if essence(answer, path) != clean
        ]
        assert poisoned == []

    def test_are_real(self, server: Program) -> None:
        """A cache that stores the answer to a visitor's own request hands the poison on."""
        answers = after_each(server, "naive", "cold")
        poisoned = [name for name, (_, answer) in answers.items() if TOKEN in answer.body]
        assert len(poisoned) >= REAL

    def test_do_not_break_the_server(self, server: Program) -> None:
        for attack in ATTACKS.values():
            server.attack(attack.to("/declared/still-there"))
        assert server.get("/declared/still-there").status == 200


# Beyond the list.

texts = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30)
header_names = st.from_regex(r"HTTP_[A-Z0-9_]{1,20}", fullmatch=True)
variables = st.one_of(
    header_names,
    st.sampled_from(
        [
            "HTTP_X_FORWARDED_HOST",
            "AUTH_TYPE",
            "CONTENT_LENGTH",
            "CONTENT_TYPE",
            "DOCUMENT_ROOT",
            "GATEWAY_INTERFACE",
            "HTTPS",
            "HTTP_TRANSFER_ENCODING",
            "PATH_TRANSLATED",
            "QUERY_STRING",
            "RAW_URI",
            "REMOTE_ADDR",
            "REMOTE_HOST",
            "REMOTE_IDENT",
            "REMOTE_PORT",
            "REMOTE_USER",
            "REQUEST_URI",
            "SCRIPT_FILENAME",
            "SERVER_ADDR",
            "SERVER_NAME",
            "SERVER_PORT",
            "SERVER_PROTOCOL",
            "SERVER_SOFTWARE",
            "SSL_CLIENT_S_DN",
            "gunicorn.socket",
            "mod_wsgi.path_info",
            "uwsgi.node",
            "werkzeug.request",
            "wsgi.file_wrapper",
            "wsgi.input_terminated",
            "wsgi_isr.origin",
            "wsgi_isr.reason",
        ]
    ),
    st.from_regex(r"[a-z_]{1,9}\.[a-z_]{1,9}", fullmatch=True).filter(
        lambda name: not name.startswith("wsgi.")
    ),
)
requests = st.fixed_dictionaries(
    {"REQUEST_METHOD": st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PATCH"])},
    optional={
        "HTTP_HOST": texts,
        "PATH_INFO": st.sampled_from(["/x", "/x/", "//x", "/x/.", "/x%00", "/X", "/x;a=b"]),
        "QUERY_STRING": st.text(st.sampled_from("ab=&;%41+"), max_size=20),
        "SCRIPT_NAME": st.sampled_from(["", "/", "/m", "/x"]),
        "wsgi.url_scheme": st.sampled_from(["http", "https", "HTTP", "ftp"]),
        "wsgi.multithread": st.booleans(),
        "wsgi.multiprocess": st.booleans(),
        "wsgi.run_once": st.booleans(),
    },
).flatmap(
    lambda own: st.dictionaries(variables, texts, max_size=10).map(lambda more: {**more, **own})
)


#: Header fields that tell how often a page was rendered, and when.
OF_THE_MOMENT = {"Cache-Control", "CDN-Cache-Control", "Cache-Status", "X-Render"}


def essence_of(sent: Sent) -> tuple[t.Any, ...]:
    headers = [item for item in sent.headers if item[0] not in OF_THE_MOMENT]
    return sent.status, headers, sent.body


def clean(app: t.Any) -> tuple[t.Any, ...]:
    return essence_of(run(app, HTTP_HOST=HOST))


UNPOISONED = clean(ISRMiddleware(mirror, "memory://"))


@given(
    st.lists(requests, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([None, "invalidate", "expire"]),
)
@settings(max_examples=100, deadline=None)
def test_no_request_whatsoever_leaves_a_trace(
    attacks: list[dict[str, t.Any]], declared: bool, first: str | None
) -> None:
    isr = ISRMiddleware(mirror, "memory://", rules={"/x": Rule()} if declared else None)
    isr._clock = Clock()
    if first is not None:
        clean(isr)
        isr.invalidate("/x", expire=first == "expire")
    for attack in attacks:
        run(isr, **{"HTTP_HOST": HOST, **attack})
        isr.close()
    assert clean(isr) == UNPOISONED
