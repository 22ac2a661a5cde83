"""Incremental static regeneration for every WSGI app."""

from .explain import Explanation as Explanation
from .listing import PageInfo as PageInfo
from .metadata import page_headers as page_headers
from .middleware import ISRMiddleware as ISRMiddleware
from .ondemand import Result as Result
from .ondemand import RevalidationError as RevalidationError
from .rules import Rule as Rule
from .store.notes import SQLiteCache as SQLiteCache

__all__ = [
    "Explanation",
    "ISRMiddleware",
    "PageInfo",
    "Result",
    "RevalidationError",
    "Rule",
    "SQLiteCache",
    "page_headers",
]
