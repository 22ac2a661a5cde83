"""Tags of models: `tag` names an object or a model, `track` revalidates when one changes."""

from __future__ import annotations

import functools
import hashlib
import logging
import typing as t
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

from django.apps import apps
from django.db.models import Model, signals

from ..metadata import MAX_TAG_LENGTH
from .changes import revalidate_tag

logger = logging.getLogger("wsgi_isr")

#: Tracked models, and whether pages that show them expire.
tracked: dict[type[Model], bool] = {}


def tag(subject: Model | type[Model]) -> str:
    """The tag of an object; or of a model, for pages that show whichever objects it has.

    :returns: ASCII without a comma, the same in every process.
    :raises ValueError: for an object that is not saved.
    :raises TypeError: for what is neither an object nor a model.
    """
    if isinstance(subject, type) and issubclass(subject, Model):
        return _name(subject)
    if not isinstance(subject, Model):
        raise TypeError(f"tag takes an object of a model, or a model, not {subject!r}")
    if subject.pk is None:
        raise ValueError(f"an object that is not saved has no tag: {_name(subject)}")
    return _tag(subject, subject.pk)


def _name(model: t.Any) -> str:
    # A proxy shows the objects of its model; an abstract model has no other name.
    return str((model._meta.concrete_model or model)._meta.label_lower)


def _tag(model: t.Any, key: t.Any) -> str:
    found = f"{_name(model)}:{quote(str(key), safe='')}"
    if len(found) > MAX_TAG_LENGTH:
        found = f"{_name(model)}:{hashlib.sha256(found.encode()).hexdigest()}"
    return found


def tags_of(instance: t.Any) -> Iterator[str]:
    """All tags of pages that show an object, also as one of the models that its own extends."""
    model = instance._meta.concrete_model
    for each in (model, *model._meta.get_parent_list()):
        yield _name(each)
        if (key := getattr(instance, each._meta.pk.attname)) is not None:
            yield _tag(each, key)
    yield from (_name(each) for each in tracked if each._meta.abstract and issubclass(model, each))


def track(*models: type[Model] | str, expire: bool = True) -> None:
    """Revalidate the tags of objects and of their models when they are saved, deleted or related.

    Call it in ``AppConfig.ready()``. It takes effect on commit. ``QuerySet.update()``,
    ``bulk_create()``, ``bulk_update()`` and raw SQL send no signal: call
    ``revalidate_tag(tag(Model))`` after them.

    :param models: models, also abstract ones, or names as ``"blog.Post"``; those that extend them
        are tracked, too.
    :param expire: the next visitor waits for the new page; if not, they get the old one first.
    :raises TypeError: for what is no model, or for none.
    """
    for model in models:
        if isinstance(model, str) and "." in model:
            model = apps.get_model(model)
        if not (isinstance(model, type) and issubclass(model, Model)):
            raise TypeError(f"track takes models, as Post or 'blog.Post', not {model!r}")
        tracked[model] = expire
        # One by one, because Django deletes objects faster whose model has no receiver.
        for each in filter(is_tracked, apps.get_models()):
            signals.post_save.connect(_changed, each, dispatch_uid="wsgi_isr")
            signals.post_delete.connect(_changed, each, dispatch_uid="wsgi_isr")
    if not models:
        raise TypeError("track takes models, as in track(Post)")
    signals.m2m_changed.connect(_related, dispatch_uid="wsgi_isr")


def is_tracked(model: type) -> bool:
    return any(issubclass(model, each) for each in tracked)


def harmless(receiver: t.Any) -> t.Any:
    """A receiver of signals whose failures are logged, since an editor's work counts more."""

    @functools.wraps(receiver)
    def receive(sender: t.Any, **what: t.Any) -> None:
        try:
            receiver(sender=sender, **what)
        except Exception:
            logger.exception("pages that show %s were not revalidated", sender.__name__)

    return receive


@harmless
def _changed(sender: type[Model], instance: Model, using: str, **extra: t.Any) -> None:
    if is_tracked(sender):
        # The last that was tracked knows best.
        expire = [tracked[each] for each in tracked if issubclass(sender, each)][-1]
        revalidate_tag(*tags_of(instance), expire=expire, using=using)


@harmless
def _related(**change: t.Any) -> None:
    for each in both_sides(**change, is_shown=is_tracked):
        _changed(type(each), instance=each, using=change["using"])


def both_sides(
    sender: t.Any,
    instance: t.Any,
    action: str,
    reverse: bool,
    model: t.Any,
    pk_set: Iterable[t.Any] | None,
    using: str,
    is_shown: Callable[[type[Model]], bool],
    **extra: t.Any,
) -> Iterator[t.Any]:
    """The objects that a change of a many-to-many relation is about, of models that are shown."""
    if action not in ("post_add", "post_remove", "pre_clear"):
        return
    yield instance
    if not is_shown(model):
        return
    if pk_set is not None:
        yield from model._meta.base_manager.using(using).filter(pk__in=pk_set)
        return
    # After a clear nobody can say which they were.
    owner = model if reverse else type(instance)
    for field in owner._meta.many_to_many:
        if field.remote_field.through is sender:
            name = field.remote_field.get_accessor_name() if reverse else field.name
            yield from getattr(instance, name).using(using)
