"""The chat page in a real browser: pictures, streams, two strides side by side, a phone, and text that stays text."""

import json
import time

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from support.live_server import Server
from support.videos import write_video
from vlm.cli.server.app import make_app
from vlm.cli.server.served import ServedModel, Settings
from vlm.models.engine import ChatEngine, TokenChoice
from vlm.models.engine.sampling import Chooser

pytestmark = pytest.mark.browser


@pytest.fixture
def page(driver, server):
    driver.set_window_size(1200, 900)
    driver.get(server.url)
    WebDriverWait(driver, 20).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#model option"))
    yield driver
    driver.get_log("browser")  # the driver is shared: its log is emptied


@pytest.fixture
def pictures(tmp_path):
    names = ["red.png", "<b>bold<img src=x onerror=window.hit=1>.png"]
    for name, color in zip(names, [(200, 30, 30), (30, 30, 200)], strict=True):
        Image.new("RGB", (300, 60), color).save(tmp_path / name)
    return [tmp_path / name for name in names]


def ask(page, question, files=()):
    if files:
        page.find_element(By.ID, "pick").send_keys("\n".join(map(str, files)))
        WebDriverWait(page, 10).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#files li")) == len(files))
    before = len(page.find_elements(By.CSS_SELECTOR, "#turns > li"))
    page.find_element(By.ID, "question").send_keys(question, Keys.ENTER)
    done = "return !document.getElementById('stop').hidden || document.querySelectorAll('#turns > li').length"
    WebDriverWait(page, 20).until(lambda d: d.execute_script(done) not in (True, before))


def errors(page):
    """Everything that the console says; a refusal of ours is not an error of the page."""
    return [line for line in page.get_log("browser") if line["level"] == "SEVERE" and " 400 " not in line["message"]]


def test_two_pictures_are_asked_about_and_shown_with_their_tiles(page, pictures):
    ask(page, "What is it?", pictures)
    reply = page.find_elements(By.CSS_SELECTOR, "#turns .assistant .said")[-1]
    assert reply.text
    captions = [f.text for f in page.find_elements(By.CSS_SELECTOR, "#turns figcaption")]
    assert captions == ["300 × 60, 4 × 1 tiles and the whole"] * 2
    assert "Positions used" in page.find_element(By.ID, "facts").text
    assert page.execute_script("return window.hit") is None  # a file name is text
    page.find_element(By.ID, "question").send_keys("And now?", Keys.ENTER)  # the next turn continues the conversation
    WebDriverWait(page, 20).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#turns .assistant")) == 2)
    WebDriverWait(page, 20).until(lambda d: not d.find_element(By.ID, "stop").is_displayed())
    assert not errors(page)


def test_two_strides_side_by_side(page, pictures):
    page.find_element(By.ID, "compare").click()
    page.execute_script("const s = document.getElementById('stride'); s.value = 0; s.oninput()")
    ask(page, "What is it?", pictures[:1])
    sides = page.find_elements(By.CSS_SELECTOR, "#turns .pair > div")
    assert [side.find_element(By.TAG_NAME, "small").text for side in sides] == ["stride 0.25", "plain"]
    terms = page.find_elements(By.CSS_SELECTOR, "#facts dl")
    assert len(terms) == 2
    assert not errors(page)


def test_two_strides_of_v2pe_side_by_side(page, pictures):
    Select(page.find_element(By.ID, "other")).select_by_visible_text("stride 4")
    assert page.find_element(By.ID, "compare").is_selected()
    page.execute_script("const s = document.getElementById('stride'); s.value = 0; s.oninput()")
    ask(page, "What is it?", pictures[:1])
    labels = [e.text for e in page.find_elements(By.CSS_SELECTOR, "#turns .pair small")]
    assert labels == ["stride 0.25", "stride 4"]
    lists = [[e.text for e in d.find_elements(By.TAG_NAME, "dd")] for d in page.find_elements(By.CSS_SELECTOR, "dl")]
    positions = [float(values[-2].replace(",", "")) for values in lists]
    assert positions[0] < positions[1]  # the same picture, closer together
    assert not errors(page)


def test_a_video_is_asked_about_and_its_frames_are_said(page, tmp_path):
    page.execute_script("document.getElementById('frames').value = 3")
    ask(page, "What happens?", [write_video(tmp_path / "clip.webm", range(0, 200, 20), codec="libvpx")])
    assert [e.text for e in page.find_elements(By.CSS_SELECTOR, "#turns figcaption")] == ["3 frames, a tile each"]
    assert page.find_elements(By.CSS_SELECTOR, "#turns .assistant .said")[-1].text
    assert not errors(page)


