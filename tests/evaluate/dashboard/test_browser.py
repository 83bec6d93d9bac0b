"""The pages in a real browser, opened from disk with no network: clicks, search, keys, hostile tokens."""

import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from common.progress import Silent
from evaluate.dashboard.packs import script
from evaluate.dashboard.write import write_dashboard

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"); window.hacked = 1; ("',
    "</script><script>window.hacked = 1</script>",
    "`<b>`\u202e\u0000 \u2028",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
]
SECONDS = 20


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the toy cache, with tokens made to break a page."""
    folder = tmp_path_factory.mktemp("pages of a run")
    tokens = sorted(toy.evidence.words)
    words = {token: f"{HOSTILE[index % len(HOSTILE)]} {token}" for index, token in enumerate(tokens)}
    write_dashboard(folder, replace(toy.evidence, words=words), progress=Silent())
    return folder


@pytest.fixture
def visit(browser: WebDriver, folder: Path) -> Generator[Callable[[str], None]]:
    """Opens an address of the pages; afterwards the console must be empty and every request one of a file."""

    browser.get("about:blank")
    # Messages that pages of other tests have left.
    browser.get_log("browser")
    browser.get_log("performance")

    def open_address(address: str) -> None:
        browser.get("about:blank")
        browser.get(f"{(folder / 'index.html').as_uri()}#/{address}")
        _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#main h1, #main .none"))

    browser.set_window_size(1400, 1000)
    yield open_address
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert all(url.startswith(("file:", "data:", "about:")) for url in urls)
    assert browser.execute_script("return window.hacked") is None


def _wait(browser: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, SECONDS).until(lambda _: condition())


def _heading(browser: WebDriver) -> str:
    return browser.execute_script("return document.querySelector('#main h1')?.textContent || ''")


def _texts(browser: WebDriver, selector: str) -> list[str]:
    """Of all such elements at one moment: asked one by one, elements may be removed in between."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def _address(browser: WebDriver) -> str:
    return browser.current_url.partition("#")[2]


def test_the_overview_lists_prefixes_and_leads_to_features(browser: WebDriver, visit) -> None:
    visit("")
    assert "toy, layer 3" in _heading(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".prefixes tbody tr")) == 3
    browser.find_element(By.CSS_SELECTOR, ".overview a.feature").click()
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".contexts .t.centre"))
    assert _address(browser).startswith("/3/")


def test_unproved_rows_are_named_on_every_page(browser: WebDriver, visit, toy, tmp_path: Path) -> None:
    visit("3/40")
    assert _texts(browser, ".caution") == []
    cache = toy.evidence.head["cache"] | {"provenance": "unproved"}
    write_dashboard(tmp_path, replace(toy.evidence, head={**toy.evidence.head, "cache": cache}), progress=Silent())
    for address in ("", "3/40", "compare/3/40+3/41", "cluster/3/0"):
        browser.get("about:blank")
        browser.get(f"{(tmp_path / 'index.html').as_uri()}#/{address}")
        _wait(browser, lambda: _texts(browser, ".caution"))
        assert ["Provenance unproved" in text for text in _texts(browser, ".caution")] == [True]


def test_a_page_shows_every_section_with_the_values_of_the_evidence(browser: WebDriver, visit, toy) -> None:
    visit("3/40")
    _wait(browser, lambda: _heading(browser) == "3/40")
    titles = [title.text.split("\n")[0] for title in browser.find_elements(By.CSS_SELECTOR, "h2")]
    assert len(titles) == 7
    rows = toy.evidence.arrays["context_strongest"][40]
    values = [float(element.text) for element in browser.find_elements(By.CSS_SELECTOR, ".context .where b")]
    assert values == pytest.approx(toy.dense[rows[rows >= 0], 40], rel=1e-2)
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg.chart")) == 2


def test_hovering_a_token_tells_its_value(browser: WebDriver, visit, toy) -> None:
    visit("3/40")
    token = browser.find_element(By.CSS_SELECTOR, ".t.centre")
    webdriver.ActionChains(browser).move_to_element(token).perform()
    _wait(browser, lambda: browser.find_element(By.ID, "tip").is_displayed())
    stated = float(browser.find_element(By.CSS_SELECTOR, "#tip span").text.split()[0])
    assert stated == pytest.approx(float(toy.evidence.arrays["largest"][40]), rel=1e-3)


