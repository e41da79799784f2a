"""Every view of the page in a real browser, and the pictures of them that stand in docs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from showroom import HOSTILE, LABELS, head
from waiting import until

from runtime_server.telemetry.fleet import ALIVE_S

pytestmark = pytest.mark.slow
PICTURES = Path(__file__).parents[3] / "docs" / "page"
VIEWS = ("devices", "events", "fleet", "training", "heads")
PATIENCE_MS = 30_000


def rows(page):
    return page.locator("tr[data-device]")


def shown(page, view):
    """Once a view has been filled."""
    page.goto(page.url.partition("#")[0] + f"#{view}")
    until(lambda: page.evaluate(f"performance.getEntriesByName('shown-{view}').length"), f"{view} is filled")


def is_live(page):
    until(lambda: page.locator("#link").inner_text() == "live", "the page hears of changes")


def take_picture(page, name):
    """In 64 colours, which is a third of the bytes."""
    PICTURES.mkdir(exist_ok=True)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        PICTURES / name, optimize=True
    )


@pytest.fixture
def busy_room(room):
    room.devices(12, minutes=120)
    for number in range(6):
        room.label(f"pi-{number:03}", "on", LABELS[number % 5], 0.98 - 0.07 * number)
        room.clock.now += 3
        if number % 2:
            room.label(f"pi-{number:03}", "off", LABELS[number % 5], 0.98 - 0.07 * number)
    room.update("pi-001", event="update_failed", reason="the self-test is off by 0.5")
    return room


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_is_drawn_and_fits_its_width(busy_room, open_page, width, scheme):
    page = open_page(busy_room.page.url, width, scheme)
    for view in VIEWS:
        shown(page, view)
        page.wait_for_timeout(300)  # charts are drawn in the next frames
        if view == "events":
            page.wait_for_selector("button.sound canvas", timeout=PATIENCE_MS)
            page.locator("button.sound:has(canvas)").first.click()
            page.wait_for_selector("tr.more audio", timeout=PATIENCE_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{view} is wider than the screen"
        assert page.locator("nav a[aria-current]").inner_text().lower() == view
        if os.environ.get("SSC_TEST_PICTURES"):
            take_picture(page, f"{view}-{width}-{scheme}.png")
    is_live(page)


def test_what_the_views_say(busy_room, open_page):
    page = open_page(busy_room.page.url)
    shown(page, "devices")
    first = rows(page).first.inner_text()
    for said in (
        "pi-000",
        "dog_bark 98 %",
        "generation 3",
        "server",
        "44 °C",
        "↑ 1.8 MB",
        "↓ 170 MB",
        "40 in the spool",
    ):
        assert said in first.replace("\u00a0", " ")
    assert "12 of 12 devices alive" in page.locator("#summary").inner_text()
    shown(page, "events")
    assert "could not take an update: the self-test is off by 0.5" in page.locator("tr[data-number]").first.inner_text()
    shown(page, "fleet")
    assert page.locator("canvas").count() == 2
    assert "waveform" in page.locator("table.heat").inner_text()
    shown(page, "training")
    assert "generation 5 was not released: the linear probe would fall" in page.locator("main").inner_text()
    shown(page, "heads")
    assert "dog_bark, rain, rooster" in page.locator("main").inner_text()
    assert "labels 109 of 120 held-out clips correctly (90.8%)" in page.locator("main").inner_text()


def opened(page, room, number):
    """The row beneath an event, with what can be done about its sound."""
    page.locator(f"tr[data-number='{number}'] button.sound").click()
    page.wait_for_selector("tr.more form", timeout=PATIENCE_MS)
    return page.locator("tr.more")


def test_a_sound_is_seen_and_heard(room, open_page):
    room.devices(3)
    room.label("pi-000", "on", "rain")
    room.clock.now += 2
    room.label("pi-000", "off", "rain")
    page = open_page(room.page.url)
    shown(page, "events")
    page.wait_for_selector("tr[data-number='2'] canvas", timeout=PATIENCE_MS)
    more = opened(page, room, 2)
    page.wait_for_selector("tr.more audio", timeout=PATIENCE_MS)
    dark = "canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; " \
        "return [...d].filter((value, place) => place % 4 === 0 && value > 100).length / (d.length / 4); }"  # fmt: skip
    share = more.locator("canvas").evaluate(dark)
    assert 0.01 < share < 0.9, "it is neither empty nor full"
    seconds = more.locator("audio").evaluate(
        """async (player) => {
            player.muted = true;
            await player.play();
            await new Promise((done) => { player.onended = done; });
            return player.duration;
        }"""
    )
    assert 3 < seconds < 5
    page.locator("tr[data-number='2'] button.sound").click()
    assert page.locator("tr.more").count() == 0


def test_what_cannot_be_heard_says_why(room, open_page):
    room.devices(3)
    room.label("pi-001", "on", "rain")
    page = open_page(room.page.url)
    shown(page, "events")
    more = opened(page, room, 1)
    until(lambda: "its device sent activations, and lends no clip" in more.inner_text(), "why it cannot be heard")
    assert more.locator("audio, canvas").count() == 0


def test_a_sound_is_corrected_and_that_is_taken_back(room, open_page):
    room.devices(1)
    room.label("pi-000", "on", "rain")
    page = open_page(room.page.url)
    shown(page, "events")
    more = opened(page, room, 1)
    known = more.locator("datalist option").evaluate_all("all => all.map((one) => one.value)")
    assert set(known) == set(LABELS)
    more.locator("input").fill("door bell")
    more.locator("button[type=submit]").click()
    until(lambda: "corrected: door bell" in page.locator("tr[data-number='1']").inner_text(), "the correction")
    assert [one.label for one in room.corrections.read()] == ["door bell"]
    page.reload()
    until(lambda: "corrected: door bell" in page.locator("tr[data-number='1']").inner_text(), "it after a reload")
    for button, label in (("None of the labels", "background"), ("It was rain", "rain")):
        opened(page, room, 1).get_by_text(button, exact=True).click()
        until(lambda label=label: f"corrected: {label}" in page.locator("tr[data-number='1']").inner_text(), label)
        assert [one.label for one in room.corrections.read()] == [label]
    opened(page, room, 1).get_by_text("Take back").click()
    until(lambda: "corrected" not in page.locator("tr[data-number='1']").inner_text(), "it is taken back")
    assert room.corrections.read() == []
    # A page that is loaded anew gives up its stream.
    open_page.problems[:] = [said for said in open_page.problems if not said.endswith("/api/v1/stream")]


def test_a_correction_that_cannot_be_kept_says_why(room, open_page):
    room.devices(3)
    room.label("pi-002", "on", "rain")
    page = open_page(room.page.url)
    shown(page, "events")
    more = opened(page, room, 1)
    more.locator("input").fill("dog")
    more.locator("button[type=submit]").click()
    until(lambda: "nothing to learn from" in more.inner_text(), "the reason")
    assert room.corrections.read() == []
    open_page.problems[:] = [said for said in open_page.problems if "409" not in said]


def test_an_empty_server_says_what_to_do(room, open_page):
    room.heads = {}
    page = open_page(room.page.url)
    for view, said in {"devices": "ssc edge run", "events": "ssc server label", "heads": "ssc server label"}.items():
        shown(page, view)
        assert said in page.locator("main").inner_text()


def test_a_device_that_vanishes_is_gone_and_comes_back(room, open_page):
    room.devices(2)
    page = open_page(room.page.url)
    page.wait_for_selector("tr[data-device=pi-001]")
    room.clock.now += ALIVE_S
    room.label("pi-000", "on", "rain")
    page.wait_for_selector("tr.gone[data-device=pi-001]", timeout=PATIENCE_MS)
    assert "gone: last heard of" in page.locator("tr[data-device=pi-001]").inner_text()
    assert page.locator("tr.gone[data-device=pi-000]").count() == 0
    room.label("pi-001", "on", "rain")
    page.wait_for_selector("tr[data-device=pi-001]:not(.gone)", timeout=PATIENCE_MS)


def test_troubles_of_the_server_are_said_on_top(room, open_page):
    room.troubles = ["partition 2 is not served: " + HOSTILE]
    page = open_page(room.page.url)
    page.wait_for_selector("#troubles li", timeout=PATIENCE_MS)
    assert page.locator("#troubles li").inner_text() == room.troubles[0]


def test_hostile_names_are_text(room, open_page):
    """In every place to which a device, a label or a recording can bring a text."""
    from reports import REPORT

    room.heads = {HOSTILE: head((HOSTILE, "rain"))}
    told = REPORT | {
        "target": HOSTILE, "software": HOSTILE, "runtime": HOSTILE, "cuts": {HOSTILE: 5}, "finished": {HOSTILE: 5},
        "latency_ms": {HOSTILE: {"p50": 1.0}}, "trouble": HOSTILE, "errors": {HOSTILE: 1}, "labels_on": {HOSTILE: 1.0},
        "update_failures": [{"event": HOSTILE, "reason": HOSTILE}],
    }  # fmt: skip
    room.do(lambda: room.fleet.report("pi-1", told))
    room.clock.now += 60
    room.do(lambda: room.fleet.report("pi-1", told | {"cuts": {HOSTILE: 50}}))
    page = open_page(room.page.url)
    shown(page, "devices")
    room.label("pi-1", "on", HOSTILE)
    room.update("pi-1", event="update_failed", reason=HOSTILE)
    result = {
        "event": "result", "version": 2, "answer": "server", "device": "pi-1", "window": 1, "time": 5.0,
        "uncertainty": 0, "labels": {HOSTILE: 0.7}, "detected": [HOSTILE], "cut": HOSTILE,
        "finished": "server", "generation": 1, "latency_ms": 5.0,
    }  # fmt: skip
    room.do(lambda: room.fleet.event("pi-1", json.dumps(result).encode()))
    room.label("pi-000", "on", HOSTILE)
    shown(page, "events")
    number = page.locator("tr[data-number]").first.get_attribute("data-number")
    more = opened(page, room, number)
    more.locator("input").fill(HOSTILE[:80])
    more.locator("button[type=submit]").click()
    until(lambda: "corrected: <img" in page.locator("main").inner_text(), "the hostile label")
    opened(page, room, number)
    for view in VIEWS:
        shown(page, view)
        page.wait_for_timeout(300)
        assert page.locator("img, main script, iframe").count() == 0
        if view not in ("training", "fleet"):
            assert "<img src=x onerror=" in page.locator("main").inner_text()
    assert page.title() == "StreamSplit"


def test_a_page_goes_on_when_its_server_has_started_again(tmp_path, open_page):
    from showroom import Showroom

    first = Showroom(tmp_path)
    first.devices(1)
    page = open_page(first.page.url)
    page.wait_for_selector("tr[data-device=pi-000]")
    port = first.page.url.rpartition(":")[2].strip("/")
    first.close()
    page.wait_for_selector("#link.away", timeout=PATIENCE_MS)
    second = Showroom(tmp_path, f"127.0.0.1:{port}")
    try:
        second.devices(3)
        page.wait_for_selector("tr[data-device=pi-002]", timeout=PATIENCE_MS)
        is_live(page)
        assert page.locator("tr[data-device]").count() == 3
    finally:
        second.close()
        open_page.problems.clear()  # requests have failed, as they had to


def test_a_page_for_other_machines_asks_for_the_token(tmp_path, open_page):
    from showroom import Showroom

    room = Showroom(tmp_path, "0.0.0.0:0")
    try:
        room.devices(1)
        page = open_page(room.page.url.replace("0.0.0.0", "127.0.0.1"))
        page.wait_for_selector("#login:not([hidden])", timeout=PATIENCE_MS)
        page.fill("#token", "wrong")
        page.click("#login button")
        until(lambda: page.locator("#refused").inner_text(), "it is refused")
        page.fill("#token", (tmp_path / "web.token").read_text().strip())
        page.click("#login button")
        page.wait_for_selector("tr[data-device=pi-000]", timeout=PATIENCE_MS)
        assert page.locator("#login").is_hidden()
        open_page.problems[:] = [said for said in open_page.problems if "401" not in said]
    finally:
        room.close()


def test_two_hundred_devices_are_painted_and_an_event_of_one_arrives(room, open_page, record_property):
    """How long both take is recorded, for docs/page.md."""
    room.devices(200, minutes=2)
    page = open_page(room.page.url)
    until(lambda: rows(page).count() == 200, "all devices")
    timed = "performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint').startTime"
    record_property("first_paint_ms", page.evaluate(timed))
    record_property("devices_shown_ms", page.evaluate("performance.getEntriesByName('shown-devices')[0].startTime"))
    is_live(page)
    page.evaluate(
        """() => {
            window.seen = new Promise((done) => new MutationObserver((_, all) => {
                const chip = document.querySelector("tr[data-device='pi-123'] .on");
                if (chip && chip.textContent.startsWith("glass")) { all.disconnect(); done(Date.now()); }
            }).observe(document.body, { childList: true, subtree: true }));
        }"""
    )
    published = page.evaluate("Date.now()")
    room.label("pi-123", "on", "glass")
    record_property("event_shown_ms", page.evaluate("window.seen") - published)
    assert "glass" in page.locator("tr[data-device=pi-123]").inner_text()
