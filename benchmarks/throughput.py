"""Part ``http``: hits over HTTP, by the processor time of the server's processes for a request.

The server has a core, wrk has another; 16 connections are kept alive. All servers are started
first and then take turns, so that a machine that changes its speed changes it for all of them.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

from .peers.nextjs import PROJECTS, nextjs
from .peers.packages import MODULES, PACKAGES
from .peers.programs import nginx, varnish
from .processes import Program, cores, running
from .results import Table, note

CONNECTIONS = 16
GRANIAN = [
    sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1",
    "--port", "{port}", "--workers", "1", "--no-ws", "--log-level", "error",
    "benchmarks.served:application",
]  # fmt: skip
BJOERN = [sys.executable, "-m", "benchmarks.served", "{port}"]
SERVERS = {"granian": GRANIAN, "bjoern": BJOERN}
#: What a Python server serves, and whether a compressed variant is there.
SUBJECTS = {"constant": False, "constant again": False, "constant, gzip": True, "by hand": False,
            "wsgi-isr": False, "wsgi-isr, gzip": True}  # fmt: skip


class Load(t.NamedTuple):
    """What one run of wrk found."""

    requests: int
    rate: float
    slowest_of_99: float
    processor_time: float


class Subject:
    """A server, and the request it gets."""

    def __init__(self, program: Program, path: str = "/page/1", gzip: bool = False) -> None:
        self.program = program
        self.path = path
        self.gzip = gzip
        self.loads: list[Load] = []

    def check(self) -> None:
        """The page is there, in the coding that is to be measured.

        :raises RuntimeError: if it is not.
        """
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=10)
            with contextlib.closing(connection):
                headers = {"Accept-Encoding": "gzip" if self.gzip else "identity"}
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
        coding = answer.headers["Content-Encoding"]
        expected = (3_000, 8_000) if self.gzip else (18_000, 24_000)
        if answer.status != 200 or not expected[0] < len(body) < expected[1]:
            raise RuntimeError(f"{self.path}: {answer.status}, {coding}, {len(body)} bytes")

    def load(self, seconds: int) -> None:
        _, core = cores()
        command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
        command += ["--latency"]
        if self.gzip:
            command += ["-H", "Accept-Encoding: gzip"]
        begun = self.program.processor_time()
        command.append(self.program.url(self.path))
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        taken = self.program.processor_time() - begun
        if "Non-2xx" in text or "Socket errors" in text:
            raise RuntimeError(f"{self.path} under load: {text}")
        self.loads.append(parse(text, taken))

    def row(self) -> dict[str, float]:
        each = [load.processor_time / load.requests * 1e6 for load in self.loads]
        middle = statistics.median(each)
        return {
            "requests/s": statistics.median(load.rate for load in self.loads),
            "CPU µs": middle,
            "spread %": 100 * statistics.median(abs(one - middle) for one in each) / middle,
            "p99 ms": statistics.median(load.slowest_of_99 for load in self.loads),
        }


def parse(text: str, processor_time: float) -> Load:
    """What wrk prints."""

    def find(pattern: str) -> tuple[str, ...]:
        found = re.search(pattern, text)
        assert found, text
        return found.groups()

    (requests,) = find(r"(\d+) requests in")
    (rate,) = find(r"Requests/sec:\s+([\d.]+)")
    number, unit = find(r"99%\s+([\d.]+)(us|ms|s)")
    slowest = float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    return Load(int(requests), float(rate), slowest, processor_time)


def start(stack: contextlib.ExitStack, folder: Path) -> dict[str, Subject]:
    """All servers that are to be had."""
    core, _ = cores()
    subjects: dict[str, Subject] = {}

    def python(server: str, name: str, gzip: bool = False) -> None:
        own = folder / f"{server}-{name}".replace(" ", "-")
        own.mkdir()
        served = name if name.startswith("constant,") else name.partition(",")[0]
        environ = {"BENCHMARK_SUBJECT": served.removesuffix(" again")}
        environ["BENCHMARK_FOLDER"] = str(own)
        program = stack.enter_context(running(SERVERS[server], own, core, environ=environ))
        subjects[f"{server}, {name}"] = Subject(program, gzip=gzip)

    for server in SERVERS:
        if importlib.util.find_spec(server) is None:
            note(f"{server} is not installed")
            continue
        for name, gzip in SUBJECTS.items():
            python(server, name, gzip)
    if importlib.util.find_spec("granian") is not None:
        for name in PACKAGES:
            if importlib.util.find_spec(MODULES[name]) is not None:
                python("granian", name)
                if name == "WhiteNoise":
                    python("granian", f"{name}, gzip", True)
            else:
                note(f"{name} is not installed")

    def program(name: str, found: Program | None, compressed: str) -> None:
        if found is None:
            note(f"{name} is not installed")
        else:
            subjects[name] = Subject(found)
            subjects[f"{name}, gzip"] = Subject(found, compressed, gzip=True)

    program("Varnish", stack.enter_context(varnish(folder, core)), "/gzip/1")
    program("nginx", stack.enter_context(nginx(folder, core)), "/gzip/1")
    for name in PROJECTS:
        program(name, stack.enter_context(nextjs(name, folder, core)), "/page/1")
    return subjects


def measure(quick: bool) -> Table:
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        note("wrk or taskset is not installed")
        return {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        # Programs that change their user have to get in.
        Path(folder).chmod(0o755)
        subjects = start(stack, Path(folder))
        for name, subject in list(subjects.items()):
            try:
                subject.check()
                subject.load(1)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                note(f"{name} was left out: {error}")
                del subjects[name]
            subject.loads.clear()
        # Many short ones: what holds a machine up for seconds is then only in some of them.
        for _ in range(1 if quick else 12):
            for subject in subjects.values():
                subject.load(1)
        table = {name: subject.row() for name, subject in subjects.items()}
    base = table.get("granian, constant")
    if base is not None:
        for row in table.values():
            # How many requests the same processor time buys.
            row["x"] = base["CPU µs"] / row["CPU µs"]
    return table
