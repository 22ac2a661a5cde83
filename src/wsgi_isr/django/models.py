"""What Django's admin shows of pages, and the permissions to act on them."""

from __future__ import annotations

from django.db import models


class _Nothing(models.Manager):
    """There is no table: ``dumpdata`` and the like find nothing."""

    def get_queryset(self) -> models.QuerySet:
        return super().get_queryset().none()


class StoredPage(models.Model):
    """A stored page, named by its URL."""

    url = models.TextField(primary_key=True)

    objects = _Nothing()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")
        verbose_name = "ISR page"
        verbose_name_plural = "ISR pages"
