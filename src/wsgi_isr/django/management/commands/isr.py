"""``manage.py isr COMMAND``: the commands of ``python -m wsgi_isr``, for this project."""

from __future__ import annotations

import argparse
import sys
import typing as t

import click
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ....cli import App, group
from ...config import mount
from ...handler import get_middleware
from ...paths import prerender_paths


class Command(BaseCommand):
    help = f"Acts on the pages of this site. Commands: {', '.join(group.commands)}."
    # What is wrong with the setting is said below.
    requires_system_checks: t.Any = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND ...")

    def handle(self, *args: str, arguments: list[str], **options: t.Any) -> None:
        # Options of all of Django's commands, which it has read already.
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        own.add_argument("--settings")
        own.add_argument("--pythonpath")
        arguments = own.parse_known_args([*args, *arguments])[1]
        try:
            app = App(
                get_middleware(), lambda place: prerender_paths(place.mount if place else mount())
            )
            status = group.main(arguments, "manage.py isr", standalone_mode=False, obj=app)
        except click.ClickException as error:
            raise CommandError(error.format_message(), returncode=error.exit_code) from error
        except click.Abort:
            raise CommandError("Interrupted.", returncode=130) from None
        except (ImproperlyConfigured, ImportError, TypeError, ValueError) as error:
            raise CommandError(str(error)) from error
        if status:
            sys.exit(status)
