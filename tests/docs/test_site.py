"""The documentation site in a real browser: it builds strictly, needs no network, answers a search and turns dark."""

import functools
import http.server
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
SCREENSHOTS = "VLM_SCREENSHOTS"
REQUESTS = "return performance.getEntriesByType('resource').map(e => e.name)"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line in the output for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` builds it."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("needs mkdocs-material (`make setup` installs it)")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a free loopback port."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.timeout(600)
def test_every_verb_recipe_benchmark_and_package_has_its_page(site: Path) -> None:
    from vlm.cli.main import VERBS
    from vlm.core.config import package_tables

    wanted = {f"reference/commands/{verb}" for verb in VERBS}
    wanted |= {f"reference/recipes/{name}" for name in package_tables("vlm.train", "recipes")}
    wanted |= {f"reference/benchmarks/{name}" for name in package_tables("vlm.eval", "benchmarks")}
    wanted |= {f"api/{package}" for package in ("core", "models", "train", "eval", "cli")}
    assert [page for page in sorted(wanted) if not (site / page / "index.html").is_file()] == []
    train = (site / "reference/commands/train/index.html").read_text("utf-8")
    assert all(f"<code>{option}</code>" in train for option in ("--recipe", "--dry-run", "--processes", "--set"))
    recipe = (site / "reference/recipes/v2pe-32k/index.html").read_text("utf-8")
    assert "<code>optimizer.lr</code>" in recipe and "Trainer default" in recipe
    assert "load_model" in (site / "api/models/index.html").read_text("utf-8")


def test_no_page_names_another_host_for_scripts_styles_fonts_or_pictures(site: Path) -> None:
    loading = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    assert {page.name: found for page in pages if (found := loading.findall(page.read_text("utf-8")))} == {}
    styles = [
        text for path in site.rglob("*.css") for text in re.findall(r"url\(\s*['\"]?(?:https?:)?//", path.read_text())
    ]
    assert styles == []


def test_every_how_to_page_is_in_the_navigation(site: Path) -> None:
    start = "".join(
        (site / page).read_text("utf-8") for page in ("how-to/infer/index.html", "how-to/your-data/index.html")
    )
    pages = [path.stem for path in (ROOT / "docs/how-to").glob("*.md")]
    assert pages and [page for page in pages if f'{page}/"' not in start] == []


@pytest.mark.parametrize("target", ["missing.md", "other.md#no-such-heading", "/absolute/"])
def test_a_dead_link_fails_the_build(tmp_path: Path, target: str) -> None:
    """A site of two pages with the strict rules of ours."""
    rules = re.search(r"^validation:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert rules
    config = {"site_name": "two pages", "strict": True, "plugins": [], **yaml.safe_load(rules.group())}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "other.md").write_text("# Other\n")
    command = [sys.executable, "-m", "mkdocs", "build"]
    for link, code in (("other.md#other", 0), (target, 1)):
        (pages / "index.md").write_text(f"# Start\n\n[a link]({link})\n")
        built = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert built.returncode == code, built.stderr
    assert target.split("#")[-1] in built.stderr


def test_a_public_name_without_a_docstring_fails_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MkDocs counts warnings of its hooks under `strict`."""
    griffe = pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(ROOT / "docs/_generate"))
    api_pages = importlib.import_module("api_pages")
    documented = '__all__ = ["bare", "good", "lost"]\n\ndef good():\n    """Return 1."""\n    return 1\n'
    (tmp_path / "sample.py").write_text(documented + "\ndef bare():\n    return 1\n")
    loader = griffe.GriffeLoader(search_paths=[str(tmp_path)])
    loader.load("sample")
    assert "::: sample.good" in api_pages.page(loader, "sample")
    assert api_pages.log.name.startswith("mkdocs.")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2 and "sample.bare" in said[0] and "sample.lost" in said[1]


@pytest.mark.browser
def test_a_search_for_stride_leads_to_a_page_that_explains_it(driver: Any, address: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(driver, address, tmp_path, "start")
    driver.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("stride")
    results = ".md-search-result__item a"
    explained = f"{results}[href*='positions-and-strides']"  # the list changes with each letter
    WebDriverWait(driver, 20).until(lambda d: d.find_elements(By.CSS_SELECTOR, explained))
    assert "matching document" in driver.find_element(By.CSS_SELECTOR, ".md-search-result__meta").text
    screenshot(driver, tmp_path, "search")
    requests = driver.execute_script(REQUESTS)  # those of this page, before the next one replaces them
    link = driver.find_element(By.CSS_SELECTOR, explained)
    target = link.get_attribute("href")
    driver.execute_script("arguments[0].click()", link)
    WebDriverWait(driver, 20).until(lambda d: d.current_url.split("?")[0] == target.split("?")[0].split("#")[0])
    article = driver.find_element(By.CSS_SELECTOR, "article")
    assert "stride / tokens_per_tile" in article.text
    requests += driver.execute_script(REQUESTS)
    assert any("search_index.json" in name for name in requests)
    assert [name for name in requests if not name.startswith((address, "data:", "blob:"))] == []
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"]] == []


@pytest.mark.browser
def test_dark_mode_toggles_and_follows_the_system(driver: Any, address: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    scheme = "return document.body.getAttribute('data-md-color-scheme')"
    background = "return getComputedStyle(document.body).backgroundColor"
    open_page(driver, address, tmp_path, "light")
    assert driver.execute_script(scheme) == "default"
    light = driver.execute_script(background)
    toggle = next(
        label for label in driver.find_elements(By.CSS_SELECTOR, "label[for^=__palette]") if label.is_displayed()
    )
    toggle.click()
    WebDriverWait(driver, 20).until(lambda d: d.execute_script(scheme) == "slate")
    dark = driver.execute_script(background)
    assert dark != light
    open_page(driver, address, tmp_path, "dark", dark=True)
    assert driver.execute_script(background) == dark


@pytest.mark.browser
def test_the_start_page_shows_its_picture_and_leads_to_the_chinese_one(
    driver: Any, address: str, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(driver, address, tmp_path, "picture")
    assert driver.find_element(By.CSS_SELECTOR, "article img").get_property("naturalWidth") > 0
    driver.find_element(By.LINK_TEXT, "中文").click()
    WebDriverWait(driver, 20).until(lambda d: "四条命令" in d.find_element(By.CSS_SELECTOR, "article").text)
    screenshot(driver, tmp_path, "chinese")
    driver.find_element(By.LINK_TEXT, "English").click()
    WebDriverWait(driver, 20).until(lambda d: "Four commands" in d.find_element(By.CSS_SELECTOR, "article").text)


def open_page(driver: Any, address: str, tmp_path: Path, name: str, *, dark: bool = False) -> None:
    """Open a page with the system's scheme as given and nothing remembered; keep a screenshot."""
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(address)
    driver.execute_script("localStorage.clear()")
    driver.get(address)
    driver.get_log("browser")  # empties the log of the pages before
    screenshot(driver, tmp_path, name)


def screenshot(driver: Any, tmp_path: Path, name: str) -> None:
    """Save what the browser shows to $VLM_SCREENSHOTS or the test's folder."""
    folder = Path(os.environ.get(SCREENSHOTS, tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    assert driver.save_screenshot(str(folder / f"site-{name}.png"))
