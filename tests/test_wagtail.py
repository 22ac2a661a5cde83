"""Pages of a Wagtail tree: which of them are stored, for whom, and what renews them."""

from __future__ import annotations

import re

import pytest
from wagtails import OTHER, PATHS, Shelf
from wagtails import process as process
from wagtails import shelf as shelf

pytestmark = pytest.mark.processes

ALL = {*PATHS, OTHER}
SITE = {*PATHS}
STRING = {"/", "/text/", "/text/string/"}
RE = {"/", "/text/", "/text/re/"}
BOOK = {"/", "/files/", "/files/book/"}
#: The book chose it, so it shows its title.
GLOB = {"/files/glob/", *BOOK}


CHANGES = {
    "a text": ("edit('string', summary='new')", STRING),
    "a title": ("edit('string', title='new')", STRING),
    "a page that another chose": ("edit('glob', summary='new')", GLOB),
    "a title above others": ("edit('files', title='new')", {"/files/", *GLOB}),
    "a title in the menu": ("edit('text', title='new')", SITE),
    "into the menu": ("edit('files', show_in_menus=True)", SITE),
    "out of the menu": ("edit('text', show_in_menus=False)", SITE),
    "without a form": ("p = page('string'); p.summary = 'x'; p.save()", STRING),
    "unpublished": ("page('string').unpublish()", STRING),
    "published": ("edit('string')", STRING),
    "put before another": ("page('re').move(page('string'), pos='left')", RE),
    "a snippet": ("Maintainer.objects.get().save()", STRING),
    "a snippet in a StreamField": ("Author.objects.get().save()", BOOK),
    "one of many objects": ("Genre.objects.get().save()", BOOK),
    "one of many of a snippet": ("Publisher.objects.get(name='Other').save()", BOOK),
    "a relation": ("Author.objects.get().others.add(Publisher.objects.first())", BOOK),
    "what a snippet shows": ("Publisher.objects.get(name='Press').save()", BOOK),
    "a picture": ("Image.objects.get().save()", {*RE, *BOOK}),
    "a document in a text": ("Document.objects.get().save()", {"/"}),
    "a model that a block chooses": ("Shop.objects.get().save()", BOOK),
    "a row of an inline panel": ("Chapter.objects.get().save()", BOOK),
    "what a template tag fetches": ("Notice.objects.get().save()", ALL),
    "a setting": ("Imprint.for_site(Site.objects.first()).save()", ALL),
    "a site": ("Site.objects.first().save()", ALL),
    "a language": ("Locale.objects.first().save()", ALL),
    "a fixture": ("load(page('string'))", ALL),
    "a relation, from its other side": (
        "Publisher.objects.create(name='x').authors.add(Author.objects.get())",
        BOOK,
    ),
    "a comment": ("comment('book')", set()),
    "a draft": ("p = page('string'); p.title = 'draft'; p.save_revision()", set()),
    "a lock": ("p = page('string'); p.save(update_fields=['locked'])", set()),
    "a migration": ("in_a_migration()", set()),
    "a login": ("login()", set()),
    "taken back": ("taken_back('string', title='never')", set()),
}


