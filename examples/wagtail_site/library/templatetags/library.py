from __future__ import annotations

import typing as t

from django import template
from wagtail.models import Site

from library.models import Notice

register = template.Library()


@register.simple_tag
def notice() -> Notice | None:
    """What no field of a page refers to: see ``WAGTAIL_SITE_TAGS``."""
    return Notice.objects.first()


@register.simple_tag(takes_context=True)
def menu(context: t.Any) -> t.Any:
    """The pages that editors show in menus."""
    site = Site.find_for_request(context["request"])
    return site.root_page.get_children().live().in_menu() if site else ()
