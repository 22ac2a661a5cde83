"""One attempt at a page: number it, render it, judge it, then store it or say why not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urljoin, urlsplit

from . import codings, signals
from .config import Config
from .key import DEFAULT_PORTS, PageKey, canonical_query
from .metadata import (
    GONE,
    NO_DEFAULTS,
    NOT_NOW,
    REDIRECTS,
    InvalidMetadata,
    end_to_end,
    is_sound,
    read_metadata,
)
from .metrics import Counters
from .outcome import Kind, Outcome
from .page import Page
from .refusals import Refusal, answered, form_token, refusal
from .render import Renderer, RenderError, RenderTimeout, Response
from .rules import Rule
from .signals import fields
from .store.memory import Entry
from .store.pages import Pages
from .store.protocol import Failure, Number

logger = logging.getLogger("wsgi_isr")

#: Longest pause between attempts at a failing page, in seconds.
MAX_BACK_OFF = 30.0
#: Seconds between two log lines about one page and reason.
QUIET = 60.0
#: Log lines of the last minute, and failing pages, that a process remembers.
MAX_LOGGED = 1000
#: Bytes of a body that is compressed while a visitor waits: a millisecond or two.
COMPRESSED_AT_ONCE = 32 * 1024


class _Unsound(RenderError):
    """An answer that cannot go over the wire as it is."""


class Attempts:
    """Makes attempts, counts them, and remembers failures."""

    def __init__(
        self,
        config: Config,
        render: Renderer,
        pages: Pages,
        counters: Counters,
        run_later: Callable[[Callable[[], None]], bool],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._sender = config.middleware
        self._clock = clock
        self._render = render
        self._pages = pages
        self._counters = counters
        self._run_later = run_later
        self._logged: dict[str, float] = {}
        #: Names of pages whose renders have failed here.
        self._failed_here: set[str] = set()

    def __call__(
        self,
        key: PageKey,
        reason: str,
        rule: Rule | None,
        previous: Entry | None,
        number: Number,
    ) -> Outcome:
        """Render a page and store it if it may be.

        :param previous: what is stored. It stays unless a good render replaces it, or the app
            withdraws it.
        :param number: of this render, taken before it begins.
        """
        began = self._clock()
        started = time.perf_counter()
        seconds = 0.0
        try:
            response = self._render(key, reason)
        except BaseException as raised:
            error = _as_failure(raised, reason)
            return self._failed(key, previous, reason, Outcome(Kind.FAILED, error=error))
        finally:
            seconds = time.perf_counter() - started
            self._counters.rendered(seconds)
        code, millis = response.code, 1000 * seconds
        extra = fields("rendered", url=key.url, status=code, seconds=seconds, reason=reason)
        logger.debug("rendered %s %s in %.0f ms (%s)", key.url, code, millis, reason, extra=extra)
        try:
            made = self._judge(key, rule, previous, response)
            if not isinstance(made, Page):
                return self._refused(key, previous, reason, response, made)
        except Exception as error:
            # What cannot be judged is no page: the old one stays.
            response.discard()
            outcome = Outcome(Kind.FAILED, error=error)
            if isinstance(error, InvalidMetadata | _Unsound):
                detail = "metadata" if isinstance(error, InvalidMetadata) else "header"
                self.reject(key, Refusal(detail, str(error)))
                outcome = outcome._replace(detail=detail, response=_without_cookies(response))
            return self._failed(key, previous, reason, outcome)
        made.rendered(began, seconds, reason, None if previous is None else previous.page)
        made.sequence, made.lineage = number.sequence, number.lineage
        return self._store(made, previous, reason)

    # Judging.

    def _judge(
        self, key: PageKey, rule: Rule | None, previous: Entry | None, response: Response
    ) -> Page | Refusal | None:
        """The page that a response makes, why it is none, or ``None`` for a failed render.

        :raises InvalidMetadata: for ISR headers that do not parse.
        """
        code = response.code
        if code >= 500 or code < 200 or code in NOT_NOW or response.detail == "too-slow":
            return None
        for name, value in (*response.headers, ("Status", response.status)):
            if not is_sound(name, value):
                raise _Unsound(f"HTTP does not allow {name[:80]!r}: {value[:80]!r}")
        if response.detail == "stream":
            return Refusal("stream")
        headers = response.headers
        if code in REDIRECTS and _leads_to(key, headers, self._config.parameters(rule)):
            return Refusal("redirect", next(v for k, v in headers if k.lower() == "location"))
        variants = dict(rule.variants) if rule is not None else {}
        ignored = rule.ignored if rule is not None else frozenset()
        metadata = read_metadata(headers, NO_DEFAULTS if rule is None else rule.defaults)
        if metadata is None:
            if previous is None or code not in GONE:
                return Refusal("no-metadata", answered(code, headers))
            # The content is gone, and the app's 404 does not know whose it was.
            metadata = previous.page.metadata
        if refused := refusal(code, headers, variants, ignored) or _login(key, code, headers):
            return refused
        if ignored and (token := form_token(response.body)) is not None:
            return Refusal("form-token", token)
        if response.detail == "too-large":
            response.headers = [item for item in headers if item[0].lower() not in ignored]
            return Refusal("too-large")
        return Page(
            key=key,
            status=response.status,
            headers=end_to_end(headers, ignored),
            bodies={"identity": response.body},
            metadata=metadata,
            generated_at=0.0,
            vary=tuple(_title(name) for name in variants),
        )

    def _store(self, page: Page, previous: Entry | None, reason: str) -> Outcome:
        awaited = reason in ("miss", "stale") and len(page.bodies["identity"]) > COMPRESSED_AT_ONCE
        if not awaited:
            page = codings.compress(page)
        entry, detail = self._pages.put(page)
        if awaited and codings.is_compressible(page):
            # The visitor who waits gets it as it is.
            self._run_later(lambda: self._pages.recode(codings.compress(page)))
        if previous is not None and previous.retry_at or page.name in self._failed_here:
            self._forget_failure(page.name)
        if detail is not None:
            if detail != "store-error":
                self.reject(page.key, Refusal(detail))
            return Outcome(Kind.UNSTORED, entry, detail, status=page.code)
        signals.send(
            signals.page_stored, self._sender, url=page.key.url, status=page.code, reason=reason
        )
        return Outcome(Kind.STORED, entry, status=page.code)

    def _refused(
        self,
        key: PageKey,
        previous: Entry | None,
        reason: str,
        response: Response,
        refused: Refusal | None,
    ) -> Outcome:
        """An answer that is no page: the app's decision, or a failure."""
        if refused is None:
            outcome = Outcome(
                Kind.FAILED,
                detail=response.detail or "status",
                response=_without_cookies(response),
                status=response.code,
            )
            return self._failed(key, previous, reason, outcome)
        self.reject(key, refused)
        # The app has answered, so its last render did not fail, whichever process saw it do so.
        self._forget_failure(key.name)
        error = RenderError(f"{response.status}: not stored ({refused})")
        withdrawn = previous is not None
        if withdrawn or reason == "revalidate":
            self._pages.withdraw(key)
        if withdrawn:
            logger.warning(
                "%s is withdrawn: its app no longer offers it (%s)",
                key.url,
                refused,
                extra=fields("withdrawn", url=key.url, detail=refused.detail),
            )
            signals.send(signals.page_withdrawn, self._sender, url=key.url, reason=refused.detail)
        kind = Kind.NOT_A_PAGE
        if refused.detail == "too-large":
            kind = Kind.UNSTORED
        else:
            # The visitor's own request goes to the app instead.
            response.discard()
        return Outcome(
            kind, None, refused.detail, response, error, withdrawn=withdrawn, status=response.code
        )

    # Failures.

    def _failed(
        self, key: PageKey, previous: Entry | None, reason: str, outcome: Outcome
    ) -> Outcome:
        self._counters.failures += 1
        why = outcome.error
        response = outcome.response
        if why is None and response is not None:
            if response.detail == "too-slow":
                why = RenderTimeout("the app still sent blocks after render_timeout")
            elif isinstance(response.error, Exception):
                why = RenderError(
                    f"{response.status}: {type(response.error).__name__}: {response.error}"
                )
                why.__cause__ = response.error
        if why is None:
            why = RenderError(f"the app answered {response.status if response else 'nothing'}")
        kind = type(why).__name__
        count = self._remember_failure(key, previous, str(why) or kind)
        signals.send(
            signals.regeneration_failed, self._sender, url=key.url, error=why, failures=count
        )
        is_ours = reason in ("stale", "prerender") or previous is not None
        # What a cold render raises reaches the server, which logs it.
        if is_ours and self._is_new("failed", key.name, kind):
            stays = "; the last good page stays" if previous is not None else ""
            extra = fields("failed", url=key.url, reason=reason, failures=count, error=str(why))
            logger.error("render of %s failed%s", key.url, stays, exc_info=why, extra=extra)
        return outcome._replace(error=why)

    def _remember_failure(self, key: PageKey, previous: Entry | None, error: str) -> int:
        """Remember a failure; where nothing is stored the next visitor is a new attempt."""
        pages, name = self._pages, key.name
        last = pages.guard.ask("failure", lambda: pages.store.failure(name))
        count = last.times + 1 if last is not None else 1
        # The next visitor tries again at once; from the second failure on 1, 2, 4 ... seconds.
        pause = 0.0
        if previous is not None and count > 1:
            pause = min(2.0 ** min(count - 2, 10), MAX_BACK_OFF)
        failure = Failure(count, self._clock() + pause, error[:500], key.url, key.build)
        pages.guard.ask("failure", lambda: pages.store.set_failure(name, failure), write=True)
        if len(self._failed_here) < MAX_LOGGED:
            self._failed_here.add(name)
        if previous is not None:
            previous.retry_at = failure.retry_at
        return count

    def _forget_failure(self, name: str) -> None:
        self._failed_here.discard(name)
        store = self._pages.store
        self._pages.guard.ask("failure", lambda: store.set_failure(name, None), write=True)

    # Refusals.

    def reject(self, key: PageKey, refused: Refusal) -> None:
        """Count it; one line for each page and reason, once a minute; what `explain` says later."""
        self._counters.rejections += 1
        signals.send(signals.page_rejected, self._sender, url=key.url, reason=refused.detail)
        if not self._is_new("refused", key.name, refused.detail):
            return
        extra = fields("refused", url=key.url, detail=refused.detail, culprit=refused.culprit)
        logger.warning("%s is not stored (%s): %s", key.url, refused, refused.remedy, extra=extra)
        why = Failure(0, self._clock(), str(refused)[:500], key.url, key.build)
        pages, name = self._pages, refusal_name(key.name)
        pages.guard.ask("refusal", lambda: pages.store.set_failure(name, why), write=True)

    def _is_new(self, *what: str) -> bool:
        """Whether nobody on the site has logged that in the last minute."""
        name, now = ":".join(what), time.monotonic()
        if now < self._logged.get(name, 0.0):
            return False
        if len(self._logged) >= MAX_LOGGED:
            self._logged.clear()
        self._logged[name] = now + QUIET
        pages = self._pages
        is_first = pages.guard.ask("once", lambda: pages.store.once(name, QUIET), write=True)
        return is_first is not False


