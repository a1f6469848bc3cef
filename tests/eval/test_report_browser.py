"""The page in a real browser: filters, search, the panel of a sample, a phone, dark mode. Screenshots go to tmp_path,
or to $VLM_SCREENSHOTS."""

import os
from pathlib import Path

import pytest

from support import report_run as fixture
from vlm.eval.report.write import write_report

pytestmark = pytest.mark.browser
pytest.importorskip("selenium", reason="needs the selenium package")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    run = fixture.make_run(root)
    write_report([run], run / "report" / "index.html")
    (root / "media").rename(root / "media.moved")  # the page must not need the images any more
    return (run / "report" / "index.html").as_uri()


def open_page(driver, page, width=1280, height=900, dark=False):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(page)


def screenshot(driver, tmp_path, name):
    folder = Path(os.environ.get("VLM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    assert driver.save_screenshot(str(folder / f"{name}.png"))


def cards(driver):
    return driver.find_elements(By.CSS_SELECTOR, "#grid .sample")


def assert_matches(driver, text):
    """The browser tells the page of a choice a moment later."""
    WebDriverWait(driver, 5).until(lambda d: d.find_element(By.ID, "matches").text == text)


def choose(driver, name, value):
    Select(driver.find_element(By.NAME, name)).select_by_visible_text(value)


def test_the_page_loads_without_errors_or_requests(driver, page, tmp_path):
    open_page(driver, page)
    screenshot(driver, tmp_path, "top")
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    requests = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in requests if not name.startswith("data:")] == []
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert driver.execute_script(broken) == 0
    assert len(cards(driver)) == 24
    assert_matches(driver, "132 of 132 samples")


def test_filters_and_search_narrow_the_samples(driver, page, tmp_path):
    open_page(driver, page)
    choose(driver, "benchmark", "DocVQA (validation)")
    assert_matches(driver, "60 of 132 samples")
    choose(driver, "run", "v2pe-tiny · plain positions")
    choose(driver, "verdict", "wrong")
    WebDriverWait(driver, 5).until(lambda d: all("wrong" in card.text for card in cards(d)))
    shown = cards(driver)
    assert shown and all("wrong" in card.text and "v2pe-tiny" in card.text for card in shown)
    screenshot(driver, tmp_path, "filtered")
    choose(driver, "verdict", "Right and wrong")
    choose(driver, "outcome", "oom")
    WebDriverWait(driver, 5).until(lambda d: all("oom" in card.text for card in cards(d)) and cards(d))
    open_page(driver, page)
    driver.find_element(By.NAME, "text").send_keys("NOT MARKUP")
    assert_matches(driver, "12 of 132 samples")
    assert "</script><b>not markup</b>" in cards(driver)[0].text


def test_a_sample_opens_in_a_panel_with_everything_about_it(driver, page, tmp_path):
    open_page(driver, page)
    choose(driver, "benchmark", "MM-NIAH (test)")
    assert_matches(driver, "60 of 132 samples")
    cards(driver)[0].click()
    panel = driver.find_element(By.ID, "panel")
    first = panel.find_element(By.ID, "panel-title").text
    for title in ("Prompt", "Answer", "Gold", "Extracted", "Score", "Why", "The same item elsewhere"):
        assert title in panel.text
    assert all(i.get_property("naturalWidth") for i in panel.find_elements(By.TAG_NAME, "img")[:2])
    screenshot(driver, tmp_path, "panel")
    panel.send_keys(Keys.ARROW_RIGHT)
    assert panel.find_element(By.ID, "panel-title").text != first
    panel.find_element(By.CSS_SELECTOR, ".others button").click()
    assert panel.is_displayed()
    panel.find_element(By.CSS_SELECTOR, "[aria-label=Close]").click()
    assert not panel.is_displayed()


def test_more_samples_come_on_request(driver, page):
    open_page(driver, page)
    driver.find_element(By.ID, "more").click()
    assert len(cards(driver)) == 48


SECTIONS = ("accuracy", "published", "haystack", "length", "training", "workflow", "times")


def test_published_averages_that_do_not_add_up_are_marked_in_their_rows(driver, page, tmp_path):
    open_page(driver, page)
    driver.execute_script("document.querySelectorAll('details.published').forEach(d => d.open = true)")
    marked = [cell.text.split() for cell in driver.find_elements(By.CSS_SELECTOR, ".published td.off")]
    numbers = [(words[0][:4], words[-1]) for words in marked]
    assert numbers == [("72.5", "72.7"), ("55.2", "55.3"), ("81.8", "81.9"), ("72.5", "73.0"), ("82.3", "82.5")]
    ours = driver.find_elements(By.CSS_SELECTOR, ".published td.mine.marked")
    assert ours and all(cell.find_elements(By.TAG_NAME, "sup") for cell in ours)
    for section in SECTIONS:
        driver.execute_script(f"document.getElementById('{section}').scrollIntoView()")
        screenshot(driver, tmp_path, section)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_never_scrolls_sideways_and_the_panel_fills_it(driver, page, tmp_path, dark):
    shade = "-dark" if dark else ""
    open_page(driver, page, 390, 844, dark=dark)
    screenshot(driver, tmp_path, f"phone{shade}")
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    for section in SECTIONS:
        driver.execute_script(f"document.getElementById('{section}').scrollIntoView()")
        screenshot(driver, tmp_path, f"phone-{section}{shade}")
    driver.execute_script("arguments[0].click()", cards(driver)[0])
    panel = driver.find_element(By.ID, "panel")
    assert panel.rect["width"] == 390 and panel.rect["height"] >= 840
    screenshot(driver, tmp_path, f"phone-panel{shade}")


def test_dark_and_light_follow_the_system_and_the_button(driver, page):
    background = "return getComputedStyle(document.body).backgroundColor"
    open_page(driver, page)
    light = driver.execute_script(background)
    driver.find_element(By.ID, "theme").click()
    dark = driver.execute_script(background)
    assert dark != light
    open_page(driver, page, dark=True)
    assert driver.execute_script(background) == dark
