"""Incremental static regeneration for every WSGI app."""

from .metadata import page_headers as page_headers
from .middleware import ISRMiddleware as ISRMiddleware
from .ondemand import PageInfo as PageInfo
from .ondemand import Result as Result
from .ondemand import RevalidationError as RevalidationError
from .rules import Rule as Rule

__all__ = [
    "ISRMiddleware",
    "PageInfo",
    "Result",
    "RevalidationError",
    "Rule",
    "page_headers",
]
