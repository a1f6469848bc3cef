"""The preview in a real browser: needles are found on request, and only then. Screenshots go to tmp_path, or to
$VLM_SCREENSHOTS."""

import os
from pathlib import Path

import pytest

from support import long_world as world_module
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.long_mr import LongMrOptions, build_long_mr
from vlm.core.synth.preview import preview

pytestmark = pytest.mark.browser
pytest.importorskip("selenium", reason="needs the selenium package")

from selenium.webdriver.common.by import By  # noqa: E402


@pytest.mark.parametrize("task", ["counting-text", "counting-image"])
def test_needles_are_shown_on_request_and_next_goes_to_each(driver, task, tmp_path):
    world = world_module.make_world(tmp_path / "world")
    options = LongMrOptions((Budget.parse("4K"),), (task,), train=2, val=0, val_share=0.3)
    folders = {"images": [world / "images"], "texts": [world / "text"]}
    build_long_mr(tmp_path / "set", options, world_module.ruler(world), **folders)
    preview(tmp_path / "set" / "train" / "annotations" / f"{task}.jsonl", tmp_path / "page.html")
    driver.get((tmp_path / "page.html").as_uri())
    needles = driver.find_elements(By.CSS_SELECTOR, ".needle")
    assert needles
    seen = ".shot i" if task == "counting-image" else ".bar"
    assert not any(element.is_displayed() for element in driver.find_elements(By.CSS_SELECTOR, seen))
    for k in range(len(needles)):
        driver.find_element(By.ID, "next").click()
        here = driver.find_element(By.CSS_SELECTOR, ".at")
        assert here == needles[k]
        box = driver.execute_script("const r=arguments[0].getBoundingClientRect();return [r.top,r.bottom]", here)
        assert box[0] < driver.execute_script("return innerHeight")
        assert box[1] > 0
    assert all(element.is_displayed() for element in driver.find_elements(By.CSS_SELECTOR, seen))
    folder = Path(os.environ.get("VLM_SCREENSHOTS", tmp_path))
    assert driver.save_screenshot(str(folder / f"preview-{task}.png"))
    driver.find_element(By.ID, "show").click()
    assert not any(element.is_displayed() for element in driver.find_elements(By.CSS_SELECTOR, seen))
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
