"""One attempt at a page: number it, render it, judge it, store it, or say why not."""

from __future__ import annotations

import enum
import json
import logging
import re
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Sequence
from urllib.parse import SplitResult
from urllib.parse import unquote
from urllib.parse import urljoin
from urllib.parse import urlsplit

from . import codings
from . import signals
from .key import canonical_query
from .key import DEFAULT_PORTS
from .key import PageKey
from .metadata import end_to_end
from .metadata import GONE
from .metadata import InvalidMetadata
from .metadata import is_sound
from .metadata import Metadata
from .metadata import read_metadata
from .metadata import REDIRECTS
from .metadata import refusal
from .metadata import REMEDIES
from .page import Page
from .render import close
from .render import Renderer
from .render import RenderError
from .render import Response
from .rules import Rule
from .site import Site
from .stats import Stats
from .store import PageStore
from .store.coordination import Failure
from .store.coordination import Number
from .store.memory import Entry

logger = logging.getLogger("wsgi_isr")

#: Longest pause between attempts at a failing page, in seconds.
MAX_BACK_OFF = 30.0
#: Bytes of an error page that those who wait in other processes share.
MAX_RECORD = 2**20
_DETAIL = re.compile(r"[a-z-]*")
#: Seconds between two log lines on the same thing.
QUIET = 60.0
#: Bytes of a body that is compressed while a visitor waits: a millisecond or two for all codings.
COMPRESSED_AT_ONCE = 32 * 1024


class Kind(enum.Enum):
    STORED = "stored"
    #: Somebody else had stored it meanwhile.
    FOUND = "found"
    #: A page, but not kept: too large, or the store failed.
    UNSTORED = "unstored"
    #: Refused for what it is: the visitor's own request goes to the app.
    NOT_A_PAGE = "not-a-page"
    FAILED = "failed"


class Outcome(t.NamedTuple):
    """What came of an attempt.

    :param detail: the reason of a refusal, in the words of ``Cache-Status``.
    :param response: the app's error page, or an answer too large to be stored.
    :param collapsed: for one who waited on another's attempt.
    """

    kind: Kind
    entry: Entry | None = None
    detail: str = ""
    response: Response | None = None
    error: Exception | None = None
    collapsed: bool = False

    @property
    def stored(self) -> bool:
        return self.kind in (Kind.STORED, Kind.FOUND)

    def discard(self) -> None:
        """Close an answer that was too large to be stored, where no visitor waits for it."""
        if self.response is not None and self.response.rest is not None:
            close(self.response.rest)

    def shared(self) -> Outcome:
        """What those get who waited: of an error page too large to be kept, its status."""
        response = self.response
        if self.kind is not Kind.FAILED or response is None:
            return self
        if response.rest is None and len(response.body) <= MAX_RECORD:
            return self
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        body = f"{response.status}\n".encode("latin-1", "replace")
        return self._replace(response=Response(response.status, headers, body))

    def record(self) -> bytes | None:
        """What others, who waited in other processes, need of an outcome without a page."""
        if self.kind not in (Kind.NOT_A_PAGE, Kind.FAILED):
            return None
        head: dict[str, t.Any] = {"kind": self.kind.value, "detail": self.detail}
        body = b""
        response = self.shared().response
        if self.kind is Kind.FAILED and response is not None:
            head |= {"status": response.status, "headers": response.headers}
            body = response.body
        elif self.error is not None:
            head["error"] = f"{type(self.error).__name__}: {self.error}"
        return json.dumps(head).encode() + b"\n" + body

    @classmethod
    def from_record(cls, data: bytes) -> Outcome | None:
        text, _, body = data.partition(b"\n")
        try:
            head = json.loads(text)
            kind, detail, response, error = Kind(head["kind"]), head["detail"], None, None
            if "status" in head:
                headers = [(str(name), str(value)) for name, value in head["headers"]]
                response = Response(str(head["status"]), headers, body)
                # As with an entry: whoever can write to the store splits no response.
                if not all(is_sound(*item) for item in (*headers, ("Status", response.status))):
                    return None
            elif "error" in head:
                error = RenderError(f"the render failed in another process: {head['error']}")
            if not _DETAIL.fullmatch(detail):
                return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if kind is Kind.FAILED and error is None and (response is None or response.code < 200):
            return None
        if kind not in (Kind.NOT_A_PAGE, Kind.FAILED):
            return None
        return cls(kind, None, detail, response, error, collapsed=True)


