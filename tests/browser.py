"""A real Chromium without a window, and a server that it visits."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import typing as t
from collections.abc import Iterator

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

LOOKS = pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (360, "dark"), (800, "dark"), (1600, "light")]
)

#: What is wrong with a page for people who see it, or do not: one line for each element.
FAULTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const faults = [];
  if (document.documentElement.scrollWidth > innerWidth) faults.push("wider than the window");
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), name = e.outerHTML.slice(0, 90);
    if (!box.width || !box.height || e.closest(".skip, thead, script, svg")) continue;
    if ([...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(back(e))].sort((x, y) => x - y);
      if ((b + 0.05) / (a + 0.05) < 4.5) faults.push("contrast: " + name);
    }
    if (e.matches("button, input, select, nav a, summary, .tags a") && !e.closest("td, dd")) {
      if (box.height < 44) faults.push("small: " + name);
    }
    if (e.matches("a") && box.height < 24 && !e.closest("p, .text")) faults.push("tiny: " + name);
    const named = !e.matches("input, select") || e.labels.length || e.ariaLabel;
    if (!named) faults.push("label: " + name);
  }
  if (document.querySelectorAll("main h1").length !== 1) faults.push("not one h1");
  return faults;
}"""


# Of a module, because Playwright has an event loop in this thread, which asyncio tests do not like.
@pytest.fixture(scope="module")
def browser() -> Iterator[t.Any]:
    """Playwright's `Browser`; without one the test is skipped, and fails with CI=true."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        missing = "needs Chromium, and the package playwright"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


def faults(page: t.Any) -> list[str]:
    """What is wrong with a page that is shown."""
    found: list[str] = page.evaluate(FAULTS)
    return found


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: t.Any) -> None:
        pass


@contextlib.contextmanager
def serving(app: t.Any) -> Iterator[str]:
    """Serve an app in threads of this process; gives its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
