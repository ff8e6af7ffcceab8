"""The site builds without a warning, needs no other host, and every link and anchor in it leads somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from pages import PAGES, RAW_URL, ROOT, SITE_URL, SOURCE_URL, name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """Anchors, links, and what the browser loads by itself."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "edit", "prev", "next"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_another_host(site, pages):
    for path, page in pages.items():
        for address in page.loaded:
            assert "//" not in address.removeprefix("data:"), f"{path.relative_to(site)} loads {address}"
        # With this mark the theme's script asks the host of the repository for stars and releases.
        assert 'data-md-component="source"' not in path.read_text(), path
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:", style.read_text()), style


def test_the_search_works_on_pages_opened_from_disk(site, pages):
    assert (site / "search" / "search_index.js").exists()
    for path, page in pages.items():
        if path.parent != site / "appendix":  # a page of its own, without the theme
            assert any("iframe-worker.js" in address for address in page.loaded), path


def test_every_link_and_anchor_leads_somewhere(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the address where it is shown
            continue
        for link in page.links:
            address, anchor = urldefrag(link)
            if re.match(r"\w+:", address):
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if target in pages and not anchor.startswith("__"):
                assert unquote(anchor) in pages[target].anchors, f"{path.relative_to(site)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_absolute_links_to_this_project_lead_somewhere(page, site, pages):
    for link in re.findall(r"\]\((https://[^)\s]+)\)", page.read_text()):
        address, anchor = urldefrag(link)
        if address.startswith(SITE_URL):
            target = site / (address.removeprefix(SITE_URL) or "index.html")
            assert target.exists(), link
            assert anchor in pages[target].anchors, link
        elif address.startswith(SOURCE_URL):
            inside = re.sub(r"^(blob|tree)/main/", "", address.removeprefix(SOURCE_URL))
            assert (ROOT / inside).exists(), link
        elif address.startswith(RAW_URL):
            assert (ROOT / address.removeprefix(RAW_URL)).exists(), link


def test_links_outside_the_site_are_absolute_on_the_readme():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://"), f"{target} would not work on the package index"


def test_root_pages_link_to_files_that_exist():
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (Path(page).parent / target).exists(), f"{page.name}: {target}"