class Attempts:
    """Makes attempts, and keeps the books on them."""

    def __init__(
        self,
        site: Site,
        render: Renderer,
        store: PageStore,
        stats: Stats,
        run_behind: Callable[[Callable[[], None]], bool],
    ) -> None:
        self._site = site
        self._sender = site.middleware
        self._clock = site.clock
        self._render = render
        self._store = store
        self._stats = stats
        self._run_behind = run_behind
        self._logged: dict[tuple[PageKey, str], float] = {}

    def __call__(
        self,
        key: PageKey,
        reason: str,
        rule: Rule | None,
        previous: Entry | None,
        awaited: bool = False,
    ) -> Outcome:
        """Render a page and store it if it may be.

        :param previous: what is stored; it stays, unless a good render takes its place.
        :param awaited: whether a visitor waits, who gets a page as it is sooner than compressed.
        """
        # The number first: an invalidation from now on has a later one.
        number = self._store.next_number()
        began = self._clock()
        started = time.perf_counter()
        try:
            response = self._render(key, reason)
        except BaseException as raised:
            error = _as_failure(raised, reason)
            return self._failed(key, previous, reason, Outcome(Kind.FAILED, error=error))
        finally:
            self._stats.rendered(time.perf_counter() - started)
        outcome = self._judge(key, reason, rule, previous, response, number, began, awaited)
        if outcome.kind is Kind.NOT_A_PAGE:
            # The visitor's own request goes to the app instead.
            outcome.discard()
        return outcome

    def _judge(
        self,
        key: PageKey,
        reason: str,
        rule: Rule | None,
        previous: Entry | None,
        response: Response,
        number: Number,
        began: float,
        awaited: bool,
    ) -> Outcome:
        code = response.code
        if response.failure or code >= 500 or code < 200:
            # All who wait get this answer: its cookies would be one session for all of them.
            response.headers = [
                item for item in response.headers if item[0].lower() != "set-cookie"
            ]
            failed = Outcome(Kind.FAILED, detail="status", response=response)
            return self._failed(key, previous, reason, failed)
        try:
            metadata = read_metadata(response.headers, rule)
        except InvalidMetadata as error:
            return self._refused(key, previous, "metadata", response, str(error))
        if metadata is None:
            if previous is None or code not in GONE:
                if previous is not None and code == 200:
                    self._store.drop(key)
                    previous = None
                return self._refused(key, previous, "not-a-page", response)
            # The content is gone, and the app's 404 does not know whose it was.
            metadata = previous.page.metadata
        detail = refusal(code, response.headers, rule)
        declared = self._site.declared_query(rule)
        if detail is None and code in REDIRECTS and _leads_to(key, response.headers, declared):
            detail = "redirect"
        if detail is None and not is_sound("Status", response.status):
            detail = "header"
        if detail is not None:
            return self._refused(key, previous, detail, response)
        if response.rest is not None:
            self._reject(key, "too-large", "")
            self._record_failure(key, previous, "refused: too-large")
            return Outcome(Kind.UNSTORED, None, "too-large", response)
        page = make_page(key, response, rule, metadata, number, began)
        later = awaited and len(response.body) > COMPRESSED_AT_ONCE
        if not later:
            page = codings.compress(page)
        entry, detail = self._store.put(page)
        if later and codings.is_compressible(page):
            # The visitor who waits gets it as it is.
            self._run_behind(lambda: self._store.recode(codings.compress(page)))
        if previous is not None and self._store.failure(page.name) is not None:
            self._store.set_failure(page.name, None)
        if detail is not None:
            if detail != "store-error":
                self._reject(key, detail, "")
            return Outcome(Kind.UNSTORED, entry, detail)
        signals.send(
            signals.page_stored, self._sender, url=key.url, status=page.code, reason=reason
        )
        return Outcome(Kind.STORED, entry)

    def _failed(
        self, key: PageKey, previous: Entry | None, reason: str, outcome: Outcome
    ) -> Outcome:
        self._stats.failures += 1
        why = outcome.error or RenderError(
            outcome.response.failure or f"the app answered {outcome.response.status}"
            if outcome.response is not None
            else "unknown"
        )
        count = self._record_failure(key, previous, str(why) or type(why).__name__)
        signals.send(
            signals.regeneration_failed, self._sender, url=key.url, error=why, failures=count
        )
        if reason in ("stale", "prerender") or previous is not None:
            logger.error(
                "render of %s failed%s",
                key.url,
                "; the last good page stays" if previous is not None else "",
                exc_info=why,
            )
        return outcome._replace(error=why)

    def _record_failure(self, key: PageKey, previous: Entry | None, error: str) -> int:
        """Note a failure where a page is stored; where none is there is no back-off."""
        if previous is None:
            return 1
        name = previous.page.name
        last = self._store.failure(name)
        count = last.times + 1 if last is not None else 1
        # The next visitor tries again at once; from the second failure on 1, 2, 4 ... seconds.
        pause = 0.0 if count == 1 else min(2.0 ** min(count - 2, 10), MAX_BACK_OFF)
        failure = Failure(count, self._clock() + pause, error[:500])
        self._store.set_failure(name, failure)
        previous.retry_at = failure.retry_at
        return count

    def _refused(
        self,
        key: PageKey,
        previous: Entry | None,
        detail: str,
        response: Response,
        value: str = "",
    ) -> Outcome:
        self._reject(key, detail, value)
        error = RenderError(f"{response.status}: not stored ({value or detail})")
        self._record_failure(key, previous, f"refused: {value or detail}")
        return Outcome(Kind.NOT_A_PAGE, None, detail, response, error)

    def _reject(self, key: PageKey, detail: str, value: str) -> None:
        self._stats.rejections += 1
        signals.send(signals.page_rejected, self._sender, url=key.url, reason=detail)
        self.warn_rejected(key, detail, value)

    def warn_rejected(self, key: PageKey, detail: str, value: str = "") -> None:
        """One line for each page and reason, once a minute."""
        now = time.monotonic()
        if now < self._logged.get((key, detail), 0.0):
            return
        if len(self._logged) >= 1000:
            self._logged.clear()
        self._logged[key, detail] = now + QUIET
        what = f"{detail}: {value}" if value else detail
        logger.warning("%s is not stored (%s): %s", key.url, what, REMEDIES[detail])


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


