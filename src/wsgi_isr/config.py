"""`Config`: what a middleware was given, checked; and the build that adapters give by default."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import typing as t
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from .key import Origin, Origins, PageKey, canonical_query, is_ambiguous
from .metadata import check_list, check_tags_header
from .rules import Excluded, Rule, Rules, guarded, to_wsgi
from .store.protocol import Kind
from .threads import ExecutorLike

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_PREFIX = re.compile(r"[\x21-\x7e]{0,64}")
_COOKIE_NAME = re.compile(r"[^\s=;](?:[^=;]*[^\s=;])?")
#: Says why a request never gets a page.
Bypass: t.TypeAlias = "Callable[[WSGIEnvironment], str | None]"
#: Options that are whole numbers, and the least that they take; others, and what they take.
_LEAST = {"memory_size": 0, "max_body_size": 1, "workers": 0, "previous_builds": 0}
_TYPES: dict[str, tuple[t.Any, str]] = {
    **dict.fromkeys(_LEAST, (int, "a whole number")),
    "cdn_purged": (bool, "True or False"),
    "render_timeout": (int | float, "seconds"),
    "build_id": (str, "a string"),
}
#: Middlewares within each other that are searched.
_MAX_DEPTH = 20
#: Folders of packages that are installed.
INSTALLED = frozenset({"dist-packages", "site-packages"})
#: Folders that hold no code of the app.
_FOREIGN = INSTALLED | {"__pycache__", "node_modules", "static"}


@dataclass
class Config:
    """What a middleware was given: see `ISRMiddleware`.

    :param kind: of store; ``None`` where only opening it shows that.
    :param bypass: why a request never gets a page: ``"draft"``, ``"disabled"``, ``"bypass"``;
        ``None`` if it may.
    :raises TypeError: for an argument of the wrong kind, with the remedy.
    :raises ValueError: for a value that cannot work, with the remedy.
    """

    app: WSGIApplication
    middleware: object
    kind: Kind | None
    rules: Rules
    query: tuple[str, ...]
    origins: Origins
    memory_size: int
    max_body_size: int
    workers: int
    executor: ExecutorLike | Callable[[], ExecutorLike] | None
    render_timeout: float
    build_id: str
    previous_builds: int
    key_prefix: str
    signing_key: bytes | None
    tags_header: str | None
    cdn_purged: bool
    clock: Callable[[], float]
    bypass: Bypass | None
    made_in: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        app, kind, executor = self.app, self.kind, self.executor
        if not callable(app):
            raise TypeError(f"app is a WSGI application, not {app!r}")
        if any(map(inspect.iscoroutinefunction, (app, getattr(app, "__call__", None)))):  # noqa: B004
            raise TypeError(f"app is an ASGI application, which this cannot serve: {app!r}")
        for name, (type_, words) in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
                raise TypeError(f"{name} takes {words}, not {value!r}")
        for name, minimum in _LEAST.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")
        if not 0 < self.render_timeout <= 86400:
            raise ValueError(
                f"render_timeout takes more than 0 seconds, up to 86400, not {self.render_timeout}"
            )
        if self.build_id != self.build_id.encode(errors="ignore").decode():
            raise ValueError(f"build_id takes what UTF-8 can encode, not {self.build_id!r}")
        if not isinstance(self.key_prefix, str) or not _PREFIX.fullmatch(self.key_prefix):
            raise ValueError(
                "key_prefix takes up to 64 printable ASCII characters without spaces, "
                f"not {self.key_prefix!r}"
            )
        key = self.signing_key
        if key is not None and not isinstance(key, bytes):
            raise TypeError(f"signing_key takes bytes or a string, not {type(key).__name__}")
        if key is not None and len(key) < 16:
            raise ValueError(f"signing_key needs at least 16 bytes, not {len(key)}")
        if self.tags_header is not None:
            check_tags_header(self.tags_header)
        if executor is not None and not hasattr(executor, "submit") and not callable(executor):
            raise TypeError(
                "executor takes anything with submit, as a concurrent.futures.Executor, or a "
                f"callable that makes one, not {executor!r}"
            )
        if type(executor).__name__ == "ProcessPoolExecutor":
            raise TypeError(
                "executor runs jobs in this process, where the app and its store are: to render "
                "in others, set workers=0 and start 'python -m wsgi_isr MODULE:APP regenerate'"
            )
        if self.workers == 0 and executor is not None:
            raise ValueError("workers=0 leaves renders to other processes; leave executor out")
        if kind is not None and kind.name == "memory" and self.memory_size == 0:
            raise ValueError("memory:// with memory_size=0 stores nothing; leave one of them out")
        if kind is not None and not kind.wants and self.workers == 0:
            raise ValueError(
                "workers=0 leaves renders to other processes, but this store cannot hand pages "
                "over to them: use a file:// URL or Redis"
            )

    def parameters(self, rule: Rule | None) -> tuple[str, ...]:
        """The query parameters that are part of a page's key."""
        return (rule.parameters if rule is not None else ()) or self.query

    def key(self, origin: Origin, environ: WSGIEnvironment, rule: Rule | None) -> PageKey:
        """The page that a request is for."""
        return PageKey(
            *origin,
            environ.get("PATH_INFO", ""),
            canonical_query(environ.get("QUERY_STRING", ""), self.parameters(rule)),
            () if rule is None else rule.vary_of(environ),
            self.build_id,
        )

    def rule_of(self, key: PageKey) -> Rule | None:
        """The rule of a page, by its canonical request."""
        found = self.rules.resolve(key.to_environ("stale", self.middleware))
        return None if isinstance(found, Excluded) else found

    def find(self, origin: Origin, environ: WSGIEnvironment) -> tuple[PageKey, Rule | None, bool]:
        """The key and the rule of a request, and whether a rule excludes it."""
        found = self.rules.resolve(environ)
        rule = None if isinstance(found, Excluded) else found
        return self.key(origin, environ, rule), rule, found is not rule

    def is_canonical(self, key: PageKey) -> bool:
        """Whether a key may have a page, and is the key of its own canonical request.

        A key that comes from a store has to be, so that nobody invents pages.
        """
        try:
            if is_ambiguous(key.path, key.mount) or key.build != self.build_id:
                return False
            if self.origins.trust(key.scheme, key.host) != key.host:
                return False
            environ = key.to_environ("stale", self.middleware)
            return self.find(Origin(key.scheme, key.host, key.mount), environ)[0] == key
        except ValueError:
            # Text that is no latin-1.
            return False