def refusal_name(name: str) -> str:
    """The name under which a store remembers why a page was refused last, as a `Failure`.

    It has no times: nobody waits before they try again.
    """
    return f"refused:{name}"


def _as_failure(raised: BaseException, reason: str) -> Exception:
    """What a render raised, where an app that exits ends its render and nothing else.

    :raises BaseException: on the main thread, for what may come from a signal that ends the
        process: Ctrl-C, and `SystemExit` while a visitor is served.
    """
    if isinstance(raised, Exception):
        return raised
    if threading.current_thread() is threading.main_thread():
        if isinstance(raised, KeyboardInterrupt) or reason in ("miss", "stale"):
            raise raised
    error = RenderError(f"the app raised {raised!r}")
    error.__cause__ = raised
    return error


def _without_cookies(response: Response) -> Response:
    """An answer for all who wait: its cookies would be one session for all of them."""
    response.headers = [item for item in response.headers if item[0].lower() != "set-cookie"]
    return response


def _title(header: str) -> str:
    return "-".join(part.capitalize() for part in header.split("-"))


def _login(key: PageKey, code: int, headers: Sequence[tuple[str, str]]) -> Refusal | None:
    """A temporary redirect that carries the page's own URL leads to a login."""
    if code in (302, 307):
        location = next((value for name, value in headers if name.lower() == "location"), "")
        pairs = parse_qsl(location.partition("?")[2], encoding="latin-1")
        if any(value.partition("?")[0].endswith(key.full_path or "/") for _, value in pairs):
            return Refusal("login", location)
    return None


def _leads_to(key: PageKey, headers: Sequence[tuple[str, str]], declared: tuple[str, ...]) -> bool:
    """Whether a redirect leads to the page itself, under whatever scheme.

    It does where the app behind ProxyFix takes the canonical request for a plain-text one.
    """
    location = next((value for name, value in headers if name.lower() == "location"), None)
    if location is None:
        return False
    try:
        there = urlsplit(urljoin(key.url, location))
        same_place = _place(there) == _place(urlsplit(key.url))
    except ValueError:
        return False
    return (
        same_place
        and unquote(there.path or "/", "latin-1") == (key.full_path or "/")
        and canonical_query(there.query, declared) == key.query
    )


def _place(url: SplitResult) -> tuple[str, int | None]:
    """Host and port of a URL; the default port of either scheme is ``None``."""
    default = int(DEFAULT_PORTS.get(url.scheme, "0"))
    port = None if url.port == default else url.port
    return (url.hostname or "").removesuffix("."), port
