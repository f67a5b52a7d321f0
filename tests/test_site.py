"""The built site, read from the disk as `make docs` leaves it: both widths, both colours, and the search."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headless import at_widths, faults, headless_chromium, in_browser, until

ROOT = Path(__file__).parent.parent
pytestmark = [
    in_browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("material") and find_spec("mkdocstrings")), reason="needs `make docs` first"),
]
COLOURS = {"dark": "slate", "light": "default"}
OUTSIDE = """
const scrolls = (one) => one && !one.matches('main') &&
    (['auto', 'scroll'].includes(getComputedStyle(one).overflowX) || scrolls(one.parentElement));
const cut = [...document.querySelectorAll('main article *')].filter((one) =>
    one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1 && !scrolls(one));
return [innerWidth, document.scrollingElement.scrollWidth <= innerWidth, cut.map((one) => one.outerHTML)];
"""
"""Whether the page fits the window, and what of its text does not, unless it scrolls by itself as wide tables do."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def test_pages_fit_the_window(site: Path, chromium: Any) -> None:
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 30
    for page in pages:
        chromium.get(page.as_uri())
        for scheme, width in at_widths(chromium):
            colours = f"return document.body.dataset.mdColorScheme === '{COLOURS[scheme]}'"
            until(lambda script=colours: chromium.execute_script(script), lambda: "the colours are not the system's")
            assert chromium.execute_script(OUTSIDE) == [width, True, []], (page.name, scheme)
    assert faults(chromium) == []


def test_the_search_answers_without_a_server(site: Path, chromium: Any) -> None:
    chromium.get((site / "how-to" / "risk.html").as_uri())
    chromium.execute_script("document.querySelector('[for=__search]').click()")
    until(lambda: chromium.find_element("css selector", ".md-search__input").is_displayed())
    chromium.find_element("css selector", ".md-search__input").send_keys("prometheus")
    found = until(lambda: chromium.find_elements("css selector", ".md-search-result__link"))
    paths = {link.get_attribute("href").partition("?")[0].partition("#")[0] for link in found}
    assert (site / "how-to" / "service.html").as_uri() in paths
    assert faults(chromium) == []
