"""The request that the library makes of a page's key."""

from __future__ import annotations

import io

import pytest

from wsgi_isr.key import PageKey


def test_the_canonical_request_is_an_allow_list() -> None:
    key = PageKey("https", "example.com:8443", "/site", "/x", (("a", "1"),), (("x-theme", "dark"),))
    middleware = object()
    environ = key.to_environ("miss", middleware)
    body = environ.pop("wsgi.input")
    assert isinstance(body, io.BytesIO)
    assert body.read() == b""
    errors = environ.pop("wsgi.errors")
    assert errors.writable()
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/site",
        "PATH_INFO": "/x",
        "QUERY_STRING": "a=1",
        "SERVER_NAME": "example.com",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.com:8443",
        "HTTP_X_THEME": "dark",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi_isr.middleware": middleware,
        "wsgi_isr.reason": "miss",
    }


@pytest.mark.parametrize(
    ("scheme", "host", "name", "port"),
    [
        ("http", "example.com", "example.com", "80"),
        ("https", "example.com", "example.com", "443"),
        ("http", "[::1]:8000", "[::1]", "8000"),
        ("http", "[::1]", "[::1]", "80"),
    ],
)
def test_the_canonical_server_follows_from_the_host(
    scheme: str, host: str, name: str, port: str
) -> None:
    environ = PageKey(scheme, host, "", "/").to_environ("miss", None)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)
