"""The page, in a real browser: it shows the trail as it is, filters as the API does, follows, and takes keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from audit.event import Action, Recorded
from deltalog.app.http_guard import token_hash
from tests.app.served import FILES, HOLDERS, Served, known_trail, serving

selenium = pytest.importorskip("selenium.webdriver")

pytestmark = pytest.mark.system("chromium")

TOKEN = "correct-horse-battery"


@attrs.define
class Browser:
    """A browser, as the tests use it."""

    driver: Any

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def each(self, selector: str, attribute: str) -> list[str]:
        """An attribute of every element: read at one moment, since the page draws itself anew."""
        script = "[...document.querySelectorAll(arguments[0])].map((each) => each.getAttribute(arguments[1]))"
        return list(self.run(script, selector, attribute))

    def text(self, selector: str) -> str:
        return str(self.run("document.querySelector(arguments[0]).textContent", selector))

    def wait(self, holds: Callable[[], Any], seconds: float = 15) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.02).until(lambda _: holds())

    def loaded(self) -> None:
        self.wait(lambda: self.one("#status").get_attribute("data-live") == "on")

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.keys import Keys

        named = [getattr(Keys, key) if len(key) > 1 and key.isupper() else key for key in keys]
        self.one("#scroll").send_keys(*named)

    def problems(self) -> list[str]:
        """What the console holds that is bad."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{switch}")
    for switch in ("disable-background-networking", "disable-component-update", "no-first-run", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@attrs.frozen
class Shown:
    """A served trail in the browser."""

    browser: Browser
    served: Served
    events: list[Recorded]

    def leases(self, **fields: str) -> int:
        """How many leases the known trail gives, of those that match."""
        return sum(
            each.event.action is Action.ACQUIRED
            and all(getattr(each.event, name) == value for name, value in fields.items())
            for each in self.events
        )


@pytest.fixture(scope="module")
def served_trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, list[Recorded]]]:
    data = tmp_path_factory.mktemp("page") / "data"
    events = known_trail(data)
    with serving(data) as served:
        yield served, events
        assert not served.faults


@pytest.fixture
def page(chromium: Browser, served_trail: tuple[Served, list[Recorded]]) -> Iterator[Shown]:
    served, events = served_trail
    chromium.open(served.url)
    chromium.loaded()
    yield Shown(chromium, served, events)
    assert not chromium.problems()


def test_it_shows_the_trail_as_it_is(page: Shown) -> None:
    browser = page.browser
    assert len(browser.all(".bar")) >= page.leases()
    for index, (holder, _) in enumerate(HOLDERS):
        assert len(browser.all(f'.bar[data-holder="{holder}"]')) >= page.leases(holder_id=holder) > 0, index
    for ending, action in (("expired", Action.EXPIRED), ("revoked", Action.REVOKED), ("released", Action.RELEASED)):
        count = sum(each.event.action is action for each in page.events)
        assert len(browser.all(f'.bar[data-end="{ending}"]')) == count
        assert len(browser.all(f"#rows path.{ending}")) == (count if ending != "released" else 0)
    for mark in ("conflict", "waiting", "denied"):
        count = sum(each.event.action == mark for each in page.events)
        assert len(browser.all(f'.mark[data-action="{mark}"]')) == count
    assert browser.each(".gap-band", "data-count") == ["12"]
    assert "12 events not recorded" in browser.text(".gap-band")
    labels = browser.run("[...document.querySelectorAll('#rows .label title')].map((each) => each.textContent)")
    assert set(FILES) <= set(labels)
    assert labels == sorted(labels)
    hues = browser.run(
        "new Set([...document.querySelectorAll('.bar')].map((bar) => bar.style.getPropertyValue('--hue'))).size"
    )
    assert hues >= len(HOLDERS)


def test_a_lease_that_a_restart_voided_does_not_look_held(page: Shown) -> None:
    last = [each.event.lock_id for each in page.events if each.event.target == FILES[3]][-1]
    page.browser.wait(lambda: page.browser.each(f'.bar[data-lock="{last}"]', "data-end") == ["restart"])


def test_bars_stand_where_their_times_are(page: Shown) -> None:
    acquired = [
        each.event for each in page.events if each.event.action is Action.ACQUIRED and each.event.target == FILES[0]
    ]
    left = [
        page.browser.run(f"+document.querySelector('.bar[data-lock=\"{event.lock_id}\"] rect.body').getAttribute('x')")
        for event in acquired
    ]
    steps = [later - earlier for earlier, later in pairwise(left)]
    assert max(steps) - min(steps) < 0.5, "one every five seconds"
    lines = "[...document.querySelectorAll(arguments[0])].map((each) => each.getBoundingClientRect().x)"
    ticks, grid = (page.browser.run(lines, selector) for selector in ("#axis line", "#rows line.grid"))
    assert ticks == pytest.approx(grid, abs=0.1)


