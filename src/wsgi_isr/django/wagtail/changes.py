"""What a change in Wagtail makes old: signals become tags, which expire when it is committed.

A page has few tags: one of its own, and one for each page above it. What it shows besides is
found when that changes: Wagtail's index of references says which pages chose a snippet, a picture
or another page in a field.
"""

from __future__ import annotations

import functools
import typing as t
from collections.abc import Collection, Iterable, Iterator

from django.apps import apps
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db.models.signals import m2m_changed, post_save, pre_delete, pre_save
from modelcluster.fields import ParentalKey
from wagtail.contrib.settings.models import AbstractSetting
from wagtail.models import CollectionMember, Locale, PageViewRestriction, ReferenceIndex, Site
from wagtail.signals import post_page_move

from ...metadata import check_iterable
from ..changes import invalidate, revalidate_tag
from ..config import option
from ..tracking import both_sides, harmless, tags_of

#: Since Wagtail 8 a project may have another base of all pages.
Page: t.Any = apps.get_model(getattr(settings, "WAGTAIL_PAGE_MODEL", "wagtailcore.Page"))

#: A tag of every page of the tree.
ALL = "wagtail"
#: More pages than that are all pages.
MANY = 500
#: What other pages show of a page that comes, goes or moves: in menus, breadcrumbs and lists.
PLACE = frozenset({"title", "slug", "url_path", "live", "locale_id"})
STRUCTURE = PLACE | {"show_in_menus"}
#: What no visitor sees of an object: drafts, locks, schedules and logins.
_UNSEEN = frozenset(
    "draft_title expire_at go_live_at has_unpublished_changes last_login latest_revision "
    "latest_revision_created_at locked locked_at locked_by".split()
)
#: Apps with nothing else that is on a page: revisions, comments, tasks, sessions by the thousand.
_UNSEEN_APPS = ("sessions", "wagtailcore")


def site_models() -> list[t.Any]:
    """Models whose tags all pages carry.

    :raises LookupError: or ``TypeError``, ``ValueError``, for what names no models.
    """
    names = check_iterable("it", option("WAGTAIL_SITE_TAGS", ()), "menus.Menu")
    return [apps.get_model(name) for name in names]


def page_tag(key: t.Any) -> str:
    """Of one page, and of what it lists."""
    return f"wagtail:page:{key}"


def tree_tag(key: t.Any) -> str:
    """Of a page and of all pages below it."""
    return f"wagtail:tree:{key}"


def connect() -> None:
    """Follow all that changes pages."""
    pre_save.connect(_before_save)
    post_save.connect(_after_save)
    pre_delete.connect(_before_delete)
    m2m_changed.connect(_after_m2m)
    post_page_move.connect(_after_move)


@harmless
def _before_save(
    instance: t.Any, raw: bool = False, update_fields: t.Any = None, **extra: t.Any
) -> None:
    # `Page.save` is a transaction, so this takes effect after it. Whatever is published,
    # unpublished or mirrored is saved.
    if isinstance(instance, Page) and not raw and not _is_unseen(update_fields):
        before = Page.objects.filter(pk=instance.pk).values(*STRUCTURE).first()
        if before is not None and (before["live"] or instance.live):
            changed = {name for name in STRUCTURE if before[name] != getattr(instance, name)}
            _page_changed(instance, changed)


@harmless
def _after_save(
    instance: t.Any, created: bool, raw: bool, update_fields: t.Any, **extra: t.Any
) -> None:
    if not isinstance(instance, Page):
        if not _is_unseen(update_fields):
            _changed(instance)
    elif raw:
        _expire([ALL])
    elif created and instance.live:
        _page_changed(instance)


@harmless
def _before_delete(sender: t.Any, instance: t.Any, **extra: t.Any) -> None:
    # Before, because Wagtail then forgets who refers to it.
    if not isinstance(instance, Page):
        _changed(instance)
    elif sender is Page:
        _page_changed(instance)


@harmless
def _after_m2m(**change: t.Any) -> None:
    for each in both_sides(**change, is_shown=lambda model: True):
        _changed(each)


@harmless
def _after_move(instance: t.Any, parent_page_before: t.Any, **extra: t.Any) -> None:
    _page_changed(instance, parent=parent_page_before)


def _is_unseen(update_fields: Iterable[str] | None) -> bool:
    return update_fields is not None and _UNSEEN.issuperset(update_fields)


