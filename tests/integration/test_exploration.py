"""A device that cuts late sends an early cut now and then, and from those the server trains the early blocks."""

import harness
import torch


def test_early_blocks_learn_from_the_exploration_of_a_device_that_cuts_late(start, tmp_path, toy_bundle):
    server = start.server(
        "--training", "--release-steps", 60, "--release-least-s", 0, "--release-tolerance", 1, "--batch", 8
    )
    server.put_table(harness.always(toy_bundle, "rpi4", "two", probe_rate=0.2))
    source = harness.write_wav(tmp_path / "audio.wav", 20.0, seed=11)
    device = start.device(server, "pi-1", source, "--no-realtime", "--seed", 5)
    report, results = device.finish(), device.results()

    cuts = [result["cut"] for result in results]
    early = [cut for cut in cuts if harness.CUTS.index(cut) < harness.CUTS.index("two")]
    assert set(cuts) - set(early) <= {"two"}
    assert 0.08 * len(cuts) < len(early) < 0.35 * len(cuts)
    assert report["probes"] >= len(early) > 0
    assert report["windows_lost"] == 0

    harness.until(lambda: server.status()["generation"] >= 2, "a release")
    first, second = server.model(1).state_dict(), server.model(2).state_dict()
    changed = {name.split(".")[0] for name, value in first.items() if not torch.equal(value, second[name])}
    assert changed == {"one", "two", "projection"}, "only an early cut trains what stands before a late one"