def test_tokens_are_text_and_nothing_else(browser: WebDriver, visit, toy) -> None:
    visit("3/40")
    shown = browser.execute_script("return document.querySelector('.context .text').textContent")
    row = int(toy.evidence.arrays["context_strongest"][40, 0])
    first, end = toy.text.window(row, toy.settings.context_tokens)
    tokens = sorted(toy.evidence.words)
    index = tokens.index(int(toy.text.tokens[row]))
    assert HOSTILE[index % len(HOSTILE)].split()[0].replace("\u202e", "·").replace("\0", "·")[:8] in shown
    assert end - first == len(browser.find_elements(By.CSS_SELECTOR, ".context:first-child .t"))
    assert not browser.find_elements(By.CSS_SELECTOR, "main script, main img, main iframe, aside script, aside img")
    assert "\u202e" not in shown


def test_search_filters_and_order_change_the_list(browser: WebDriver, visit, toy) -> None:
    visit("")
    box = browser.find_element(By.CSS_SELECTOR, "#side input")
    box.send_keys("3/17")
    _wait(browser, lambda: _texts(browser, ".row b") == ["3/17"])
    box.send_keys(Keys.ENTER)
    _wait(browser, lambda: _heading(browser) == "3/17")
    browser.find_element(By.CSS_SELECTOR, "#side input").send_keys(Keys.ESCAPE)
    order = browser.find_elements(By.CSS_SELECTOR, "#side select")[2]
    order.find_element(By.CSS_SELECTOR, "option[value=largest]").click()
    strongest = f"3/{int(np.argmax(toy.evidence.arrays['largest']))}"
    _wait(browser, lambda: _texts(browser, ".row b")[0] == strongest)
    group = browser.find_elements(By.CSS_SELECTOR, "#side select")[1]
    group.find_element(By.CSS_SELECTOR, "option[value='0']").click()
    _wait(browser, lambda: _texts(browser, ".count") == ["8 of 64 features"])


def test_the_keyboard_does_everything(browser: WebDriver, visit, toy) -> None:
    visit("3/20")
    body = browser.find_element(By.TAG_NAME, "body")
    for key, expected in ((Keys.ARROW_RIGHT, "3/21"), (Keys.ARROW_LEFT, "3/20"), ("j", "3/21"), ("k", "3/20")):
        body.send_keys(key)
        _wait(browser, lambda expected=expected: _heading(browser) == expected)
    parent = int(toy.evidence.arrays["coarser_feature"][20, 0])
    body.send_keys("p")
    _wait(browser, lambda: _heading(browser) == f"3/{parent}")
    body.send_keys("2")
    selected = browser.find_element(By.CSS_SELECTOR, "[role=tab][aria-selected=true]").text
    assert selected == "80–100 %"
    body.send_keys("l")
    assert browser.find_elements(By.CSS_SELECTOR, ".contexts.broken")
    body.send_keys("t")
    theme = browser.execute_script("return document.documentElement.dataset.theme")
    body.send_keys("t")
    assert {theme, browser.execute_script("return document.documentElement.dataset.theme")} == {"dark", "light"}
    body.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("type") == "search"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    body.send_keys(Keys.ESCAPE)
    _wait(browser, lambda: "toy, layer 3" in _heading(browser))


def test_features_are_compared_and_the_comparison_has_an_address(browser: WebDriver, visit) -> None:
    visit("3/20")
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("c")
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
    body.send_keys(Keys.ARROW_RIGHT)
    _wait(browser, lambda: _heading(browser) == "3/21")
    body.send_keys("c")
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
    body.send_keys("v")
    _wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".column")) == 2)
    assert _address(browser) == "/compare/3/20+3/21"
    visit("compare/3/1+3/2+3/3+3/4+3/5")
    _wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".column")) == 4)


def test_the_map_names_and_opens_the_feature_under_the_pointer(browser: WebDriver, visit, toy) -> None:
    visit("")
    canvas = browser.find_element(By.CSS_SELECTOR, "canvas.map")
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    _wait(browser, lambda: browser.execute_script("return arguments[0].width > 0", canvas))
    feature = _apart(toy.evidence)
    # Zoomed in twice, so that no other dot is in the way.
    browser.find_element(By.CSS_SELECTOR, ".zoom button").click()
    x, y = browser.execute_script("return nestcoder.map.pixels(arguments[0])", feature)
    width, height = canvas.size["width"], canvas.size["height"]
    pointer = webdriver.ActionChains(browser).move_to_element_with_offset(
        canvas, round(x - width / 2), round(y - height / 2)
    )
    pointer.perform()
    _wait(browser, lambda: browser.find_element(By.ID, "tip").is_displayed())
    assert browser.find_element(By.CSS_SELECTOR, "#tip b").text == f"3/{feature}"
    pointer.click().perform()
    _wait(browser, lambda: _heading(browser) == f"3/{feature}")


