"""The documentation: each page is in the site's menu, and no link or picture of any page leads nowhere."""

import re

import pytest
import yaml

from tests.shared_data import REPO

PAGES = sorted(p.relative_to(REPO) for p in (*REPO.glob("*.md"), *REPO.glob("*/*.md"), *REPO.glob("examples/*/*.md")))
PAGES = [page for page in PAGES if not page.parts[0].startswith((".", "output"))]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s#]*)(#[^)\s]*)?\)")


def anchors(text):
    """What GitHub and mkdocs make of headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall((REPO / page).read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (REPO / page).parent / target if target else REPO / page
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors(path.read_text()), f"{page}: {target}{anchor}"


def test_every_page_is_in_the_menu():
    nav = (REPO / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = {page for part in yaml.safe_load(nav) for page in _pages(part)}
    assert {path.name for path in (REPO / "docs").glob("*.md")} <= named


def _pages(part):
    if isinstance(part, str):
        return [part]
    return [
        page
        for value in part.values()
        for page in (value if isinstance(value, list) else [value])
        for page in _pages(page)
    ]
