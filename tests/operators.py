"""A client of the status page, and fixtures of one who has logged in and one who has not."""

from __future__ import annotations

import re
import typing as t

import pytest
from conftest import Browser, Make, Site, client_of, strict
from werkzeug.test import TestResponse

from wsgi_isr.status import Status

SECRET = "correct horse battery staple"


class Operator(Browser):
    """A client of a status page at ``/_isr``; ``operator.isr`` is the site's middleware."""

    def open(self, *args: t.Any, **kwargs: t.Any) -> TestResponse:
        kwargs.setdefault("base_url", "http://localhost/_isr")
        return super().open(*args, **kwargs)

    def log_in(self, secret: str = SECRET, **kwargs: t.Any) -> TestResponse:
        return self.post("/login", data={"secret": secret, **kwargs})

    def press(self, path: str, url: str, token: str | None = None) -> TestResponse:
        found = re.search('name="csrf_token" value="([0-9a-f]+)"', self.get("/").text)
        data = {"csrf_token": token if found is None or token is not None else found[1]}
        return self.post(path, data={**data, "url": url})

    def explained(self, url: str) -> str:
        """What the page says of a page, as plain text."""
        return plain(self.get("/page", query_string={"url": url}).text)


def plain(html: str) -> str:
    main = html.partition('<main id="main">')[2].partition("</main>")[0]
    return " ".join(re.sub("<[^>]*>", " ", main).split())


@pytest.fixture
def outsider(site: Site, make: Make, files: str) -> Operator:
    """Somebody who has not logged in."""
    site.page("/a", "a page", tags=["posts", "post:a"])
    isr = make(files)
    operator = Operator(strict(Status(isr, secret=SECRET)))
    operator.isr = isr
    client_of(isr).get("/a")
    return operator


@pytest.fixture
def operator(outsider: Operator) -> Operator:
    assert outsider.log_in().status_code == 303
    return outsider
