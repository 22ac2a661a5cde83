"""`Status`: a small web site for operators and editors, mounted wherever you like.

It shows what all processes have counted and are doing, which pages there are, why a page is as it
is, and who invalidated what. Two buttons regenerate a page and expire it. It is plain HTML that
works without scripts, and fetches nothing from elsewhere.

.. code-block:: python

    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from wsgi_isr.status import Status

    isr = ISRMiddleware(site)
    app = DispatcherMiddleware(isr, {"/_isr": Status(isr, secret=os.environ["STATUS_SECRET"])})
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
import typing as t
import zlib
from collections.abc import Callable, Iterable
from urllib.parse import quote, urlencode

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.wrappers import Request, Response

from ..metrics import CONTENT_TYPE, bearer, exposition
from ..ondemand import RevalidationError, called_by
from ..route import answer
from . import views
from .assets import CSS, JS
from .parts import Context, login, refused

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..middleware import ISRMiddleware

logger = logging.getLogger("wsgi_isr")

#: Characters of a secret under which it can be guessed.
MIN_SECRET = 16
COOKIE = "isr_status"
#: Seconds that a login lasts.
LIFETIME = 8 * 3600
#: Attempts to log in, from addresses that share a bucket, in so many seconds.
ATTEMPTS, PERIOD = 5, 60
BUCKETS = 64
#: Bytes of a form.
MAX_FORM = 16 * 1024


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_source(CSS)}; script-src {_source(JS)}; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: Where a login may lead.
_NEXT = re.compile(r"/(?:pages|page|invalidations)?(?:\?[!-~]*)?")
_VIEWS: dict[str, Callable[[Context, t.Mapping[str, str]], str]] = {
    "/": views.overview,
    "/pages": views.page_list,
    "/page": views.one_page,
    "/invalidations": views.journal,
}
_CHANGES = ("/logout", "/regenerate", "/expire")
#: All that there is, behind the mount point, and that itself.
PATHS = frozenset({"", *_VIEWS, *_CHANGES, "/login", "/metrics", "/revalidate"})


class Status:
    """The status page: a WSGI app for those who have a secret.

    Behind a proxy, put Werkzeug's ``ProxyFix`` around it: attempts to log in are counted by the
    address of a visitor, and the cookie is sent over HTTPS alone where the visitor's scheme is
    ``https``.

    :param isr: the middleware, or an extension that has one.
    :param secret: what visitors log in with, a string or bytes; under 16 characters a warning.
    :param admit: whom it returns true for needs no login; it takes an environ.
    :raises ValueError: for an empty secret.
    :raises TypeError: for a secret of the wrong kind.
    """

    def __init__(
        self,
        isr: t.Any,
        *,
        secret: str | bytes,
        admit: Callable[[WSGIEnvironment], object] | None = None,
    ) -> None:
        if not isinstance(secret, str | bytes):
            raise TypeError(f"secret takes a string or bytes, not {type(secret).__name__}")
        if not secret:
            raise ValueError("the status page needs a secret: it shows and changes what is stored")
        if len(secret) < MIN_SECRET:
            logger.warning(
                "the secret (in Flask ISR_SECRET) has fewer than %d characters: it can be guessed",
                MIN_SECRET,
            )
        self._isr = isr
        self._admit = admit
        token = secret.encode() if isinstance(secret, str) else secret
        self._key = hmac.digest(token, b"wsgi-isr status page", hashlib.sha256)
        self._secret = self._sign("secret", token)
        self._attempts: dict[int, list[float]] = {}

    @property
    def middleware(self) -> ISRMiddleware:
        return t.cast("ISRMiddleware", getattr(self._isr, "middleware", self._isr))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = request.max_form_memory_size = MAX_FORM
        try:
            response = self._answer(request)
        except HTTPException as error:
            response = error.get_response(environ)
        except Exception:
            logger.exception("the status page cannot be shown")
            context = Context(self.middleware, _root(request), "")
            why = "This cannot be shown now: perhaps the store is away. The log says more."
            response = _html(refused(context, why), 503)
        response.headers.extend(HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        root = _root(request)
        path = request.environ.get("PATH_INFO", "")
        if not path:
            return Response(status=308, headers={"Location": f"{root}/"})
        if path == "/revalidate":
            return answer(self.middleware, request.environ, self._has_token(request.environ))
        session = self._session(request)
        context = Context(self.middleware, root, self._sign("form", session))
        if path == "/login" and request.method == "POST":
            return self._login(request, context)
        if session is None and not (path == "/metrics" and self._has_token(request.environ)):
            # The same for every path: what there is does not show.
            query = request.query_string.decode("latin-1")
            wanted = f"{path}?{query}" if query else path
            return self._refused(context, 401, "", wanted)
        if path in _CHANGES:
            response = self._change(request, context, path)
        elif path not in (*_VIEWS, "/metrics"):
            raise NotFound("There is no such page here.")
        elif request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(["GET", "HEAD"])
        elif path == "/metrics":
            response = Response(exposition(self.middleware), content_type=CONTENT_TYPE)
        else:
            response = _html(_VIEWS[path](context, request.args))
        if session and path != "/logout" and request.cookies.get(COOKIE) != session:
            self._set_cookie(request, response, session)
        return response

    # Who may see it.

    def _sign(self, what: str, value: str | bytes | None) -> str:
        data = value if isinstance(value, bytes) else (value or "").encode()
        return hmac.new(self._key, b"%s:%s" % (what.encode(), data), hashlib.sha256).hexdigest()

    def _new_session(self, kind: str) -> str:
        session = f"{kind}.{int(time.time()) + LIFETIME}.{secrets.token_hex(8)}"
        return f"{session}.{self._sign('session', session)}"

    def _session(self, request: Request) -> str | None:
        """The session of a visitor who is let in: what their cookie says, or a new one."""
        cookie = request.cookies.get(COOKIE, "")
        session, _, signature = cookie.rpartition(".")
        valid = hmac.compare_digest(signature.encode(), self._sign("session", session).encode())
        kind, ends = session.split(".")[:2] if valid else ("", "0")
        if time.time() >= int(ends):
            kind = ""
        if kind == "secret":
            return cookie
        if self._admit is None or not self._admit(request.environ):
            return None
        # Theirs holds only while they are admitted: it is there for the tokens of forms.
        return cookie if kind == "admitted" else self._new_session("admitted")

    def _set_cookie(self, request: Request, response: Response, value: str) -> None:
        response.set_cookie(
            COOKIE,
            value,
            max_age=LIFETIME if value else 0,
            path=f"{_root(request)}/",
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )

    def _has_token(self, environ: WSGIEnvironment) -> bool:
        """Whether a program sends the secret as its bearer token."""
        return hmac.compare_digest(self._sign("secret", bearer(environ)), self._secret)

    def _login(self, request: Request, context: Context) -> Response:
        wanted = request.form.get("next", "/")
        if not self._may_try(request.remote_addr or ""):
            return self._refused(context, 429, "Too many attempts. Wait a minute.", wanted)
        given = self._sign("secret", request.form.get("secret", ""))
        if not hmac.compare_digest(given, self._secret):
            return self._refused(context, 401, "That is not the secret.", wanted)
        location = wanted if _NEXT.fullmatch(wanted) else "/"
        response = _moved(context.root + location)
        self._set_cookie(request, response, self._new_session("secret"))
        return response

    def _may_try(self, address: str) -> bool:
        """Whether an attempt is not one too many; over all processes, where the store can say."""
        bucket = zlib.crc32(address.encode()) % BUCKETS
        now = time.monotonic()
        recent = [at for at in self._attempts.get(bucket, ()) if now - at < PERIOD]
        self._attempts[bucket] = [*recent, now][-ATTEMPTS:]
        if len(recent) == ATTEMPTS:
            return False
        store = self.middleware.store
        try:
            return any(store.once(f"login:{bucket}:{slot}", PERIOD) for slot in range(ATTEMPTS))
        except Exception:
            return True

    def _refused(self, context: Context, status: int, why: str, wanted: str) -> Response:
        response = _html(login(context, why, wanted), status)
        if status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="wsgi-isr"'
        else:
            response.headers["Retry-After"] = str(PERIOD)
        return response

    # What they may do.

    def _change(self, request: Request, context: Context, path: str) -> Response:
        if request.method != "POST":
            raise MethodNotAllowed(["POST"])
        given = request.form.get("csrf_token", "")
        if not hmac.compare_digest(given.encode(), context.token.encode()):
            problem = "This form is too old, or comes from elsewhere. Nothing was changed."
            return _html(refused(context, problem), 403)
        if path == "/logout":
            response = _moved(f"{context.root}/")
            self._set_cookie(request, response, "")
            return response
        url, done = request.form.get("url", ""), "expired"
        try:
            with called_by(f"status page, {request.remote_addr or 'no address'}"):
                if path == "/regenerate":
                    results = context.middleware.revalidate(url)
                    done = results[0].outcome if results else "off"
                else:
                    key = context.middleware.explain(url).key
                    # Its asterisks are encoded, so it is no pattern.
                    path = key["mount"] + key["path"]
                    context.middleware.invalidate(path or "/", expire=True)
        except (RevalidationError, ValueError) as error:
            return _html(views.one_page(context, {"url": url}, str(error)))
        query = urlencode({"url": url, "done": done})
        return _moved(f"{context.root}/page?{query}")


def _root(request: Request) -> str:
    """The mount point, as a link has it."""
    return quote(request.environ.get("SCRIPT_NAME", "").encode("latin-1"))


def _html(text: str, status: int = 200) -> Response:
    # An exception's message may have what UTF-8 cannot spell.
    return Response(text.encode("utf-8", "replace"), status, mimetype="text/html")


def _moved(location: str) -> Response:
    return Response(status=303, headers={"Location": location})