def test_a_turn_can_be_edited_retried_copied_and_the_conversation_saved(page, tmp_path):
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.execute_script(
        "window.copied = []; navigator.clipboard.writeText = (text) => { window.copied.push(text); return {} }"
    )
    ask(page, "Who are you?")
    button = "//*[@id='turns']//button[text()='{}']"
    reply = page.execute_script("return turns.at(-1).text")
    page.find_element(By.XPATH, button.format("Copy")).click()
    assert page.execute_script("return window.copied") == [reply]
    page.find_element(By.XPATH, button.format("Retry")).click()
    WebDriverWait(page, 20).until(lambda d: d.execute_script("return !running && turns.length === 2"))
    assert page.execute_script("return turns.at(-1).text") == reply  # greedy
    page.find_element(By.XPATH, button.format("Edit")).click()
    question = page.find_element(By.ID, "question")
    assert question.get_attribute("value") == "Who are you?" and page.execute_script("return turns.length") == 0
    question.clear()
    ask(page, "Who else?")
    page.find_element(By.ID, "save").click()
    saved = tmp_path / "conversation.json"
    WebDriverWait(page, 20).until(lambda d: saved.exists())
    assert json.loads(saved.read_text())[0]["text"] == "Who else?"


def test_the_model_is_picked_where_several_are_served(driver, parts):
    settings = Settings()
    names = ["first", "<b>second</b>"]
    models = {name: ServedModel(name, ChatEngine(*parts), parts[1], settings) for name in names}
    server = Server(make_app(models, settings))
    try:
        driver.get(server.url)
        WebDriverWait(driver, 20).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#model option")) == 2)
        picker = Select(driver.find_element(By.ID, "model"))
        assert [option.text for option in picker.options] == names  # a name is text
        picker.select_by_visible_text(names[1])
        ask(driver, "Who are you?")
        assert models[names[1]].engine.counts["new_tokens"] and not models[names[0]].engine.counts["new_tokens"]
    finally:
        server.stop()


def test_a_reply_can_be_stopped(page, server, monkeypatch):
    def slowly(chooser, logits, number, likeliest):
        time.sleep(0.01)
        return TokenChoice(100, "")

    monkeypatch.setattr(Chooser, "choose", slowly)
    page.execute_script("document.getElementById('tokens').value = 3000")
    page.find_element(By.ID, "question").send_keys("Tell me everything.", Keys.ENTER)
    stop = page.find_element(By.ID, "stop")
    WebDriverWait(page, 20).until(
        lambda d: stop.is_displayed() and d.find_elements(By.CSS_SELECTOR, ".assistant .said")
    )
    stop.click()
    WebDriverWait(page, 20).until(lambda d: not stop.is_displayed())
    WebDriverWait(page, 20).until(lambda d: not server.served.engine.running)


def test_a_refusal_is_shown_where_the_reply_would_be(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ask(page, "What is it?", [tmp_path / "broken.png"])
    assert page.find_element(By.CSS_SELECTOR, ".failed").text
    assert page.find_element(By.ID, "send").is_enabled()


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.hit = 1</script>",
        "<img src=x onerror='window.hit = 1'>",
        "[link](javascript:window.hit=1)",
        "<svg><a xlink:href='javascript:window.hit=1'>x</a></svg>",
        "<iframe srcdoc='<script>top.hit = 1</script>'></iframe>",
        "<a href='data:text/html,<script>top.hit=1</script>'>x</a>",
    ],
)
def test_a_reply_never_runs(page, text):
    page.execute_script(f"document.getElementById('turns').innerHTML = markdown({json.dumps(text)})")
    html = page.find_element(By.ID, "turns").get_attribute("innerHTML").lower()
    assert "javascript:" not in html and "onerror" not in html and "<script" not in html and "<iframe" not in html
    assert page.execute_script("return window.hit") is None


def test_a_phone_shows_it_without_scrolling_sideways(page, pictures):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        ask(page, "What is it?", pictures)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_has_a_name_for_a_screen_reader(page):
    nameless = """return [...document.querySelectorAll('input, textarea, select, button')].filter(
        e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.execute_script(nameless) == []


def test_nothing_is_fetched_from_elsewhere(page, server):
    used = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert used and all(name.startswith(server.url) for name in used)