def _apart(evidence) -> int:
    """Of the features within the middle of the map the one that is furthest from any other."""
    places = evidence.arrays["map"]
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(len(places))
    inside = (np.abs(places - 0.5) < 0.2).all(axis=1) & (evidence.arrays["firings"] > 0)
    return int(np.argmax(np.where(inside, distance.min(axis=1), 0)))


def test_a_cluster_has_a_page_of_its_features(browser: WebDriver, visit, toy) -> None:
    visit("cluster/3/0")
    assert _heading(browser) == "Cluster 0"
    own = np.flatnonzero(toy.evidence.arrays["cluster"] == 0)
    assert {int(text.split("/")[1]) for text in _texts(browser, "article li a.feature b")} == set(own.tolist())
    browser.find_element(By.CSS_SELECTOR, "article li a.feature").click()
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".facts a"))
    browser.find_element(By.CSS_SELECTOR, ".facts a").click()
    _wait(browser, lambda: _heading(browser) == "Cluster 0")


def test_relatives_are_links_along_the_nesting(browser: WebDriver, visit, toy) -> None:
    child = int(np.flatnonzero(toy.evidence.arrays["coarser_feature"][:, 0] == 2)[0])
    visit(f"3/{child}")
    browser.find_element(By.CSS_SELECTOR, ".nesting a.feature").click()
    _wait(browser, lambda: _heading(browser) == "3/2")
    finer = browser.find_elements(By.CSS_SELECTOR, ".nesting > div:last-child a.feature b")
    assert finer


@pytest.mark.parametrize("address", ["3/64", "9/1", "nothing", "%3Cscript%3Ewindow.hacked=1%3C/script%3E"])
def test_an_address_without_a_page_says_so(browser: WebDriver, visit, address: str) -> None:
    visit(address)
    assert "no feature" in browser.find_element(By.CSS_SELECTOR, "#main .none").text


def test_names_of_percentiles_do_not_overlap(browser: WebDriver, visit) -> None:
    visit("3/20")
    names = browser.execute_script(
        "const draw = (p) => [...nestcoder.charts.histogram([1, 2], 10, p, [5, 50, 95]).querySelectorAll('text')]"
        ".map(e => e.textContent).filter(text => /^(p|median)/.test(text));"
        "return [draw([1, 5, 9]), draw([4.9, 5, 9]), draw([9.8, 9.9, 10])]"
    )
    assert names == [["median", "p5", "p95"], ["median", "p95"], ["median"]]


def test_a_phone_shows_one_thing_at_a_time(browser: WebDriver, visit) -> None:
    browser.set_window_size(500, 900)
    visit("3/20")
    assert not browser.find_element(By.ID, "side").is_displayed()
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    browser.find_element(By.CSS_SELECTOR, ".back").click()
    _wait(browser, lambda: browser.find_element(By.ID, "side").is_displayed())
    assert not browser.find_element(By.ID, "main").is_displayed()
    browser.find_element(By.CSS_SELECTOR, ".to-overview").click()
    _wait(browser, lambda: browser.find_element(By.CSS_SELECTOR, ".overview canvas, .overview svg").is_displayed())
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


def test_the_map_on_a_phone_is_no_taller_than_wide(browser: WebDriver, visit) -> None:
    browser.set_window_size(500, 900)
    visit("overview")
    canvas = browser.find_element(By.CSS_SELECTOR, "canvas.map")
    assert canvas.size["height"] <= canvas.size["width"] + 2


