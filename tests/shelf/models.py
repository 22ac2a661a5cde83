from __future__ import annotations

from django import forms
from django.db import models
from library.models import Maintainer
from modelcluster.fields import ParentalKey, ParentalManyToManyField
from wagtail.blocks import ChooserBlock, ListBlock, PageChooserBlock, StructBlock
from wagtail.contrib.settings.models import BaseSiteSetting, register_setting
from wagtail.fields import StreamField
from wagtail.images.blocks import ImageChooserBlock
from wagtail.models import Page
from wagtail.snippets.blocks import SnippetChooserBlock
from wagtail.snippets.models import register_snippet


class Publisher(models.Model):
    """No snippet: a page refers to it in a field all the same."""

    name = models.CharField(max_length=50)


@register_snippet
class Author(models.Model):
    """A snippet that shows another object."""

    name = models.CharField(max_length=50)
    publisher = models.ForeignKey(Publisher, models.CASCADE, null=True, related_name="+")
    others = models.ManyToManyField(Publisher, related_name="authors")


class Shop(models.Model):
    """Only a block of a StreamField refers to it."""

    name = models.CharField(max_length=50)


class Genre(models.Model):
    """Pages have any number of them."""


class ShopChooserBlock(ChooserBlock):
    target_model = "shelf.Shop"
    widget = forms.Select


@register_setting
class Imprint(BaseSiteSetting):
    text = models.CharField(max_length=50)


class BookPage(Page):
    template = "shelf/book.html"

    body = StreamField(
        [
            ("author", SnippetChooserBlock("shelf.Author")),
            ("parts", ListBlock(StructBlock([("picture", ImageChooserBlock())]))),
            ("see", PageChooserBlock()),
            ("shop", ShopChooserBlock()),
        ],
        blank=True,
    )
    genres = ParentalManyToManyField(Genre, related_name="+")
    reader = models.ForeignKey("auth.User", models.SET_NULL, null=True, related_name="+")


class Chapter(models.Model):
    """A row of an inline panel."""

    page = ParentalKey(BookPage, on_delete=models.CASCADE, related_name="chapters")
    title = models.CharField(max_length=50)


class NoPage(Page):
    """Is rendered for each visitor."""

    template = "shelf/book.html"
    isr_revalidate = None


class TaggedPage(Page):
    """Its template fetches what no field refers to."""

    template = "shelf/tagged.html"

    def maintainer(self) -> Maintainer | None:
        return Maintainer.objects.first()

    def genres(self) -> models.QuerySet[Genre]:
        return Genre.objects.all()