class TestAChange:
    @pytest.mark.parametrize("name", CHANGES)
    def test_renews_the_pages_that_show_it_and_no_others(self, shelf: Shelf, name: str) -> None:
        change, renewed = CHANGES[name]
        assert shelf.renewed(change) == renewed

    def test_of_the_menu_reaches_the_site_that_had_it(self, shelf: Shelf) -> None:
        shelf.do("add(page('other'), SubjectPage, 'guest', show_in_menus=True)")
        shelf.do("add(page('other'), ModulePage, 'far', summary='x')")
        shelf.get("/far/", "b.example")
        assert shelf.renewed("page('guest').move(page('home'), pos='last-child')") == ALL
        assert shelf.get("/far/", "b.example").cache == "isr; fwd=stale; stored"
        assert shelf.renewed("page('guest').delete()") == SITE

    def test_that_nobody_sees_costs_nothing(self, shelf: Shelf) -> None:
        before = shelf.do("application.stats()['invalidations']")
        shelf.do("p = page('string'); p.title = 'draft'; p.save_revision()")
        assert shelf.do("application.stats()['invalidations']") == before

    def test_of_many_pages_is_one_of_all(self, shelf: Shelf) -> None:
        shelf.do("changes.MANY = 2")
        assert shelf.renewed("edit('string')") == ALL

    def test_is_on_the_pages_when_the_call_returns(self, shelf: Shelf) -> None:
        shelf.do("edit('string', title='An edited title')")
        for path in STRING:
            assert "An edited title" in shelf.get(path).text

    def test_of_an_address_leaves_no_page_at_the_old_one(self, shelf: Shelf) -> None:
        shelf.get("/text/string/")
        shelf.do("edit('text', slug='words')")
        assert shelf.get("/words/string/").status == 200
        # Wagtail has made redirects.
        assert shelf.get("/text/string/").headers["Location"].endswith("/words/string/")
        shelf.do("edit('words', slug='text')")
        assert shelf.get("/text/string/").status == 200
        assert shelf.get("/words/string/").headers["Location"].endswith("/text/string/")

    def test_of_the_place_in_the_tree(self, shelf: Shelf) -> None:
        shelf.get("/text/re/")
        renewed = shelf.renewed("page('re').move(page('files'), pos='last-child')")
        assert renewed == {*RE, "/files/"}
        assert shelf.get("/files/re/").status == 200
        assert shelf.get("/text/re/").headers["Location"] == "http://a.example/files/re/"

    def test_that_deletes_a_page_leaves_a_404_until_another_is_there(self, shelf: Shelf) -> None:
        shelf.do("add(page('files'), ModulePage, 'short', summary='first')")
        assert "first" in shelf.get("/files/short/").text
        shelf.do("page('short').delete()")
        assert "short" not in shelf.get("/files/").text
        assert shelf.get("/files/short/").status == 404
        assert shelf.get("/files/short/").cache == "isr; hit"
        shelf.do("add(page('files'), ModulePage, 'short', summary='second')")
        assert "second" in shelf.get("/files/short/").text
        shelf.do("page('short').delete()")
        assert shelf.get("/files/short/").status == 404
        shelf.do("Redirect.objects.create(old_path='/files/short', redirect_link='/text/')")
        assert shelf.get("/files/short/").status == 301

    def test_that_a_schedule_makes(self, shelf: Shelf) -> None:
        shelf.do("schedule('string', title='scheduled')")
        assert "scheduled" not in shelf.get("/text/").text
        shelf.do("publish_scheduled()")
        assert "scheduled" in shelf.get("/text/").text

    @pytest.mark.parametrize("change", ["Maintainer.objects.get().save()", "Genre().save()"])
    def test_of_what_a_template_declares(self, shelf: Shelf, change: str) -> None:
        shelf.get("/tagged/")
        assert shelf.get("/tagged/").cache == "isr; hit"
        shelf.do(change)
        assert shelf.get("/tagged/").cache == "isr; fwd=stale; stored"

    def test_stands_although_the_store_is_away(self, shelf: Shelf) -> None:
        shelf.do("without_a_store('string', title='saved all the same')")
        assert shelf.do("page('string').title") == "saved all the same"
        assert "pages that show ModulePage were not revalidated" in shelf.log()


