from __future__ import annotations

import uuid

from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=100)


class Entry(models.Model):
    """What posts extend."""

    title = models.CharField(max_length=100)
    authors = models.ManyToManyField(Author, related_name="entries")


class Post(Entry):
    def get_absolute_url(self) -> str:
        return f"/posts/{self.pk}"


class PostProxy(Post):
    class Meta:
        proxy = True


class Named(models.Model):
    """Its key is a text."""

    name = models.CharField(primary_key=True, max_length=400)


class Numbered(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Dated(models.Model):
    class Meta:
        abstract = True


class Shelf(Dated):
    posts = models.ManyToManyField(Post)
