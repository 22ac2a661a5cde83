"""Commands on a middleware that stands in a module of its own."""

from __future__ import annotations

import inspect
import types
import typing as t

from click.testing import CliRunner, Result

from wsgi_isr.__main__ import main

#: Before click 8.2 the two streams of a command are one, unless this is said.
SEPARATE: dict[str, t.Any] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
)


class Command:
    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def __call__(self, *args: str, app: str = "app", input: str | None = None) -> Result:
        name = f"{self.module.__name__}:{app}"
        return CliRunner(**SEPARATE).invoke(main, [name, *args], input=input)
