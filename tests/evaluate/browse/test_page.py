"""The page of runs in a real browser, from disk with no network and from its own server."""

import json
import shutil
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from evaluate.browse.page import as_data, page, write_page
from evaluate.browse.runs import runs_below
from evaluate.browse.serve import make_server

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def test_data_cannot_end_their_element() -> None:
    data = as_data({"text": "</script><!--\u2028"})
    assert "<" not in data
    assert "\u2028" not in data
    assert json.loads(data) == {"text": "</script><!--\u2028"}


def test_the_page_is_one_file_that_names_no_other_address(runs: Path) -> None:
    text = page(runs_below(runs))
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "connect-src 'none'" in text
    assert "connect-src 'self'" in page(runs_below(runs), live=True)


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of the runs, with a summary that contains a script."""
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    (copy / "toy/layer03/report/main/summary.txt").write_text(HOSTILE)
    return copy


@pytest.fixture
def visit(browser: WebDriver) -> Generator[Callable[[str], None]]:
    """Opens an address; afterwards the console must be empty, and nothing requested from another host."""
    addresses: list[str] = []

    def open_address(address: str) -> None:
        addresses.append(address)
        browser.get("about:blank")
        browser.get(address)
        _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".top h1"))

    browser.set_window_size(1400, 1000)
    browser.get_log("performance")
    yield open_address
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    own = tuple(address.partition("index.html")[0] for address in addresses)
    assert all(url.startswith((*own, "data:", "about:")) for url in urls)
    assert browser.execute_script("return window.hacked") is None


def _wait(browser: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, 20).until(lambda _: condition())


def _rows(browser: WebDriver) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('.table tbody tr')].map(e => e.dataset.run)")


def _press(browser: WebDriver, key: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


@pytest.mark.browser
def test_runs_are_listed_filtered_ordered_and_chosen(browser: WebDriver, visit, folder: Path) -> None:
    visit(write_page(folder).as_uri())
    assert _rows(browser) == ["toy/3/later", "toy/3/main", "toy/3/main/k2"]
    assert "bare layer 11" in browser.find_element(By.TAG_NAME, "body").text
    box = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    box.send_keys("evaluated k4")
    _wait(browser, lambda: _rows(browser) == ["toy/3/main"])
    box.send_keys(Keys.ESCAPE)
    box.clear()
    box.send_keys(" ")
    heading = next(button for button in browser.find_elements(By.CSS_SELECTOR, "th button") if button.text == "k")
    heading.click()
    _wait(browser, lambda: _rows(browser) == ["toy/3/main/k2", "toy/3/main", "toy/3/later"])

    browser.find_element(By.CSS_SELECTOR, "tr[data-run='toy/3/main']").click()
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".details table"))
    assert "toy%2F3%2Fmain" in browser.current_url
    browser.find_element(By.CSS_SELECTOR, "summary").click()
    assert browser.find_element(By.CSS_SELECTOR, ".details pre").text == HOSTILE
    assert len(browser.find_elements(By.CSS_SELECTOR, ".details tbody tr")) == 3
    assert not browser.find_elements(By.CSS_SELECTOR, "main script, main img")


@pytest.mark.browser
def test_plots_have_a_dot_a_prefix_and_a_curve_a_run(browser: WebDriver, visit, folder: Path) -> None:
    visit(write_page(folder).as_uri() + "#toy%2F3%2Fmain+toy%2F3%2Fmain%2Fk2")
    first, second = browser.find_elements(By.CSS_SELECTOR, "svg.chart")
    # The one in training has no config yet, and so no prefixes to draw.
    assert len(first.find_elements(By.CSS_SELECTOR, ".dot")) == 6
    assert len(first.find_elements(By.CSS_SELECTOR, ".dot.chosen")) == 2
    assert len(second.find_elements(By.CSS_SELECTOR, ".curve")) == 2
    numbers = browser.execute_script(
        "return [...document.querySelector('svg.chart').querySelectorAll('text')].map(e => e.textContent)"
    )
    # At least three on each axis, beside the two names: one number does not describe a logarithmic scale.
    assert len(numbers) >= 8
    browser.find_element(By.CSS_SELECTOR, ".panel select option[value=lr]").click()
    _wait(browser, lambda: "lr" in browser.find_elements(By.CSS_SELECTOR, "svg.chart")[1].text)


@pytest.mark.browser
def test_a_run_with_one_measurement_is_a_dot_over_training(browser: WebDriver, visit, folder: Path) -> None:
    for log in folder.rglob("metrics.jsonl"):
        held_out = [line for line in log.read_text().splitlines() if "held_out_fvu" in line]
        log.write_text("".join(f"{line}\n" for line in held_out[-1:]))
    visit(write_page(folder).as_uri() + "#toy%2F3%2Fmain")
    chart = browser.find_elements(By.CSS_SELECTOR, "svg.chart")[1]
    assert len(chart.find_elements(By.CSS_SELECTOR, ".dot")) == 1
    assert not chart.find_elements(By.CSS_SELECTOR, ".curve")
    steps = [text.text for text in chart.find_elements(By.CSS_SELECTOR, "text[text-anchor=middle]")]
    assert len(set(steps)) == len(steps) > 0


@pytest.mark.browser
def test_the_keyboard_chooses_and_links_lead_to_the_feature_pages(browser: WebDriver, visit, folder: Path) -> None:
    visit(write_page(folder).as_uri())
    for key in ("j", "j", Keys.ENTER):
        _press(browser, key)
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".details .name"))
    assert browser.find_element(By.CSS_SELECTOR, ".details h2").text == "toy/3/main"
    _press(browser, "t")
    assert browser.execute_script("return document.documentElement.dataset.theme") in {"dark", "light"}
    _press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("type") == "search"
    browser.find_element(By.CSS_SELECTOR, ".links a").click()
    _wait(browser, lambda: "toy, layer 3" in browser.find_element(By.CSS_SELECTOR, "#main").text)


@pytest.mark.browser
def test_a_served_page_renews_itself_and_says_when_the_server_is_gone(browser: WebDriver, visit, folder: Path) -> None:
    with make_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            visit(f"http://127.0.0.1:{server.server_address[1]}/index.html")
            assert len(_rows(browser)) == 3
            shutil.copytree(folder / "toy/layer03/transcoder/main/k2", folder / "toy/layer03/transcoder/newer")
            _wait(browser, lambda: len(_rows(browser)) == 4)
            browser.find_element(By.CSS_SELECTOR, ".table a").click()
            _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".prefixes"))
            browser.back()
            _wait(browser, lambda: len(_rows(browser)) == 4)
        finally:
            server.shutdown()
            thread.join()
    _wait(browser, lambda: "stopped" in browser.find_element(By.CSS_SELECTOR, ".date").text)
    # The refused connection is in the console, as it must be.
    browser.get_log("browser")


@pytest.mark.browser
def test_on_a_phone_every_number_is_within_the_screen(browser: WebDriver, visit, folder: Path) -> None:
    browser.set_window_size(500, 900)
    visit(write_page(folder).as_uri())
    inside = browser.execute_script(
        "return [...document.querySelectorAll('.table td')].every(e => e.getBoundingClientRect().right <= innerWidth)"
        " && document.querySelector('.wide').scrollWidth <= document.querySelector('.wide').clientWidth"
    )
    assert inside
    titles = browser.execute_script("return [...document.querySelectorAll('.table td')].map(e => e.dataset.title)")
    assert "FVU" in titles
    browser.set_window_size(1400, 1000)