def test_how_a_feature_formed_and_all_its_logits_are_drawn(browser: WebDriver, visit, toy, tmp_path: Path) -> None:
    visit("3/40")
    count, tokens = toy.trained.dict_size, np.array(sorted(toy.evidence.words))
    drawn = {
        "formed_step": np.array([100, 200]),
        "formed_firings": np.tile([8, 40], (count, 1)),
        "formed_largest": np.ones((count, 2), np.float32),
        "formed_token": np.tile([[tokens[0], tokens[1], -1], [tokens[2], -1, -1]], (count, 1, 1)),
        "raised_token": np.tile(tokens[:2], (count, 1)),
        "raised_logit": np.tile([0.5, 0.25], (count, 1)),
        "lowered_token": np.tile(tokens[2:4], (count, 1)),
        "lowered_logit": np.tile([-1.0, -0.5], (count, 1)),
        "logit_histogram": np.tile([3, 0, 2, 1], (count, 1)),
    }
    head = {"formed": {"rows": 400, "threshold": 0.1}, "logits": {"from": "toy"}}
    changed = replace(toy.evidence, arrays=toy.evidence.arrays | drawn, head=toy.evidence.head | head)
    write_dashboard(tmp_path, changed, progress=Silent())
    browser.get(f"{(tmp_path / 'index.html').as_uri()}#/3/40")
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".formed"))
    assert _texts(browser, ".formed tbody td:first-child") == ["100", "200"]
    assert _texts(browser, ".formed td.bar span") == ["2 %", "10 %"]
    assert [len(browser.find_elements(By.CSS_SELECTOR, f".formed tr:nth-child({row}) code")) for row in (1, 2)] == [
        2,
        1,
    ]
    bars = _texts(browser, ".columns.three svg.chart rect title")
    assert bars[0] == "−1 to −0.625: 3 tokens"
    assert len(bars) == 4


def test_spaces_in_a_chip_are_counted(browser: WebDriver, visit) -> None:
    visit("")
    shown = browser.execute_script(
        "return arguments[0].map(text => nestcoder.draw.token(text).textContent)",
        ["\n" + 12 * " ", " ", 4 * " ", " def", "\n\n\n\n", "a b"],
    )
    assert shown == ["⏎␣×12", "␣", "␣×4", " def", "⏎×4", "a b"]


def test_a_missing_pack_is_reported_and_the_other_pages_work(browser: WebDriver, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "data" / "pack-00000.js").unlink()
    browser.get(f"{(copy / 'index.html').as_uri()}#/3/1")
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#main .none"))
    assert "pack-00000.js is missing" in browser.find_element(By.CSS_SELECTOR, "#main .none").text
    assert browser.find_elements(By.CSS_SELECTOR, ".row")
    browser.get_log("browser")
    browser.get_log("performance")


def test_131072_features_open_and_are_searched(browser: WebDriver, folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    shutil.copytree(folder, many)
    (many / "data" / "index.js").write_bytes(script("index", _large_index(131_072)))
    browser.get((many / "index.html").as_uri())
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".row"))
    opened = browser.execute_script("return performance.now()")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".row")) < 100
    box = browser.find_element(By.CSS_SELECTOR, "#side input")
    box.send_keys("word77777")
    _wait(browser, lambda: _texts(browser, ".count") == ["1 of 131,072 features"])
    # Under a second on an idle machine; tests run on a busy one.
    assert opened < 10_000
    assert browser.get_log("browser") == []


def _large_index(count: int) -> dict[str, object]:
    prefixes = [count // 16, count // 4, count]
    return {
        "head": {
            "transcoder": {"name": "many", "prefixes": prefixes},
            "cache": {"model": "toy", "layer": 3, "dataset": None, "fingerprint": "0" * 32},
            "tokens": 1_000_000,
            "rows": 1_000_000,
            "documents": 100,
            "fvu_per_prefix": [0.3, 0.2, 0.1],
            "l0": 32.0,
            "logits": None,
            "self_check": None,
            "split": "held_out",
            "pack_features": 64,
            "kinds": ["strongest"],
            "percentiles": [50],
            "cautions": [],
        },
        "labels": [f"fires on `word{number}` ({number % 100} %), after ` the` (70 %)" for number in range(count)],
        "firings": [(number * 7919) % 20_000 for number in range(count)],
        "largest": [float(number % 50) for number in range(count)],
        "lost": [1e-6 * (number % 1000) for number in range(count)],
        "parent": [-1] * count,
        "cluster": [number % 64 for number in range(count)],
        "clusters": [[count // 64, [number]] for number in range(64)],
        "map": [(number * 2654435761 % 4096) for number in range(2 * count)],
        "vocabulary": [f"token{number}" for number in range(50_000)],
        "tokens": [[(number * step) % 50_000 for step in (1, 3, 7, 11, 13)] for number in range(count)],
    }
