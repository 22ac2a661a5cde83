import typing as t

import django.db.models.deletion
import wagtail.fields
from django.db import migrations, models


def page(*fields: t.Any) -> dict[str, t.Any]:
    parent = models.OneToOneField(
        "wagtailcore.page",
        django.db.models.deletion.CASCADE,
        auto_created=True,
        parent_link=True,
        primary_key=True,
        serialize=False,
    )
    options = {"options": {"abstract": False}, "bases": ("wagtailcore.page",)}
    return {"fields": [("page_ptr", parent), *fields], **options}


def snippet(*fields: t.Any) -> dict[str, t.Any]:
    key = models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )
    return {"fields": [("id", key), *fields]}


def chosen(model: str) -> t.Any:
    return models.ForeignKey(
        model,
        django.db.models.deletion.SET_NULL,
        blank=True,
        null=True,
        related_name="+",
    )


class Migration(migrations.Migration):
    initial = True
    # Those of Wagtail 6, so that the example runs on every version since.
    dependencies = [
        ("wagtailcore", "0091_remove_revision_submitted_for_moderation"),
        ("wagtailimages", "0025_alter_image_file_alter_rendition_file"),
    ]
    operations = [
        migrations.CreateModel(
            "HomePage", **page(("intro", wagtail.fields.RichTextField(blank=True)))
        ),
        migrations.CreateModel("Maintainer", **snippet(("name", models.CharField(max_length=100)))),
        migrations.CreateModel("Notice", **snippet(("text", models.CharField(max_length=200)))),
        migrations.CreateModel("SubjectPage", **page()),
        migrations.CreateModel(
            "ModulePage",
            **page(
                ("summary", models.CharField(max_length=300)),
                ("body", wagtail.fields.RichTextField(blank=True)),
                ("maintainer", chosen("library.maintainer")),
                ("picture", chosen("wagtailimages.image")),
            ),
        ),
    ]
