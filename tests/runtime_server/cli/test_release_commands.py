"""What `ssc server releases` says of an attempt that came to nothing."""

from runtime_server.cli.release_commands import attempt_lines


def test_it_says_which_head_refused_a_release_and_which_had_no_say():
    reason = "head rpi4 would go from 118 to 95 of its 120 clips (95 %: down to -25.0 points)"
    found = {"refused": [{"generation": 3, "steps": 350, "reason": reason}], "unjudged": ["m2"]}
    assert attempt_lines(found) == [
        f"generation 3 is not released (training step 350): {reason}",
        "head m2 judges no release: it was pushed without its clips; push it again with `ssc server label --push` and "
        "this server's --state",
    ]
    assert attempt_lines({"refused": [], "unjudged": []}) == []
    assert attempt_lines({}) == [], "an earlier version's server says nothing of it"
