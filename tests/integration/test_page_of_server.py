"""`ssc server run --web`: a real server's page says what its device does."""

import urllib.error

import harness
import pytest
import sounds
from harness import get
from test_events import ssc


def test_the_page_shows_a_device_what_it_hears_and_its_head(start, tmp_path):
    server = start.server("--no-training", "--web", "0")
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    url = server.page
    assert url.startswith("http://127.0.0.1:")
    assert get(url, "devices")["devices"] == []
    device = start.device(server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 6), "--event-hold-s", "0.5")
    device.finish()

    events = harness.until(lambda: get(url, "events")["events"] or None, "events")
    labels = [event for event in events if event["kind"] in ("on", "off")]
    assert {event["label"] for event in labels} == set(sounds.LABELS)
    assert {event["device"] for event in labels} == {"pi-1"}
    (view,) = get(url, "devices")["devices"]
    assert (view["name"], view["target"], view["alive"], view["on"]) == ("pi-1", "rpi4", True, {})
    assert view["windows"]["captured"] > 0
    counted = harness.until(lambda: get(url, "server")["windows"] or None, "windows of the device")
    assert counted <= len(device.results())
    (head, other) = get(url, "heads")["heads"]
    assert {head["for"], other["for"]} == {"rpi4", "m2"}
    assert head["labels"] == list(sounds.LABELS)
    assert get(url, "history")["minutes"]
    assert get(url, "server")["troubles"] == []
    harness.assert_no_traceback(tmp_path)


def test_a_wrong_place_for_the_page_is_one_line(toy, tmp_path):
    log = tmp_path / "server.log"
    process = harness.Process(
        log, "server", "run", toy / "encoder.pt", toy / "bundle", "--state", tmp_path / "state", "--web", "here"
    )
    with pytest.raises(AssertionError, match="exit code 2"):
        process.finish()
    assert "--web 'here': give a port, such as 8081" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_other_machines_need_a_token(start):
    server = start.server("--no-training", "--web", "0.0.0.0:0")
    server.process.wait_for_line("with the token in")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(server.page, "devices")
    assert get(server.page, "devices", (server.state / "web.token").read_text().strip())["devices"] == []
