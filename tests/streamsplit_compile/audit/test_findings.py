"""Results of several seeds: do they put what leaks in the same order?"""

from msgspec.structs import replace

from streamsplit_compile.audit.findings import Finding, as_text, orders_agree, summed_up


def finding(cut, seed, right):
    words = as_text([place < right for place in range(20)])
    return Finding(audit="", attack="recognise", what="shipped", cut=cut, encoding="int8", seed=seed, words=words)


def found(*seeds):
    return [finding(f"cut{cut}", seed, right) for seed, rights in enumerate(seeds) for cut, right in enumerate(rights)]


def test_the_order_of_leaks_is_compared_between_seeds():
    assert orders_agree(found([3, 5, 9])) is None
    assert orders_agree(found([3, 5, 9], [4, 8, 20])) == 1.0
    assert orders_agree(found([3, 5, 9], [9, 5, 3])) == -1.0
    assert abs(orders_agree(found([3, 5, 9], [5, 3, 9])) - 1 / 3) < 1e-9


def test_a_wide_latent_gives_away_at_least_what_a_narrow_one_does(spoken):
    narrow, wide, wider = (
        replace(finding("mid", 0, right), width=width) for width, right in ((8, 15), (16, 10), (32, 18))
    )
    plain = finding("mid", 0, 12)
    attacks = [plain, narrow, wide, wider]
    found = summed_up(attacks, [one.outlet for one in attacks], spoken, seeds=1)
    assert [leak.words.rate for leak in found.shipped] == [0.6, 0.75, 0.75, 0.9]