def make_page(
    key: PageKey,
    response: Response,
    rule: Rule | None,
    metadata: Metadata,
    number: Number,
    began: float,
) -> Page:
    return Page(
        key=key,
        status=response.status,
        headers=end_to_end(response.headers),
        bodies={"identity": response.body},
        metadata=metadata,
        generated_at=began,
        sequence=number.sequence,
        lineage=number.lineage,
        vary=tuple(_title(name) for name, _ in rule.variants) if rule is not None else (),
    )


def _title(header: str) -> str:
    return "-".join(part.capitalize() for part in header.split("-"))


def _leads_to(key: PageKey, headers: Sequence[tuple[str, str]], declared: tuple[str, ...]) -> bool:
    """Whether a redirect leads to the page itself, under whatever scheme.

    It does where the app behind ProxyFix takes the canonical request for a plain-text one.
    """
    location = next((value for name, value in headers if name.lower() == "location"), None)
    if location is None:
        return False
    try:
        target = urlsplit(urljoin(key.url, location))
        there = _place(target)
    except ValueError:
        return False
    return (
        there == _place(urlsplit(key.url))
        and unquote(target.path or "/", "latin-1") == (key.full_path or "/")
        and canonical_query(target.query, declared) == key.query
    )


def _place(url: SplitResult) -> tuple[str, int | None]:
    """Host and port of a URL, the default port of whatever scheme as ``None``."""
    default = int(DEFAULT_PORTS.get(url.scheme, "0"))
    port = None if url.port == default else url.port
    return (url.hostname or "").removesuffix("."), port