class TestAPrivatePage:
    def test_is_stored_for_nobody(self, shelf: Shelf) -> None:
        shelf.get("/files/glob/")
        assert shelf.renewed("restrict('files')") >= {"/files/", "/files/glob/", "/"}
        for path in ("/files/", "/files/glob/") * 2:
            answer = shelf.get(path)
            assert answer.status == 302
            assert not answer.cache.startswith("isr; hit")
        assert "/files/" not in shelf.get("/").text
        stored = shelf.do("[page.url for page in application.pages()]")
        assert not {"http://a.example/files/", "http://a.example/files/glob/"} & {*stored}
        editor = shelf.do("login()")
        assert shelf.get("/files/", cookie=editor).status == 200
        assert shelf.get("/files/").status == 302
        shelf.do("PageViewRestriction.objects.get().delete()")
        assert shelf.get("/files/glob/").status == 200
        assert "/files/" in shelf.get("/").text

    def test_is_not_stored_where_visitors_without_an_account_are_let_in(self, shelf: Shelf) -> None:
        shelf.do("restrict('glob')")
        shelf.do("let_in = mock.patch.object(PageViewRestriction, 'accept_request', mock.Mock())")
        shelf.do("let_in.start()")
        for _ in range(2):
            assert shelf.get("/files/glob/").status == 200
            assert not shelf.get("/files/glob/").cache.startswith("isr; hit")

    def test_with_a_password_shows_its_form_and_opens_for_one_visitor(self, shelf: Shelf) -> None:
        shelf.get("/files/glob/")
        shelf.do("restrict('glob', restriction_type='password', password='open')")
        assert 'name="password"' in shelf.get("/files/glob/").text
        assert shelf.do("enter_password('/files/glob/', 'open')") == 200
        assert 'name="password"' in shelf.get("/files/glob/").text

    def test_hides_its_aliases(self, shelf: Shelf) -> None:
        shelf.do("page('glob').create_alias(parent=page('text'), update_slug='alias')")
        assert shelf.get("/text/alias/").status == 200
        shelf.do("restrict('glob')")
        assert shelf.get("/text/alias/").status == 302


class TestAnAlias:
    def test_follows_its_page(self, shelf: Shelf) -> None:
        shelf.do("page('glob').create_alias(parent=page('text'), update_slug='alias')")
        assert shelf.get("/text/alias/").status == 200
        shelf.do("edit('glob', summary='for both')")
        assert "for both" in shelf.get("/text/alias/").text
        shelf.do("page('glob').unpublish()")
        assert shelf.get("/text/alias/").status == 404


class TestAnEditor:
    def test_sees_the_site_as_it_is_with_the_userbar(self, shelf: Shelf) -> None:
        shelf.get("/text/")
        editor = shelf.do("login()")
        answer = shelf.get("/text/", cookie=editor)
        assert "wagtail-userbar" in answer.text
        assert answer.cache == "isr; fwd=bypass; detail=bypass"
        assert "wagtail-userbar" not in shelf.get("/text/").text
        assert shelf.get("/text/").cache == "isr; hit"

    def test_previews_what_is_never_stored(self, shelf: Shelf) -> None:
        before = shelf.get("/text/string/").text
        shelf.do("p = page('string'); p.title = 'a preview'; p.save_revision()")
        editor = shelf.do("login()")
        address = f"/admin/pages/{shelf.do('p.pk')}/view_draft/"
        preview = shelf.get(address, cookie=editor)
        assert "a preview" in preview.text
        assert preview.cache == ""
        assert shelf.get("/text/string/").text == before


