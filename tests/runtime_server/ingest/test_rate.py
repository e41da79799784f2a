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


def test_beyond_a_number_of_devices_those_heard_of_longest_ago_are_forgotten():
    rate = RateLimit(0.001, lambda: 0.0, max_devices=10)  # one frame each, and no more
    for number in range(1000):
        assert rate.allow(f"pi-{number}")
    assert not any(rate.allow(f"pi-{number}") for number in range(990, 1000))
    assert rate.allow("pi-989")
