"""``{% load isr %}``"""

from __future__ import annotations

import typing as t

from django import template
from django.db.models import Model

from ..pages import current_page
from ..tracking import tag

register = template.Library()


@register.simple_tag
def isr_tag(*subjects: t.Any) -> str:
    """Add tags to the page that is being rendered, if one is.

    Each is an object, a queryset (its model is meant), or the name of a tag. ``None`` and objects
    that are not saved have no tag.
    """
    if (page := current_page()) is None:
        return ""
    for subject in subjects:
        if isinstance(subject, str):
            # What a template does not have is "".
            page.tags.update({subject} - {""})
        elif isinstance(subject, Model):
            if subject.pk is not None:
                page.tags.add(tag(subject))
        elif subject is not None:
            page.tags.add(tag(getattr(subject, "model", subject)))
    return ""
