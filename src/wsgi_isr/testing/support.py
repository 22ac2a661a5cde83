"""What the tests of stores are made of."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest

from ..page import Invalidated
from ..store.protocol import Busy, Number, Record, Store

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED
NOTHING = Number("", 0)
FOREIGN = Number("another lineage", 10**6)
#: Seconds within which another process sees a change, and within which a killed one is replaced.
FOLLOWS, TAKEN_OVER = 1.0, 6.0
#: Seconds that a busy machine may add to those.
GRACE = 1.0


def make_record(name: str, number: Number, **fields: t.Any) -> Record:
    """A page of a host, whose labels follow from its path and ``tags``."""
    path, tags = fields.get("path", "/blog/1"), fields.pop("tags", ())
    labels = (f"path:{path}", f"host:example.com{path}", f"page:{name}")
    record = Record(name, labels, number, "build", path, False, b"head", b"body")
    return record._replace(labels=(*labels, *(f"tag:{tag}" for tag in tags)), **fields)


def eventually(check: Callable[[], t.Any], seconds: float) -> t.Any:
    """The first true value of a check, or the last one when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def differs(read: Callable[[], t.Any], before: object, seconds: float) -> bool:
    """Whether something is another value within so many seconds."""
    return bool(eventually(lambda: read() != before, seconds))


def run_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work in threads that begin together, and raise what one of them raised."""
    barrier, errors = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def listening(store: Store) -> Iterator[Callable[[], bool]]:
    """Call `Store.listen` in a thread; gives whether the store announces anything."""
    stop, announces = threading.Event(), threading.Event()

    def listen() -> None:
        while not stop.is_set() and store.listen(0.2):
            announces.set()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield lambda: announces.is_set() or thread.is_alive()
    finally:
        stop.set()
        thread.join()


def take_lease(store: Store, name: str) -> t.Any:
    lease = store.lease(name, 60, False)
    return None if isinstance(lease, Busy) else lease


def add_often(store: Store, times: int) -> None:
    for _ in range(times):
        store.add({"hits": 1})


def work_in_process(
    factory: Callable[..., Store], arguments: tuple[t.Any, ...], work: t.Any, *more: t.Any
) -> None:
    store = factory(*arguments)
    work(store, *more)
    store.close()


class Contract:
    """Fixtures: a store, and another one on the same data."""

    #: False for a store that leaves pages to the memory of its process.
    keeps_pages = True
    #: A picklable callable that opens the store in another process, with the result of the fixture
    #: ``store_arguments``; without it no processes are started.
    store_factory: t.ClassVar[Callable[..., Store] | None] = None

    @pytest.fixture
    def open_store(self) -> Callable[[], Store]:
        """How to open one more store on the same data, as another process does."""
        raise NotImplementedError("override the fixture open_store")

    @pytest.fixture
    def store_arguments(self) -> tuple[t.Any, ...]:
        return ()

    @pytest.fixture
    def opened(self, open_store: Callable[[], Store]) -> Iterator[Callable[[], Store]]:
        stores: list[Store] = []

        def open_one() -> Store:
            stores.append(open_store())
            return stores[-1]

        yield open_one
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        return opened()

    @pytest.fixture
    def other(self, store: Store, opened: Callable[[], Store]) -> Store:
        return opened()

    @pytest.fixture
    def pages(self, store: Store) -> None:
        if not self.keeps_pages:
            pytest.skip("the store keeps no pages")

    @pytest.fixture
    def listed(self, store: Store, pages: None) -> None:
        self.need(store, "lists")

    def need(self, store: Store, *claims: str) -> None:
        for claim in claims:
            if not getattr(store.kind, claim):
                pytest.skip(f"the kind {store.kind.name} does not claim {claim!r}")

    def put(self, store: Store, name: str = "page", **fields: t.Any) -> Record:
        record = make_record(name, fields.pop("number", None) or store.number(), **fields)
        assert store.put(record) is not None
        return record

    def state(self, store: Store, name: str = "page") -> Invalidated:
        stored = store.get(name)
        assert stored is not None
        return stored.validity.invalidated

    def spawn(self, arguments: tuple[t.Any, ...], work: Callable[..., None], *more: t.Any) -> t.Any:
        if self.store_factory is None:
            pytest.skip("no store_factory")
        factory = type(self).__dict__["store_factory"]
        factory = getattr(factory, "__func__", factory)
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=work_in_process, args=(factory, arguments, work, *more), daemon=True
        )
        process.start()
        return process
