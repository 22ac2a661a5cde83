"""Commands on a middleware that stands in a module of its own."""

from __future__ import annotations

import types

from click.testing import CliRunner
from click.testing import Result

from wsgi_isr.cli import main


class Command:
    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def __call__(self, *args: str, app: str = "app", input: str | None = None) -> Result:
        return CliRunner().invoke(main, [f"{self.module.__name__}:{app}", *args], input=input)
