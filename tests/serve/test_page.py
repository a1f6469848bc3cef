"""The chat page in a real browser: pictures, streams, two strides side by side, a phone, and text that stays text."""

import json
import time

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from support.live_server import Relay, Server
from support.videos import write_video
from vlm.cli.server.app import make_app
from vlm.cli.server.served import ServedModel, Settings
from vlm.models.engine import ChatEngine, TokenChoice
from vlm.models.engine.sampling import Chooser

pytestmark = pytest.mark.browser

WORD = 100
"""A token of the tiny model's tokenizer."""

PATIENCE = 100
"""Seconds: a reply takes less than one of a processor, of which a busy machine may give little."""


DESK, PHONE = (1200, 900), (390, 844)
both = pytest.mark.parametrize("page", [DESK, PHONE], ids=["desk", "phone"], indirect=True)


@pytest.fixture
def page(driver, server, request):
    """The chat page, on a desk or a phone; nothing on it is ever wider than its screen."""
    width, height = getattr(request, "param", DESK)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(server.url)
    WebDriverWait(driver, PATIENCE).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#model option"))
    yield driver
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
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
        WebDriverWait(page, PATIENCE).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#files li")) == len(files))
    before = len(page.find_elements(By.CSS_SELECTOR, "#turns > li"))
    page.find_element(By.ID, "question").send_keys(question, Keys.ENTER)
    done = "return !document.getElementById('stop').hidden || document.querySelectorAll('#turns > li').length"
    WebDriverWait(page, PATIENCE).until(lambda d: d.execute_script(done) not in (True, before))


def errors(page):
    """Everything that the console says; a refusal of ours is not an error of the page."""
    return [line for line in page.get_log("browser") if line["level"] == "SEVERE" and " 400 " not in line["message"]]


def drop(page, paths):
    """Drags files from the desktop over the conversation, and lets go."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 150, "y": 300, "data": data})
        over = "over" in page.find_element(By.ID, "talk").get_attribute("class")
        assert over == (kind != "drop")
    WebDriverWait(page, PATIENCE).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#files img")) == len(paths))


@both
def test_two_dropped_pictures_are_asked_about_and_shown_with_their_tiles(page, pictures):
    drop(page, pictures)
    ask(page, "What is it?")
    reply = page.find_elements(By.CSS_SELECTOR, "#turns .assistant .said")[-1]
    assert reply.text
    captions = [f.text for f in page.find_elements(By.CSS_SELECTOR, "#turns figcaption")]
    assert captions == ["300 × 60, 4 × 1 tiles and the whole"] * 2
    assert "Positions used" in page.find_element(By.ID, "facts").text
    assert page.execute_script("return window.hit") is None  # a file name is text
    page.find_element(By.ID, "question").send_keys("And now?", Keys.ENTER)  # the next turn continues the conversation
    WebDriverWait(page, PATIENCE).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#turns .assistant")) == 2)
    WebDriverWait(page, PATIENCE).until(lambda d: not d.find_element(By.ID, "stop").is_displayed())
    assert not errors(page)


@both
def test_two_strides_side_by_side(page, pictures):
    page.find_element(By.ID, "compare").click()
    stride = page.find_element(By.ID, "stride")
    stride.send_keys(Keys.ARROW_LEFT)
    assert stride.get_attribute("aria-valuetext") == page.find_element(By.ID, "stride-shown").text == "32"
    stride.send_keys(Keys.HOME)
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


@pytest.mark.parametrize(("typed", "taken"), [("3", 3), ("", 8)])
def test_a_video_is_asked_about_and_its_frames_are_said(page, tmp_path, typed, taken):
    """Without a number it is the server's, which the field shows."""
    assert page.find_element(By.ID, "frames").get_attribute("placeholder") == "8"
    page.find_element(By.ID, "frames").send_keys(typed)
    ask(page, "What happens?", [write_video(tmp_path / "clip.webm", range(0, 200, 20), codec="libvpx")])
    assert [e.text for e in page.find_elements(By.CSS_SELECTOR, "#turns figcaption")] == [
        f"{taken} frames, a tile each"
    ]
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
    WebDriverWait(page, PATIENCE).until(lambda d: d.execute_script("return !running && turns.length === 2"))
    assert page.execute_script("return turns.at(-1).text") == reply  # greedy
    page.find_element(By.XPATH, button.format("Edit")).click()
    question = page.find_element(By.ID, "question")
    assert question.get_attribute("value") == "Who are you?" and page.execute_script("return turns.length") == 0
    question.clear()
    ask(page, "Who else?")
    page.find_element(By.ID, "save").click()
    saved = tmp_path / "conversation.json"
    WebDriverWait(page, PATIENCE).until(lambda d: saved.exists())
    assert json.loads(saved.read_text())[0]["text"] == "Who else?"


