"""Pages about the modules of the standard library, and what editors choose for them."""

from __future__ import annotations

import os
import typing as t
from datetime import datetime

from django.db import models
from django.http import HttpRequest
from wagtail.admin.panels import FieldPanel
from wagtail.fields import RichTextField
from wagtail.models import Page
from wagtail.snippets.models import register_snippet


@register_snippet
class Maintainer(models.Model):
    """Who looks after a module: a snippet that pages choose in a field."""

    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


@register_snippet
class Notice(models.Model):
    """A line above all pages. No page refers to it."""

    text = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.text


class HomePage(Page):
    """The front page, with the newest modules."""

    intro = RichTextField(blank=True)
    content_panels = [*Page.content_panels, FieldPanel("intro")]

    def newest(self) -> t.Any:
        pages = ModulePage.objects.live().public().descendant_of(self)
        return pages.order_by("-last_published_at", "title")[:5]


class SubjectPage(Page):
    """A list of modules."""

    # Its own window: somebody may also change modules with SQL.
    isr_revalidate = 3600

    def modules(self) -> t.Any:
        children = ModulePage.objects.live().public().child_of(self)
        return children.select_related("picture").order_by("title")


class ModulePage(Page):
    """A module: its docstring, and what editors chose."""

    summary = models.CharField(max_length=300)
    body = RichTextField(blank=True)
    picture = models.ForeignKey(
        "wagtailimages.Image", models.SET_NULL, null=True, blank=True, related_name="+"
    )
    maintainer = models.ForeignKey(
        Maintainer, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    content_panels = [
        *Page.content_panels,
        FieldPanel("summary"),
        FieldPanel("picture"),
        FieldPanel("maintainer"),
        FieldPanel("body"),
    ]


def rendered(request: HttpRequest) -> dict[str, t.Any]:
    """When, why and by which worker a page is rendered, for its footer."""
    return {
        "rendered_at": datetime.now().isoformat(" ", "milliseconds"),
        "rendered_because": request.META.get("wsgi_isr.reason", "visit"),
        "rendered_by": os.getpid(),
    }