def _changed(instance: t.Any) -> None:
    """What may be no page has changed, or will be deleted."""
    if instance._meta.apps is not apps:
        # A migration's model: not all tables are there yet.
        return
    if isinstance(instance, Site | Locale | AbstractSetting):
        _expire([ALL])
    elif isinstance(instance, PageViewRestriction):
        for page in _with_aliases(instance.page):
            _page_changed(page)
    elif instance._meta.label == "wagtailredirects.Redirect":
        _expire_below(instance.old_path)
    elif isinstance(instance, Page) or instance._meta.app_label not in _UNSEEN_APPS:
        owner = _owner_of(instance)
        if isinstance(owner, Page):
            _page_changed(owner, ())
        elif (pages := _pages_with(owner)) or isinstance(owner, _shown_models()):
            _expire(tags_of(owner), pages)


def _shown_models() -> tuple[t.Any, ...]:
    """Models whose objects pages may show though no field refers to them: lists of them, say."""
    found = [CollectionMember, *site_models(), *_chosen_models()]
    if apps.is_installed("wagtail.snippets"):
        from wagtail.snippets.models import get_snippet_models

        found += get_snippet_models()
    return tuple(found)


@functools.cache
def _chosen_models() -> frozenset[t.Any]:
    """Models of which editors choose objects."""
    models = ReferenceIndex.tracked_models
    fields = (field for model in models for field in model._meta.get_fields())
    return frozenset(f.related_model for f in fields if f.related_model and not f.auto_created)


def _page_changed(page: t.Any, changed: Collection[str] = PLACE, parent: t.Any = None) -> None:
    """
    :param changed: what has changed of `STRUCTURE`.
    :param parent: the page that it was below.
    """
    parent = parent or page
    keys = {page.pk, parent.pk, *_pages_with(page)}
    tags = {*tags_of(page.specific_deferred)}
    if changed:
        keys.update(_keys(translation_key=page.translation_key))
        tags.add(tree_tag(page.pk))
        below = Page.objects.descendant_of(page, inclusive=True)
        if "show_in_menus" in changed or below.in_menu().exists():
            # All of the site, in all languages, has the menu.
            top = {each.path[: 2 * Page.steplen] for each in (page, parent)}
            found = Page.objects.filter(path__in=top).values("translation_key")
            tags.update(map(tree_tag, _keys(translation_key__in=found)))
    _expire(tags, keys)
    if not {"live", "url_path"}.isdisjoint(changed) and (parts := page.get_url_parts()):
        _expire_below(parts[2])


def _expire(tags: Iterable[str], keys: Collection[t.Any] = ()) -> None:
    """Expire tags, and pages with those above them, which may list them."""
    step = Page.steplen
    paths = Page.objects.filter(pk__in=keys).values_list("path", flat=True) if keys else ()
    above = {path[:end] for path in paths for end in range(2 * step, len(path) + 1, step)}
    found = {ALL} if len(above) > MANY else {page_tag(key) for key in _keys(path__in=above)}
    revalidate_tag(*sorted(found.union(tags)), expire=True)


def _expire_below(path: str | None) -> None:
    """Where there was no page before, or another one, a 404 may be stored."""
    if path:
        invalidate(f"{path.partition('?')[0].rstrip('/')}/**", expire=True)


def _keys(**lookup: t.Any) -> list[t.Any]:
    return list(Page.objects.filter(**lookup).values_list("pk", flat=True))


def _with_aliases(page: t.Any) -> Iterator[t.Any]:
    """Aliases are as private as what they show."""
    yield page
    for alias in page.aliases.all():
        yield from _with_aliases(alias)


def _owner_of(instance: t.Any) -> t.Any:
    """What an object is a part of, as a row of an inline panel is of a page."""
    for field in instance._meta.get_fields():
        if isinstance(field, ParentalKey) and (owner := getattr(instance, field.name, None)):
            return _owner_of(owner)
    return instance


def _pages_with(instance: t.Any) -> set[str]:
    """Keys of the pages that refer to an object in a field, or to what refers to it."""
    found, seen, todo = set(), set(), [instance]
    while todo:
        for model, key in _references_to(todo.pop()):
            if issubclass(model, Page):
                found.add(key)
            elif (model, key) not in seen:
                seen.add((model, key))
                todo.append(model(pk=key))
    return found


def _references_to(instance: t.Any) -> Iterator[tuple[t.Any, str]]:
    """Models and keys of the objects that refer to one in a field."""
    references = ReferenceIndex.get_references_to(instance)
    for place, key in references.values_list("base_content_type", "object_id").distinct():
        if model := ContentType.objects.get_for_id(place).model_class():
            yield model, key
    # The index has no many-to-many relations.
    for relation in instance._meta.get_fields(include_hidden=True):
        model = relation.many_to_many and relation.auto_created and relation.related_model
        if model and issubclass(model, (Page, *_shown_models())):
            related = model._meta.base_manager.filter(**{relation.field.name: instance.pk})
            yield from ((model, str(key)) for key in related.values_list("pk", flat=True))