def test_the_model_is_picked_where_several_are_served(driver, parts):
    settings = Settings()
    names = ["first", "<b>second</b>"]
    models = {name: ServedModel(name, ChatEngine(*parts), parts[1], settings) for name in names}
    server = Server(make_app(models, settings))
    try:
        driver.get(server.url)
        WebDriverWait(driver, PATIENCE).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#model option")) == 2)
        picker = Select(driver.find_element(By.ID, "model"))
        assert [option.text for option in picker.options] == names  # a name is text
        picker.select_by_visible_text(names[1])
        ask(driver, "Who are you?")
        assert models[names[1]].engine.counts["new_tokens"] and not models[names[0]].engine.counts["new_tokens"]
    finally:
        server.stop()


@pytest.fixture
def endless(page, monkeypatch):
    """A reply that goes on for long, and has begun."""
    write_slowly(page, monkeypatch)
    return page


def write_slowly(page, monkeypatch):
    def slowly(chooser, logits, number, likeliest):
        time.sleep(0.01)
        return TokenChoice(WORD, "")

    monkeypatch.setattr(Chooser, "choose", slowly)
    page.execute_script("document.getElementById('tokens').value = 3000")
    page.find_element(By.ID, "question").send_keys("Tell me everything.", Keys.ENTER)
    begun(page)


def begun(page):
    WebDriverWait(page, PATIENCE).until(lambda d: d.execute_script("return running && turns.at(-1).text.length > 10"))


def stop(page, server):
    page.find_element(By.ID, "stop").click()
    WebDriverWait(page, PATIENCE).until(lambda d: not d.find_element(By.ID, "stop").is_displayed())
    WebDriverWait(page, PATIENCE).until(lambda d: not server.served.engine.running)


@both
def test_a_reply_can_be_stopped_and_talked_on(endless, server, monkeypatch):
    stop(endless, server)
    kept = endless.execute_script("return turns.at(-1).text")
    assert endless.find_elements(By.CSS_SELECTOR, ".assistant .said")[-1].text.strip() == kept.strip() != ""
    monkeypatch.undo()
    endless.execute_script("document.getElementById('tokens').value = 5")
    ask(endless, "And now?")
    assert not endless.find_elements(By.CSS_SELECTOR, ".failed")


def test_a_retry_takes_the_place_of_a_reply_that_is_being_written(endless, server):
    endless.find_element(By.XPATH, "//*[@id='turns']//button[text()='Retry']").click()
    begun(endless)
    assert endless.find_element(By.ID, "stop").is_displayed()
    assert len(endless.find_elements(By.CSS_SELECTOR, "#turns > li")) == 2
    stop(endless, server)


