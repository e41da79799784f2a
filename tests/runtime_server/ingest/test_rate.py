from runtime_server.ingest.rate import RateLimit


def test_a_burst_is_let_through_and_then_so_many_a_second_each_device_for_itself():
    now = 0.0
    rate = RateLimit(2.0, lambda: now)
    assert sum(rate.allow("pi-1") for _ in range(3000)) == 2000
    assert rate.allow("pi-2")
    now = 10.0
    assert sum(rate.allow("pi-1") for _ in range(100)) == 20
    now = 1e6
    assert sum(rate.allow("pi-1") for _ in range(3000)) == 2000


def test_devices_without_number_take_no_memory_without_bound(monkeypatch):
    monkeypatch.setattr("runtime_server.ingest.rate._MAX_DEVICES", 10)
    rate = RateLimit(1.0, lambda: 0.0)
    for number in range(1000):
        assert rate.allow(f"pi-{number}")
    assert len(rate._buckets) == 10
