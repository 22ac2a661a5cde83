"""A program: a cache that is used before a fork, then by four children at once.

Each child prints ``good`` if it got its own pages throughout.
"""

from __future__ import annotations

import os
import sys
import threading
import typing as t

from cachelib import BaseCache
from cachelib import MemcachedCache
from cachelib import RedisCache
from conftest import Site
from steps import visit

from wsgi_isr import ISRMiddleware

PAGES = 20
READS = 15


def make_cache(kind: str, port: int) -> BaseCache:
    if kind == "redis":
        return RedisCache(port=port, socket_timeout=5, socket_connect_timeout=5)
    from pymemcache.client.base import PooledClient

    return MemcachedCache(PooledClient(("127.0.0.1", port), timeout=5, connect_timeout=5))


def run(isr: ISRMiddleware) -> bool:
    wrong: list[t.Any] = []

    def read() -> None:
        for _ in range(READS):
            for number in range(PAGES):
                text = visit(isr, f"/{number}").text
                if text != f"page {number}":
                    wrong.append((number, text))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = isr.stats()
    if wrong or found["store_errors"] or not found["hits"]:
        print(wrong[:3], found, file=sys.stderr, flush=True)
        return False
    return True


def main(kind: str, port: int) -> None:
    cache = make_cache(kind, port)
    site = Site()
    for number in range(PAGES):
        site.page(f"/{number}", f"page {number}")
    # Nothing in memory, so that each visit reads the store.
    isr = ISRMiddleware(site, cache, memory_size=0)
    for number in range(PAGES):
        visit(isr, f"/{number}")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(0 if run(isr) else 1)
        children.append(child)
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("good" if status == 0 else f"bad:{status}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
