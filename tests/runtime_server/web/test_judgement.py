from showroom import status

from runtime_server.web.judgement import attempt_in_words, release_in_words


def test_attempts_are_told_in_sentences():
    released, refused = status(8)["releases"]
    assert attempt_in_words(released) == (
        "After training step 600, generation 4 was released: loss on held-out windows 1.4200 → 1.3100, "
        "linear probe 81.0% → 84.0%."
    )
    assert attempt_in_words(refused) == (
        "After training step 900, generation 5 was not released: the linear probe would fall; "
        "loss on held-out windows 1.3100 → 1.2900, linear probe 84.0% → 79.0%."
    )
    assert attempt_in_words(refused | {"before": None}).endswith("the linear probe would fall.")


def test_releases_are_told_in_sentences():
    trial, stable = status(8)["rollout"]["releases"]
    assert release_in_words(trial) == (
        "Generation 4 is on trial with 25% of the devices; 2 devices run it, 3 proven; 1 waits for a budget; "
        "loss on held-out windows 1.4200 → 1.3100."
    )
    assert release_in_words(stable | {"devices": 1, "devices_waiting": 0, "held_out_before": None}) == (
        "Generation 3 runs everywhere; 1 device runs it, 3 proven."
    )
    back = trial | {"status": "rolled back", "reason": "pi-1: the self-test is off", "pinned": True}
    assert release_in_words(back).startswith("Generation 4 was rolled back; ")
    assert release_in_words(back).endswith("; it is pinned; pi-1: the self-test is off.")