@both
def test_the_end_of_a_reply_stays_in_sight_until_somebody_scrolls_up(endless, server):
    reach = "return turns.at(-1).element.getBoundingClientRect().bottom - $('ask').getBoundingClientRect().top"
    endless.execute_script("$('turns').style.lineHeight = 12")  # a reply of many lines, soon
    tall = "return turns.at(-1).element.offsetHeight > innerHeight"
    WebDriverWait(endless, PATIENCE).until(lambda d: d.execute_script(tall))
    WebDriverWait(endless, PATIENCE).until(lambda d: d.execute_script(reach) <= 0)  # with the next token
    slider = "return document.getElementById('stride').getBoundingClientRect().bottom <= innerHeight"
    assert endless.execute_script(slider) == (endless.execute_script("return innerWidth") > 760)  # beside, or below it
    endless.execute_script("scrollTo(0, 0)")
    written = endless.execute_script("return turns.at(-1).text.length")
    WebDriverWait(endless, PATIENCE).until(lambda d: d.execute_script("return turns.at(-1).text.length") > written + 20)
    assert endless.execute_script("return scrollY") == 0
    stop(endless, server)
    assert endless.execute_script("return scrollY") == 0


def test_a_lost_connection_is_said_and_the_conversation_goes_on(driver, server, monkeypatch):
    relay = Relay(server.url)
    driver.get(relay.url)
    WebDriverWait(driver, PATIENCE).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#model option"))
    write_slowly(driver, monkeypatch)
    relay.cut()
    WebDriverWait(driver, PATIENCE).until(lambda d: d.find_elements(By.CSS_SELECTOR, ".failed"))
    assert "connection" in driver.find_element(By.CSS_SELECTOR, ".failed").text
    monkeypatch.undo()
    driver.execute_script("document.getElementById('tokens').value = 5")
    ask(driver, "Are you there?")
    assert len(driver.find_elements(By.CSS_SELECTOR, ".failed")) == 1
    relay.close()


def test_a_refusal_is_shown_where_the_reply_would_be_and_harms_no_later_question(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ask(page, "What is it?", [tmp_path / "broken.png"])
    assert page.find_element(By.CSS_SELECTOR, ".failed").text
    assert page.find_element(By.ID, "send").is_enabled()
    ask(page, "Who are you?")
    assert len(page.find_elements(By.CSS_SELECTOR, ".failed")) == 1
    assert page.find_elements(By.CSS_SELECTOR, "#turns .assistant .said")[-1].text


def test_a_pasted_picture_is_attached(page):
    page.execute_async_script("""const done = arguments[0], canvas = document.createElement('canvas');
        canvas.toBlob((blob) => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([blob], 'shot.png', {type: 'image/png'}));
          const event = new ClipboardEvent('paste', {clipboardData, bubbles: true});
          document.getElementById('question').dispatchEvent(event);
          done();
        });""")
    WebDriverWait(page, PATIENCE).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#files img")) == 1)
    ask(page, "What is it?")
    assert "300 × 150" in page.find_element(By.CSS_SELECTOR, "#turns figcaption").text
    assert not errors(page)


def test_a_page_without_a_clipboard_copies_both_sides(page):
    page.execute_script("""Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true});
        document.addEventListener('copy', () => { window.copied = document.activeElement.value; });""")
    page.find_element(By.ID, "compare").click()
    ask(page, "Who are you?")
    page.find_element(By.XPATH, "//*[@id='turns']//button[text()='Copy']").click()
    sides = page.execute_script("return turns.at(-1).sides.map((side) => side.text)")
    copied = page.execute_script("return window.copied")
    assert copied == f"the model's own:\n{sides[0]}\n\nplain:\n{sides[1]}"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_is_dark_where_the_machine_is_and_the_button_changes_it(page, scheme):
    value = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", value)
    script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    before = page.execute_script(script)
    page.find_element(By.ID, "theme").click()
    after = page.execute_script(script)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (max(before) < 60, max(after) < 60) == (scheme == "dark", scheme != "dark")


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


def test_everything_has_a_name_for_a_screen_reader(page):
    nameless = """return [...document.querySelectorAll('input, textarea, select, button')].filter(
        e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.execute_script(nameless) == []


def test_nothing_is_fetched_from_elsewhere(page, server):
    used = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert used and all(name.startswith(server.url) for name in used)