def test_filters_are_those_of_the_api(page: Shown) -> None:
    browser = page.browser
    browser.one("input[name=holder]").send_keys("agent-2\n")
    browser.wait(lambda: set(browser.each(".bar", "data-holder")) == {"agent-2"})
    browser.loaded()
    assert len(browser.all(".bar")) == page.leases(holder_id="agent-2")
    assert len(browser.all(".gap-band")) == 1, "what the trail says of itself is always shown"
    assert browser.driver.current_url.endswith("#holder=agent-2")
    browser.one("#clear").click()
    browser.wait(lambda: len(browser.all(".bar")) >= page.leases())
    for name, value in (
        ("target", FILES[1]),
        ("target_prefix", "src/ring"),
        ("lock_id", "lock-3"),
        ("min_token", "18"),
    ):
        browser.open(f"{page.served.url}/#{name}={value}")
        browser.loaded()
        numbers = [each["number"] for each in page.served.events(**{name: value}, action=["acquired"])]
        assert len(browser.all(".bar:not([data-target=now])")) >= len(numbers) > 0


def test_a_wrong_filter_is_shown_at_its_field(page: Shown) -> None:
    browser = page.browser
    browser.one("input[name=after]").send_keys("yesterday\n")
    browser.wait(lambda: "ISO 8601" in browser.text("#problem"))
    assert browser.one("input[name=after]").get_attribute("aria-invalid") == "true"
    said = browser.problems()
    assert len(said) == 1, said
    assert "400" in said[0]


def test_it_follows_what_is_recorded(page: Shown) -> None:
    browser = page.browser
    page.served.record(
        1, target="live.py", holder_id="agent-9", holder_name="<img src=x onerror=alert(1)>", lock_id="L", token=99
    )
    browser.wait(lambda: browser.all('.bar[data-lock="L"]'))
    assert browser.each('.bar[data-lock="L"]', "data-end") == ["held"]
    assert not browser.all("img")
    assert "<img" in browser.text("#events td:nth-child(5)")
    page.served.record(1, action=Action.RELEASED, target="live.py", holder_id="agent-9", lock_id="L", token=99)
    browser.wait(lambda: browser.each('.bar[data-lock="L"]', "data-end") == ["released"])
    browser.one("#live").click()
    page.served.record(1, target="unseen.py", lock_id="U", token=100)
    assert browser.text("#status") == "not live"
    browser.one("#live").click()
    browser.wait(lambda: browser.all('.bar[data-lock="U"]'))


def test_it_goes_on_where_it_was_when_the_node_comes_back(chromium: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as served:
        port = served.port
        served.record(1, target="a", lock_id="A", token=1, holder_id="h")
        chromium.open(served.url)
        chromium.loaded()
    chromium.wait(lambda: chromium.one("#status").get_attribute("data-live") == "lost")
    with serving(tmp_path / "data", port=port) as served:
        served.record(1, target="b", lock_id="B", token=2, holder_id="h")
        chromium.loaded()
        chromium.wait(lambda: chromium.each('.bar[data-lock="B"]', "data-end") == ["held"])
        assert chromium.each('.bar[data-lock="A"]', "data-end") == ["stop"]
        chromium.open("about:blank")
    chromium.problems()  # that nobody was there


def test_keys_do_what_hands_do(page: Shown) -> None:
    browser = page.browser
    browser.keys("ARROW_DOWN", "ARROW_RIGHT")
    chosen = browser.each(".bar.chosen", "data-key")
    assert browser.text("#detail h2").startswith("Lease of")
    browser.keys("ARROW_RIGHT")
    assert browser.each(".bar.chosen", "data-key") != chosen
    before = browser.text("#span")
    browser.keys("+")
    closer = browser.text("#span")
    browser.keys("0")
    assert closer != before
    assert browser.text("#span") == before
    browser.keys("ESCAPE")
    assert not browser.all(".bar.chosen")
    browser.keys("?")
    assert browser.one("dialog").get_attribute("open")
    browser.run("document.querySelector('dialog').close()")
    browser.keys("/")
    assert browser.run("document.activeElement.name") == "holder"


def test_it_is_read_in_light_and_in_dark(page: Shown) -> None:
    browser, grounds = page.browser, []
    for scheme in ("light", "dark"):
        browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colours = "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
        text, ground = (luminance(colour) for colour in browser.run(colours))
        grounds.append(ground)
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 7
    assert grounds[0] > 0.8
    assert grounds[1] < 0.2
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG has it."""
    parts = [int(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_asks_for_a_token_and_uses_it(chromium: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "data", token_hashes=(token_hash(TOKEN),)) as served:
        chromium.open(served.url)
        chromium.wait(lambda: chromium.one("#token-form").is_displayed())
        chromium.one("#token").send_keys(f"{TOKEN}\n")
        chromium.loaded()
        chromium.wait(lambda: chromium.text("#figures").startswith("1 events"))
        assert TOKEN not in chromium.driver.current_url
        chromium.open("about:blank")
    assert [("401" in said) for said in chromium.problems()] == [True]


def test_it_asks_nobody_else(page: Shown) -> None:
    asked = page.browser.run("performance.getEntriesByType('resource').map((each) => each.name)")
    assert asked
    assert all(name.startswith((page.served.url, "data:")) for name in asked)
