"""Pages and coordination on a Redis or Valkey server, for any number of machines.

Whatever has to be one step is a script on the server, in `wsgi_isr.store.scripts`. A process
learns of changes from a channel that the server publishes them on; looking twice a second is what
stands behind that. Neither happens while a visitor waits.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
import typing as t
from collections.abc import Sequence

from ..state import Epochs
from ..state import Invalidation
from . import advice
from . import leases
from . import scripts
from .announcements import Channel
from .announcements import StoredPages
from .backend import RETENTION
from .builds import before
from .builds import MAX_BUILDS
from .clients import told_apart
from .coordination import Accept
from .coordination import Failure
from .coordination import Held
from .coordination import Lease
from .coordination import LOST
from .coordination import MAX_LABELS
from .coordination import Number
from .coordination import StoreError
from .coordination import WritesRefused
from .following import Follower
from .following import POLL
from .leases import RemoteLease
from .records import format_line
from .records import parse_line
from .redis_jobs import RedisJobs
from .redis_pages import RedisStorage
from .workers import WorkerKeys

if t.TYPE_CHECKING:
    from .backend import Storage

#: Comparisons that may fail before a page is given up: each time somebody else has stored it.
MAX_TRIES = 20

logger = logging.getLogger("wsgi_isr")


class RedisCoordination:
    """Coordination of all processes, on whatever machines, that share a server.

    Nothing is connected before it is needed.
    """

    #: Between two looks at another's render: each is a round trip to the server.
    watch = (0.005, 0.05)

    def __init__(self, storage: RedisStorage) -> None:
        self._storage = storage
        self._client = storage.client
        self._prefix = storage.prefix
        self._keys = [f"{self._prefix}clock", f"{self._prefix}labels"]
        # Channels know no databases.
        database = self._client.connection_pool.connection_kwargs.get("db") or 0
        self._channel = Channel(self._client, f"{self._prefix}changes:{database}")
        self._call = scripts.Runner(self._client)
        # Not from 0: pages that were in memory before a fork know the parent's numbers.
        self._marks = itertools.count(secrets.randbits(62))
        self.signal = [next(self._marks), next(self._marks)]
        self._epochs = Epochs("")
        #: The last number seen in this lineage, and the server's run in which that was.
        self._seen = 0
        self._run = ""
        #: How many pages were stored, when the server was last asked.
        self._stores = 0
        self._pages = StoredPages(self.signal, self._marks)
        self._lock = threading.RLock()
        self._follower = Follower(self.follow)
        self._heart = leases.Heart()
        self._workers = WorkerKeys(self._client, f"{self._prefix}worker:")
        self.leave_stats, self.all_stats = self._workers.leave, self._workers.all
        self.jobs = RedisJobs(self._client, self._call, f"{self._prefix}jobs:", database)
        self._judged = False

    def after_fork(self) -> None:
        """There is nothing from before: each process has its own."""

    # Renders and invalidations in one order.

    def _order(self, script: str, *args: object) -> Number:
        """Run one of the scripts on the order, and take in what has changed."""
        with self._lock:
            known = (self._epochs.lineage, self._seen, self._run)
        token = secrets.token_hex(8)
        answer = self._call(script, self._keys, self._channel.name, token, *known, *args)
        lineage, run = answer[0].decode(), answer[1].decode()
        sequence, stores, floor, hard = map(int, answer[2:6])
        with self._lock:
            epochs = self._epochs
            if lineage != epochs.lineage:
                if lineage == known[0]:
                    # From before a new lineage, which another thread has found meanwhile.
                    return Number(lineage, sequence)
                epochs = Epochs(lineage)
                if known[0]:
                    logger.warning(LOST)
            changed = self._take_in(epochs, Invalidation(floor, hard), answer[6])
            if epochs is not self._epochs:
                self._epochs, self._seen = epochs, 0
                self._pages.begin(stores)
                changed = True
            if sequence >= self._seen:
                # Answers may overtake each other.
                self._seen = epochs.sequence = sequence
                self._run, self._stores = run, stores
            if changed:
                # Only now: who sees the signal change finds the epochs changed.
                self.signal[0] = next(self._marks)
        self._follower.looked()
        return Number(lineage, sequence)

    def _take_in(self, epochs: Epochs, floor: Invalidation, entries: list[bytes]) -> bool:
        # This process may have forgotten more than the server, and answers overtake each other.
        floor = Invalidation(*map(max, epochs.floor, floor))
        changed = bool(entries) or epochs.floor != floor
        epochs.floor = floor
        for entry, number in zip(entries[::2], entries[1::2], strict=True):
            label = entry[1:].decode(errors="replace")
            epochs.apply(int(float(number)), label, entry[:1] == b"h")
        if len(epochs) > MAX_LABELS:
            epochs.forget_oldest(MAX_LABELS // 2)
        return changed

    def epochs(self) -> Epochs:
        if not self._epochs.lineage:
            self._order(scripts.SYNC)
        self._follower.start()
        return self._epochs

    def next_number(self) -> Number:
        return self._order(scripts.NUMBER)

    def invalidate(self, labels: Sequence[str], hard: bool) -> Number:
        return self._order(scripts.INVALIDATE, MAX_LABELS, int(hard), *labels)

    # What others do.

    def poll(self) -> None:
        """No round trip, unless the thread that makes it does not run."""
        self._follower.start()
        if self._follower.error is not None:
            raise StoreError(str(self._follower.error)) from self._follower.error
        if self._follower.is_late:
            self._order(scripts.SYNC)
            self._pages.catch_up(self._stores)

    def probe(self) -> None:
        """Whether the server takes writes and can be followed."""
        refused = None
        try:
            with told_apart():
                self._client.set(f"{self._prefix}probe", b"1", px=1000)
        except WritesRefused as error:
            refused = error
        self._order(scripts.SYNC)
        if refused is not None:
            raise refused

    def follow(self) -> None:
        """Take in what the server announces, and look for what it did not."""
        end = time.monotonic() + POLL
        self._follower.busy_since = time.monotonic()
        listening = self._channel.open()
        self._order(scripts.SYNC)
        self._workers.keep()
        if not self._judged:
            advice.tell(self._client)
            self._judged = True
        self._follower.busy_since = 0.0
        stores = self._stores
        if not listening:
            self._pages.catch_up(stores)
        while (left := end - time.monotonic()) > 0:
            announcement = self._channel.next(left)
            if announcement is not None:
                self._hear(announcement)
        # What has not been announced by now was announced to nobody here.
        self._pages.catch_up(stores)

    def _hear(self, announcement: bytes) -> None:
        """Take in ``i`` and the number of an invalidation, or ``s``, count, process and page."""
        kind, words = announcement[:1], announcement[1:].decode(errors="replace").split(" ")
        if kind == b"s" and len(words) == 3 and words[0].isdecimal():
            self._pages.announced(int(words[0]), words[1], words[2])
        elif not words[0].isdecimal() or int(words[0]) > self._seen:
            self._order(scripts.SYNC)

    def stored(self, name: str) -> object:
        return self._pages.mark(name)

    # One render of a page.

    def acquire(self, name: str, seconds: float, on_demand: bool) -> Lease | Held:
        lease = RemoteLease(name, seconds, on_demand, self._extend, self._release)

        def acquire(term: float) -> t.Any:
            demanded = int(on_demand)
            return self._call(
                scripts.ACQUIRE, [self._lease(name)], lease.token, _ms(term), demanded
            )

        held = leases.take(self._heart, lease, seconds, acquire)
        return lease if held is None else Held(held.decode(errors="replace"))

    def _lease(self, name: str) -> str:
        return f"{self._prefix}lease:{name}"

    def _outcome(self, token: str) -> str:
        return f"{self._prefix}outcome:{token}"

    def _extend(self, lease: RemoteLease, term: float) -> bool:
        keys = [self._lease(lease.name)]
        return bool(self._call(scripts.EXTEND, keys, _content(lease), _ms(term)))

    def _release(self, lease: RemoteLease, outcome: bytes | None) -> None:
        keys = [self._lease(lease.name), self._outcome(lease.token)]
        left = () if outcome is None else (outcome, _ms(leases.OUTCOME))
        self._call(scripts.RELEASE, keys, _content(lease), *left)

    def outcome(self, name: str, token: str) -> bytes | None:
        left: bytes | None = self._client.get(self._outcome(token))
        return left

    # Pages.

    def swap(self, storage: Storage, name: str, data: bytes, accept: Accept) -> bool:
        if not self._epochs.lineage:
            self._order(scripts.SYNC)
        keys, half = self._keys_of(name)
        for _ in range(MAX_TRIES):
            lineage = self._epochs.lineage
            there = self._there(keys[0])
            # Judged here, because a script can neither check an entry nor tell a forged one.
            if not accept(there):
                return False
            there = there or b""
            known = (len(there), there[: scripts.HEAD])
            news = (self._channel.name, f"{self._pages.me} {name}")
            stored = self._call(scripts.SWAP, keys, *news, lineage, *known, data, RETENTION, half)
            if stored > 0:
                self._pages.here(stored)
                return True
            if stored < 0:
                self._order(scripts.SYNC)
        raise StoreError(f"others have stored the page {MAX_TRIES} times meanwhile")

    def _keys_of(self, name: str) -> tuple[list[str], str]:
        """The keys that storing a page changes, and what the index of its path has of it."""
        path_digest, _, half = name.partition(".")
        return [self._prefix + name, self._keys[0], self._storage.index(path_digest)], half

    def _there(self, key: str) -> bytes | None:
        # Not from a replica that the cache may read from.
        try:
            data: bytes | None = self._client.get(key)
        except Exception as error:
            if str(error).startswith("WRONGTYPE"):
                return None
            raise
        return data

    def remove(self, storage: Storage, name: str) -> None:
        news = (self._channel.name, f"{self._pages.me} {name}")
        keys, half = self._keys_of(name)
        self._pages.here(self._call(scripts.REMOVE, keys, *news, half))

    def failure(self, name: str) -> Failure | None:
        record = parse_line((self._client.get(f"{self._prefix}failure:{name}") or b"").strip())
        return Failure.from_record(record)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        key = f"{self._prefix}failure:{name}"
        with told_apart():
            if failure is None:
                self._client.delete(key)
            else:
                self._client.set(key, format_line(list(failure)), ex=leases.FAILURE)

    def note_build(self, build: str) -> list[str]:
        known = self._call(scripts.BUILDS, [f"{self._prefix}builds"], build, MAX_BUILDS)
        return before([name.decode() for name in known], build)


def _ms(seconds: float) -> int:
    return max(1, int(1000 * seconds))


def _content(lease: RemoteLease) -> str:
    return f"{lease.token}|{int(lease.on_demand)}"