class TestAPage:
    def test_has_the_window_that_its_model_names(self, shelf: Shelf) -> None:
        shelf.get("/text/")
        assert shelf.get("/text/").headers["Cache-Status"].startswith("isr; hit; ttl=3")
        shelf.get("/text/string/")
        assert shelf.get("/text/string/").headers["Cache-Status"] == "isr; hit"

    def test_is_none_where_its_model_says_so(self, shelf: Shelf) -> None:
        for _ in range(2):
            assert shelf.get("/files/live/").status == 200
            assert shelf.get("/files/live/").cache == ""

    def test_that_does_not_exist_costs_no_render_of_its_own(self, shelf: Shelf) -> None:
        before = shelf.do("application.stats()['rejections']")
        assert shelf.get("/no/such/page/").status == 404
        assert shelf.do("application.stats()['rejections']") == before

    def test_has_the_parameters_that_the_settings_name(self, shelf: Shelf) -> None:
        shelf.get("/text/")
        assert shelf.get("/text/?utm_source=x").cache == "isr; hit"
        assert shelf.get("/text/?q=x").cache == "isr; fwd=uri-miss; detail=query"
        assert shelf.get("/text/?page=2").cache == "isr; fwd=uri-miss; stored"
        assert shelf.get("/text/?page=2").cache == "isr; hit"
        shelf.get("/tagged/?q=x")
        assert shelf.get("/tagged/?q=x").cache == "isr; hit"
        assert shelf.get("/tagged/?page=2").cache == "isr; fwd=uri-miss; detail=query"

    def test_is_served_while_the_database_is_away(self, shelf: Shelf) -> None:
        shelf.get("/text/")
        # A query that nobody has sent yet, so the rule is asked for.
        status = shelf.do("without_a_database('/text/?utm_source=new')")
        assert re.fullmatch("isr; hit; ttl=3(600|59[0-9])", status)

    def test_belongs_to_its_site(self, shelf: Shelf) -> None:
        for _ in range(2):
            assert "<h1>other</h1>" in shelf.get("/", "b.example").text
            assert "<h1>home</h1>" in shelf.get("/").text

    def test_has_translations_that_link_to_it(self, shelf: Shelf) -> None:
        shelf.do("translate('home', 'accueil'); translate('files', 'fichiers')")
        shelf.do("translate('book', 'livre')")
        assert "livre" in shelf.get("/files/book/").text
        assert shelf.get("/fr/fichiers/livre/").status == 200
        assert shelf.get("/fr/fichiers/livre/").cache == "isr; hit"
        shelf.do("edit('livre', title='Le livre')")
        assert "Le livre" in shelf.get("/files/book/").text
        shelf.do("edit('book', title='The book')")
        assert "The book" in shelf.get("/fr/fichiers/livre/").text

    def test_follows_wagtail_localize(self, shelf: Shelf) -> None:
        pytest.importorskip("wagtail_localize")
        shelf.do("localize('home'); localize('text')")
        shelf.get("/fr/")
        assert "<h1>words</h1>" not in shelf.get("/fr/text/").text
        shelf.do("edit('text', title='words')")
        # The menu is that of the first language.
        assert ">words</a>" in shelf.get("/fr/").text
        assert "<h1>words</h1>" not in shelf.get("/fr/text/").text
        shelf.do("localize('text')")
        assert "<h1>words</h1>" in shelf.get("/fr/text/").text

    def test_can_be_prerendered(self, shelf: Shelf) -> None:
        results = shelf.do("[(each.url, each.outcome) for each in application.prerender(paths())]")
        urls = {url for url, _ in results}
        assert {"http://a.example/files/glob/", "http://b.example/"} < urls
        assert not [url for url in urls if "/live/" in url]
        assert {outcome for _, outcome in results} <= {"rendered", "skipped"}


class TestTheChecks:
    @pytest.mark.parametrize(
        ("settings", "ids"),
        [
            ({}, []),
            ({"WAGTAIL_REVALIDATE": None}, []),
            ({"WAGTAIL_REVALIDATE": 60}, []),
            ({"WAGTAIL_REVALIDATE": 0}, ["isr.E101"]),
            ({"WAGTAIL_SITE_TAGS": ["library.Nobody"]}, ["isr.E102"]),
            ({"WAGTAIL_SITE_TAGS": ["library"]}, ["isr.E102"]),
            ({"BASE_URL": "http://a.example"}, ["isr.W101"]),
        ],
    )
    def test(self, shelf: Shelf, settings: dict[str, object], ids: list[str]) -> None:
        assert shelf.do(f"checked({settings!r})") == ids

    def test_say_that_a_string_is_no_list_of_models(self, shelf: Shelf) -> None:
        found = shelf.do("checked({'WAGTAIL_SITE_TAGS': 'library.Notice'}, 'msg')")
        assert "takes a list, as in ['library.Notice']" in str(found)
