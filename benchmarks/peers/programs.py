"""Varnish and nginx' proxy cache, in front of an origin that lets them keep its page."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.processes import Program, running
from benchmarks.subjects import BODY

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/temporary;
    proxy_cache_path {folder}/cache keys_zone=pages:10m use_temp_path=off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{origin};
            proxy_cache pages;
            proxy_cache_use_stale updating;
            proxy_cache_background_update on;
            proxy_cache_lock on;
        }}
    }}
}}
"""


class Origin(BaseHTTPRequestHandler):
    """20 KB that may be kept for an hour, compressed for who takes that under ``/gzip/``."""

    def do_GET(self) -> None:
        body = BODY
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Cache-Control", "max-age=3600")
        if self.path.startswith("/gzip/"):
            self.send_header("Vary", "Accept-Encoding")
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                body = gzip.compress(BODY)
                self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def origin() -> Iterator[int]:
    """The port of an origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def varnish(folder: Path, core: int) -> Iterator[Program | None]:
    if shutil.which("varnishd") is None:
        yield None
        return
    with origin() as port:
        command = ["varnishd", "-F", "-a", "127.0.0.1:{port}", "-b", f"127.0.0.1:{port}"]
        command += ["-n", str(folder / "varnish"), "-s", "default,100m"]
        with running(command, folder, core) as program:
            yield program


@contextlib.contextmanager
def nginx(folder: Path, core: int) -> Iterator[Program | None]:
    if shutil.which("nginx") is None:
        yield None
        return
    with origin() as port:
        config = folder / "nginx.conf"
        # It reads no port from its command line: a shell writes the one that is free now.
        config.write_text(NGINX.format(folder=folder, port="PORT", origin=port), "utf-8")
        write = f"sed -i s/PORT/{{port}}/ {config}"
        command = ["sh", "-c", f"{write}; exec nginx -p {folder} -c {config}"]
        with running(command, folder, core) as program:
            yield program
