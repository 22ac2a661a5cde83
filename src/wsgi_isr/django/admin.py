"""The list of pages in Django's admin, and a button on the forms of tracked models."""

from __future__ import annotations

import logging
import typing as t
from collections import Counter
from urllib.parse import urlsplit

from django.apps import apps
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.encoding import iri_to_uri
from django.utils.http import url_has_allowed_host_and_scheme

from ..ondemand import RevalidationError, called_by, describe
from .handler import get_middleware
from .models import StoredPage
from .tracking import is_tracked

logger = logging.getLogger("wsgi_isr")

#: Rows of the list at a time.
PER_PAGE = 100
STATES = ("fresh", "stale", "expired", "failed")


@admin.register(StoredPage)
class StoredPageAdmin(admin.ModelAdmin):
    """Shows what is stored; those with the permission to change it act on it."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def get_urls(self) -> t.Any:
        # Django asks for them when all models are tracked and registered. Without the method
        # (before 5.0) there is no button.
        if (admin_of := getattr(self.admin_site, "get_model_admin", None)) is not None:
            for model in apps.get_models():
                if is_tracked(model) and self.admin_site.is_registered(model):
                    _add_button(admin_of(model))
        return super().get_urls()

    def changelist_view(self, request: HttpRequest, extra_context: t.Any = None) -> t.Any:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request)
        words, state = request.GET.get("q", "").strip(), request.GET.get("state", "")
        found = []
        try:
            found = [
                page
                for page in get_middleware().pages()
                if state in ("", page.state) and (words in page.url or words in page.tags)
            ]
        except NotImplementedError as error:
            messages.warning(request, str(error))
        context = {
            **self.admin_site.each_context(request),
            "title": self.opts.verbose_name_plural,
            "opts": self.opts,
            "may_act": self.has_change_permission(request),
            "page": Paginator(sorted(found, key=lambda page: page.url), PER_PAGE).get_page(
                request.GET.get("p")
            ),
            "states": STATES,
            "words": words,
            "state": state,
        }
        return TemplateResponse(request, "admin/wsgi_isr/pages.html", context)

    def _act(self, request: HttpRequest) -> HttpResponseRedirect:
        if not self.has_change_permission(request):
            raise PermissionDenied
        action, urls = request.POST.get("action"), request.POST.getlist("_selected_action")
        try:
            with called_by(f"{request.user} in the admin"):
                if not urls:
                    messages.warning(request, "Select pages first.")
                elif action == "regenerate":
                    found = Counter(each.outcome for each in get_middleware().revalidate(*urls))
                    text = ", ".join(f"{count} {outcome}" for outcome, count in found.items())
                    text = text or "no page, because ISR is switched off"
                    messages.success(request, f"Regenerated: {text}.")
                elif action == "expire":
                    paths = [urlsplit(url).path.replace("*", "%2A") for url in urls]
                    get_middleware().invalidate(*paths, expire=True)
                    messages.success(request, f"Expired: {len(paths)}.")
        except RevalidationError as error:
            for url, why in error.failures.items():
                messages.error(request, f"{url}: {describe(why)}")
        except ValueError as error:
            messages.error(request, str(error))
        after = request.POST.get("next") or request.get_full_path()
        if not url_has_allowed_host_and_scheme(after, {request.get_host()}, request.is_secure()):
            after = request.path
        return HttpResponseRedirect(after)


def _add_button(model_admin: t.Any) -> None:
    """Let the form of an object that has a URL regenerate its page."""
    render = model_admin.render_change_form
    if not hasattr(model_admin.model, "get_absolute_url") or hasattr(render, "isr_button"):
        return

    def render_change_form(request: t.Any, context: t.Any, *args: t.Any, **options: t.Any) -> t.Any:
        response = render(request, context, *args, **options)
        path = _path_of(options.get("obj"))
        may_act = request.user.has_perm("wsgi_isr.change_storedpage")
        if path and may_act and isinstance(response, TemplateResponse):
            form = response.resolve_template(response.template_name)
            response.context_data = {**context, "isr_form": form, "isr_path": path}
            response.template_name = "admin/wsgi_isr/change_form.html"
        return response

    render_change_form.isr_button = True  # type: ignore[attr-defined]
    model_admin.render_change_form = render_change_form


def _path_of(instance: t.Any) -> str | None:
    try:
        return None if instance is None else iri_to_uri(instance.get_absolute_url())
    except Exception:
        # A draft may have no URL yet; its form is more important than a button.
        logger.debug("no URL of %r", instance, exc_info=True)
        return None
