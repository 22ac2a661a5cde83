"""Apps that nobody here can change, behind the rules that docs/apps.md prints for them."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import sys
import typing as t
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import Sent
from browser import serving
from conftest import Clock, end
from documents import TEXTS, blocks
from werkzeug.test import EnvironBuilder

from wsgi_isr import ISRMiddleware

App = t.Callable[..., t.Any]
Data = dict[str, t.Any]
#: The rules that the page prints, by their names.
PRINTED: dict[str, t.Any] = {}
exec(next(block.code for block in blocks(TEXTS["docs/apps.md"])), PRINTED)
COLD, HIT = "isr; fwd=uri-miss; stored", "isr; hit; ttl=60"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:pkg_resources is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed file .*mercurial:ResourceWarning"),
]


def ask(app: App, path: str, data: Data | None = None, cookie: str = "", **environ: str) -> Sent:
    """Call an app as servers do that obey PEP 3333: ``write()`` works, and so does ``exc_info``."""
    parts: list[bytes] = []
    started: list[t.Any] = []

    def start_response(status: str, headers: t.Any, exc_info: t.Any = None) -> t.Any:
        started[:] = status, headers
        return parts.append

    builder = EnvironBuilder(path, method="GET" if data is None else "POST", data=data)
    if cookie:
        environ["HTTP_COOKIE"] = cookie
    try:
        answer = app({**builder.get_environ(), **environ}, start_response)
        with contextlib.closing(answer) if hasattr(answer, "close") else contextlib.nullcontext():
            parts.extend(answer)
    finally:
        builder.close()
    return Sent(started[0], started[1], b"".join(parts))


def values(sent: Sent, name: str) -> list[str]:
    return [value for header, value in sent.headers if header.lower() == name.lower()]


def status(sent: Sent) -> str:
    return ", ".join(values(sent, "Cache-Status"))


def cookies(sent: Sent) -> str:
    return "; ".join(value.partition(";")[0] for value in values(sent, "Set-Cookie"))


class Installed:
    """An app as it is, and behind rules."""

    def __init__(self, app: App, **options: t.Any) -> None:
        self.bare = app
        self.isr = ISRMiddleware(app, "memory://", **options)
        self.isr._clock = Clock()

    def check_pages(self, *paths: str) -> None:
        """Each is stored, and has the very bytes and headers that the app gives a visitor."""
        for path in paths:
            bare, cold, hit = (ask(app, path) for app in (self.bare, self.isr, self.isr))
            assert (path, status(cold), status(hit)) == (path, COLD, HIT)
            assert (cold.status, hit.status) == (bare.status, bare.status)
            assert cold.body == hit.body == bare.body
            assert values(hit, "Content-Type") == values(bare, "Content-Type")
            assert not cookies(hit)


def imported(name: str) -> t.Any:
    """A module of an app that is installed."""
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apps")


@pytest.fixture(scope="module")
def trac(folder: Path) -> Iterator[Installed]:
    main, wiki = imported("trac.web.main"), imported("trac.wiki.model")
    home = str(folder / "trac")
    options = [("trac", "database", "sqlite:db/trac.db"), ("logging", "log_type", "none")]
    environment = imported("trac.env").Environment(home, create=True, options=options)
    page = wiki.WikiPage(environment, "Ours")
    page.text = "A page of ours"
    page.save("ann", "")
    with environment.db_transaction as database:
        # Long ago, for pages say how many seconds.
        database("UPDATE wiki SET time = 1000000000000000")
    permissions = imported("trac.perm").PermissionSystem(environment)
    permissions.grant_permission("ann", "TRAC_ADMIN")
    permissions.grant_permission("anonymous", "TICKET_CREATE")

    def app(environ: Data, start_response: t.Any) -> t.Any:
        return main.dispatch_request({**environ, "trac.env_path": home}, start_response)

    installed = Installed(app, rules=PRINTED["TRAC"], bypass=["trac_auth"])
    yield installed
    end(installed.isr)
    environment.shutdown()


class TestTrac:
    def test_its_pages_are_stored_without_its_cookies(self, trac: Installed) -> None:
        assert cookies(ask(trac.bare, "/wiki/Ours")).startswith("trac_form_token=")
        trac.check_pages("/", "/wiki/Ours", "/wiki/TitleIndex", "/report", "/roadmap", "/about")
        # It answers these with `exc_info`.
        trac.check_pages("/wiki/Nothing", "/ticket/99", "/nothing")

    def test_who_is_logged_in_is_seen_by_themselves_alone(self, trac: Installed) -> None:
        ask(trac.isr, "/wiki/Ours")
        login = ask(trac.isr, "/login", REMOTE_USER="ann")
        assert login.status.startswith("302") and status(login) == ""
        own = ask(trac.isr, "/wiki/Ours", cookie=cookies(login))
        assert b"logged in as" in own.body and b">ann<" in own.body
        assert status(own) == "isr; fwd=bypass; detail=bypass"
        assert values(own, "Cache-Control") == ["private, no-store"]
        others = ask(trac.isr, "/wiki/Ours")
        assert b"logged in as" not in others.body and status(others) == HIT

    def test_its_forms_are_their_visitors_own_and_work(self, trac: Installed) -> None:
        for path, detail in (
            ("/newticket", ""),
            ("/query", "isr; fwd=uri-miss; detail=form-token"),
        ):
            forms = [ask(trac.isr, path) for _ in range(2)]
            assert [status(form) for form in forms] == [detail] * 2
            assert cookies(forms[0]) != cookies(forms[1])
        form = ask(trac.isr, "/newticket")
        (token,) = set(re.findall(rb'name="__FORM_TOKEN" value="(\w+)"', form.body))
        fields = {"field_summary": "It rains", "field_reporter": "bob", "submit": "Create ticket"}
        data = {"__FORM_TOKEN": token.decode(), **fields}
        made = ask(trac.isr, "/newticket", data, cookies(form))
        assert made.status.startswith("303")
        assert b"It rains" in ask(trac.isr, "/ticket/1").body
        refused = ask(trac.isr, "/newticket", data)
        assert refused.status.startswith("400")

    def test_parameters_that_no_rule_declares_reach_it(self, trac: Installed) -> None:
        ask(trac.isr, "/wiki/Ours")
        text = ask(trac.isr, "/wiki/Ours?format=txt")
        assert text.body == b"A page of ours"
        assert status(text) == "isr; fwd=uri-miss; detail=query"
        assert status(ask(trac.isr, "/wiki/Ours?utm_source=mail")) == HIT


@pytest.fixture(scope="module")
def roundup(folder: Path) -> Iterator[Installed]:
    init, instance = imported("roundup.init"), imported("roundup.instance")
    home = str(folder / "tracker")
    init.install(home, str(Path(sys.prefix, "share/roundup/templates/classic")))
    config = imported("roundup.configuration").CoreConfig()
    config["TRACKER_WEB"] = "http://localhost/"
    config["MAIL_DOMAIN"], config["MAIL_HOST"] = "example.com", "localhost"
    config["RDBMS_BACKEND"] = "sqlite"
    config.save(f"{home}/config.ini")
    tracker = instance.open(home)
    tracker.init(imported("roundup.password").Password("secret", config=tracker.config))
    database = tracker.open("admin")
    database.issue.create(title="It rains")
    database.commit()
    database.close()
    app = imported("roundup.cgi.wsgi_handler").RequestDispatcher(home)
    rules = PRINTED["ROUNDUP"]
    installed = Installed(app, rules=rules, bypass=["roundup_session_Roundupissuetracker"])
    yield installed
    end(installed.isr)


class TestRoundup:
    def test_its_files_are_stored(self, roundup: Installed) -> None:
        roundup.check_pages("/@@file/style.css")

    def test_its_pages_are_not_because_each_has_the_form_of_the_login(
        self, roundup: Installed, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = set()
        for _ in range(2):
            page = ask(roundup.isr, "/issue1")
            assert b"It rains" in page.body
            assert status(page) == "isr; fwd=uri-miss; detail=form-token"
            tokens.update(re.findall(rb'name="@csrf"[^>]*value="([^"]+)"', page.body))
        assert len(tokens) > 1
        assert "/issue1 is not stored (form-token: @csrf)" in caplog.text

    def test_a_login_works_and_shows_nothing_to_others(self, roundup: Installed) -> None:
        form = ask(roundup.isr, "/issue1")
        token = re.findall(rb'name="@csrf"[^>]*value="([^"]+)"', form.body)[0].decode()
        data = {"@action": "login", "__login_name": "admin", "__login_password": "secret"}
        headers = {"HTTP_REFERER": "http://localhost/issue1", "HTTP_ORIGIN": "http://localhost"}
        login = ask(roundup.isr, "/", {**data, "@csrf": token}, cookies(form), **headers)
        assert cookies(login)
        own = ask(roundup.isr, "/issue1", cookie=cookies(login))
        assert b"Logout" in own.body and status(own) == "isr; fwd=bypass; detail=bypass"
        assert b"Logout" not in ask(roundup.isr, "/issue1").body


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HGRCPATH", "")
        yield


@pytest.fixture(scope="module")
def repository(folder: Path) -> str:
    return str(folder / "repository")


@pytest.fixture(scope="module")
def hgweb(repository: str) -> Iterator[Installed]:
    module = imported("mercurial.hgweb")
    hg("init", repository)
    commit(repository, "first", "print('one')\n")
    app = module.hgweb(repository.encode(), name=b"ours")
    installed = Installed(app, rules=PRINTED["HGWEB"])
    yield installed
    end(installed.isr)


def hg(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mercurial import dispatch; dispatch.run()", *args],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def commit(repository: str, message: str, code: str) -> None:
    Path(repository, "code.py").write_text(code)
    options = ("-A", "-m", message, "-u", "Ann", "-d", "1000000000 0")
    hg("commit", "--cwd", repository, *options)


class TestHgweb:
    def test_its_pages_are_stored(self, hgweb: Installed) -> None:
        hgweb.check_pages("/", "/shortlog", "/file/tip", "/file/tip/code.py", "/rev/0")
        hgweb.check_pages("/raw-file/tip/code.py", "/static/style-paper.css", "/graph", "/help")

    def test_a_clone_works_since_its_commands_are_parameters(
        self, hgweb: Installed, folder: Path
    ) -> None:
        for app in (hgweb.bare, hgweb.isr):
            assert b"branchmap" in ask(app, "/?cmd=capabilities").body
        with serving(hgweb.isr) as address:
            ask(hgweb.isr, "/")
            hg("clone", address, str(folder / "clone"))
        assert (folder / "clone" / "code.py").read_text() == "print('one')\n"

    def test_a_commit_is_seen_on_demand(self, hgweb: Installed, repository: str) -> None:
        assert b"second" not in ask(hgweb.isr, "/shortlog").body
        commit(repository, "the second commit", "print('two')\n")
        # What a hook of the repository does.
        hgweb.isr.revalidate_tag("hg", expire=True)
        assert b"the second commit" in ask(hgweb.isr, "/shortlog").body
        assert b"two" in ask(hgweb.isr, "/raw-file/tip/code.py").body


class TestPypiserver:
    @pytest.fixture
    def packages(self, tmp_path: Path) -> Path:
        self.wheel(tmp_path, "one")
        return tmp_path

    def wheel(self, folder: Path, name: str) -> Path:
        path = folder / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
        return path

    @pytest.fixture
    def serve(self, packages: Path) -> Iterator[t.Callable[..., Installed]]:
        pypiserver = imported("pypiserver")
        made: list[Installed] = []

        def serve(*protected: str) -> Installed:
            config = pypiserver.Config.default_with_overrides(
                roots=[packages],
                authenticate=list(protected),
                auther=lambda name, password: (name, password) == ("ann", "secret"),
                disable_fallback=True,
            )
            app = pypiserver.app_from_config(config)
            made.append(Installed(app, rules=PRINTED["PYPISERVER"]))
            return made[-1]

        yield serve
        for installed in made:
            end(installed.isr)

    #: ann:secret
    MEMBER: t.ClassVar = {"HTTP_AUTHORIZATION": "Basic YW5uOnNlY3JldA=="}

    def test_its_indexes_and_files_are_stored(self, serve: t.Any, packages: Path) -> None:
        server = serve()
        server.check_pages("/", "/simple/", "/simple/one/", "/packages/", "/simple/none/")
        server.check_pages("/packages/one-1.0-py3-none-any.whl", "/one/json")
        # A 303 is never a page.
        redirect = ask(server.isr, "/one")
        assert values(redirect, "Location") == values(ask(server.bare, "/one"), "Location")
        assert status(redirect) == "isr; fwd=uri-miss; detail=status"

    def test_an_upload_is_seen_on_demand(
        self, serve: t.Any, packages: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        server = serve("update")
        assert b"two" not in ask(server.isr, "/simple/").body
        wheel = self.wheel(tmp_path_factory.mktemp("upload"), "two")

        def upload(**environ: str) -> Sent:
            with wheel.open("rb") as file:
                data = {":action": "file_upload", "content": (file, wheel.name)}
                return ask(server.isr, "/", data, **environ)

        assert upload().status.startswith("401")
        assert upload(**self.MEMBER).status.startswith("200")
        server.isr.revalidate_tag("packages", expire=True)
        assert b"two" in ask(server.isr, "/simple/").body

    def test_what_it_protects_is_not_stored_for_anybody(self, serve: t.Any) -> None:
        server = serve("list", "download", "update")
        for _ in range(2):
            for path in ("/simple/", "/packages/one-1.0-py3-none-any.whl"):
                own = ask(server.isr, path, **self.MEMBER)
                assert own.status.startswith("200")
                assert own.body == ask(server.bare, path, **self.MEMBER).body
                assert values(own, "Cache-Control") == ["private, no-store"]
                assert ask(server.isr, path).status.startswith("401")
        assert not list(server.isr.pages())
