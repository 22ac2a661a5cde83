"""Who always gets the app's own answer, which is never stored."""

from __future__ import annotations

import typing as t

import pytest
from answers import BOTH, PLAIN, answer, run

from wsgi_isr import ISRMiddleware, Rule


class TestBypass:
    BYPASS: t.ClassVar = {
        "names": ["sessionid", "other"],
        "callable": lambda environ: "sessionid=" in environ.get("HTTP_COOKIE", ""),
    }

    @pytest.fixture(params=BYPASS.values(), ids=BYPASS)
    def isr(self, request: pytest.FixtureRequest, site: t.Any, make: t.Any) -> t.Any:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        site.answers["/y"] = site.answers["/declared"] = answer()
        return make(bypass=request.param, rules={"/declared": Rule(revalidate=60)})

    @pytest.mark.parametrize("cold", [True, False])
    def test_gets_the_apps_own_answer(self, isr: t.Any, cold: bool) -> None:
        if not cold:
            run(isr)
        for cookies in ("sessionid=1", "a=b; sessionid=2"):
            sent = run(isr, HTTP_COOKIE=cookies)
            headers = dict(sent.headers)
            assert sent.body.decode() == cookies
            assert headers["Cache-Status"] == "isr; fwd=bypass; detail=bypass"
            assert headers["Cache-Control"] == "private, no-store"
        for _ in range(2):
            assert run(isr).body == b"anonymous"

    @pytest.mark.parametrize("cookies", ["xsessionid=1", "a=sessionid", "sessionids=1", ""])
    def test_is_for_those_who_are_named_alone(self, site: t.Any, make: t.Any, cookies: str) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        isr = make(bypass=["sessionid"], rules={"/x": Rule()})
        assert run(isr, HTTP_COOKIE=cookies).body == b"anonymous"

    def test_leaves_what_is_no_page_untouched(self, isr: t.Any) -> None:
        for _ in range(2):
            assert run(isr, "/y", HTTP_COOKIE="sessionid=1").headers == [PLAIN]
            headers = dict(run(isr, "/declared", HTTP_COOKIE="sessionid=1").headers)
            assert headers["Cache-Status"] == "isr; fwd=bypass; detail=bypass"
            assert headers["Cache-Control"] == "private, no-store"

    @BOTH
    def test_by_a_callable_that_raises_is_for_all(
        self, site: t.Any, browse: t.Any, caplog: pytest.LogCaptureFixture, rules: t.Any
    ) -> None:
        site.page("/x", lambda environ: environ.get("wsgi_isr.reason", "own"))
        client = browse(bypass=lambda environ: environ["no such"], rules=rules)
        for _ in range(3):
            assert client.get("/x").text == "own"
        assert caplog.messages == ["the callable given as bypass failed for '/x'"]

    def test_of_an_adapter_that_raises_is_for_its_visitor(self, site: t.Any, make: t.Any) -> None:
        """Also where the page would be a hit."""
        site.page("/x", lambda environ: environ.get("wsgi_isr.reason", "own"))
        isr = make()
        isr.set_bypass(lambda environ: None if environ["HTTP_COOKIE"] else "draft")
        for _ in range(2):
            assert run(isr, HTTP_COOKIE="a=1").body == b"miss"
            assert run(isr).body == b"own"

    @pytest.mark.parametrize("wrong", ["sessionid", [5], [""]])
    def test_takes_names_or_a_callable(self, wrong: t.Any) -> None:
        with pytest.raises(TypeError, match="bypass"):
            ISRMiddleware(answer(), "memory://", bypass=wrong)