def mistakes(config: Config, trusted: object, rules: object) -> Iterator[str]:
    """What has no effect, or another than it seems, though the site can go on."""
    base, kind = config.origins.base, config.kind
    if base is not None and trusted is not None:
        yield "trusted_hosts has no effect beside base_url: leave it out"
    if base is not None and base.mount and isinstance(rules, Mapping):
        for pattern in rules:
            if (to_wsgi(pattern) + "/").startswith(base.mount + "/"):
                yield f"rules[{pattern!r}] is for paths below {base.mount}: leave that out"
    if config.previous_builds and not config.build_id:
        yield "previous_builds has no effect without build_id, because all builds have one name"
    elif config.previous_builds and kind is not None and kind.shared == "process":
        yield "previous_builds has no effect, because pages of this store end with their process"
    app: object = config.app
    for _ in range(_MAX_DEPTH):
        name = type(app).__name__
        if name.endswith("ISRMiddleware"):
            yield "ISRMiddleware, or ISR(app), is inside of another one: leave one of them out"
        elif name == "ProxyFix" and base is None:
            yield (
                "ProxyFix is inside of ISR(app) or ISRMiddleware, so pages are rendered without "
                "the public scheme and host: wrap the outcome in ProxyFix, or set base_url"
            )
        app = getattr(app, "app", None) or getattr(app, "wsgi_app", None)


def make_bypass(enabled: bool, bypass: t.Any) -> Bypass | None:
    """One function of ``enabled`` and ``bypass``.

    :raises TypeError: for what is neither cookie names nor a callable.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled takes True or False, not {enabled!r}")
    if not enabled:
        return lambda environ: "disabled"
    if callable(bypass):
        # Where it fails, the app's own answer is right for all.
        return guarded("bypass", lambda environ: "bypass" if bypass(environ) else None, "bypass")
    names = check_list("bypass", bypass, "sessionid")
    for name in names:
        if not isinstance(name, str) or not _COOKIE_NAME.fullmatch(name):
            raise TypeError(f"bypass takes names of cookies, as in ['sessionid'], not {name!r}")
    if not names:
        return None
    pattern = re.compile(r"(?:^|[;,\s])(?:" + "|".join(map(re.escape, names)) + r")\s*=")

    def by_cookie(environ: WSGIEnvironment) -> str | None:
        cookies = environ.get("HTTP_COOKIE")
        return "bypass" if cookies and pattern.search(cookies) else None

    return by_cookie


def name_of(app: object) -> str:
    """Names an app, so that two apps in one folder never share pages by default."""
    owner = getattr(app, "__self__", app)
    name = getattr(owner, "import_name", None) or getattr(owner, "__qualname__", None)
    module = getattr(owner, "__module__", None) or type(owner).__module__
    return f"{module}.{name or type(owner).__qualname__}"


def digest_of_code(folders: Mapping[str, str], excluded: Container[str] = ()) -> str:
    """The same for the same code, on every machine.

    Code is Python files, compiled translations, and all that is in folders of templates.

    :param folders: paths, by names that do not depend on where the app is installed.
    :param excluded: paths of folders with what users uploaded, and the like.
    """
    found: dict[bytes, str] = {}
    for label, root in folders.items():
        for path in _files_under(root, excluded):
            name = os.path.join(label, os.path.relpath(path, root)).replace(os.sep, "/")
            if name.endswith((".py", ".mo")) or "templates" in name.split("/")[:-1]:
                found[os.fsencode(name)] = path
    digest = hashlib.sha256()
    for encoded, path in sorted(found.items()):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            # It vanished, or is not ours to read, so the app does not read it either.
            continue
        # Lengths keep names and contents apart.
        digest.update(b"%s\0%d\0" % (encoded, len(content)))
        digest.update(content)
    return digest.hexdigest()[:16]


def _files_under(root: str, excluded: Container[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_own(os.path.join(folder, name), excluded)]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def _is_own(folder: str, excluded: Container[str]) -> bool:
    name = os.path.basename(folder)
    if name.startswith(".") or name in _FOREIGN or folder in excluded:
        return False
    # A virtual environment beside the app.
    return not os.path.exists(os.path.join(folder, "pyvenv.cfg"))
