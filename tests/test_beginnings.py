"""What goes wrong at the start: a folder that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Make, Site, status_of
from steps import visit, wait_until

from wsgi_isr import RevalidationError, Rule


def test_a_folder_that_cannot_be_opened_is_a_store_that_is_away(
    site: Site, make: Make, tmp_path: Path
) -> None:
    site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
    (tmp_path / "cache").write_text("not a folder")
    url = f"file://{tmp_path}/cache"
    isr, rules = make(url, rules={"/**": Rule()}), {"/**": Rule()}
    assert status_of(visit(isr)) == "isr; fwd=uri-miss; detail=store-error"
    assert status_of(visit(isr)) == "isr; hit"
    with pytest.raises(RevalidationError):
        isr.revalidate("http://localhost/")
    (tmp_path / "cache").unlink()
    wait_until(lambda: _revalidates(isr))
    # It holds for a neighbour, too.
    assert visit(isr).text == visit(make(url, rules=rules)).text == f"render {site.renders()}"


def _revalidates(isr: object) -> bool:
    try:
        isr.revalidate("http://localhost/")  # type: ignore[attr-defined]
    except RevalidationError:
        return False
    return True
