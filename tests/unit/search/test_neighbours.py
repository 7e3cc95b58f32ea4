from __future__ import annotations

from itertools import combinations

import numpy as np
from small_guides import chain

from autoq.core.choices import AS_IT_IS
from autoq.search.guide import Stitch
from autoq.search.neighbours import Change, all_changes, combined_changes, single_changes

GUIDE = chain(4, group=True)
COSTS = [np.arange(len(slot.options), dtype=np.float64) for slot in GUIDE.usual]
STITCH = Stitch(AS_IT_IS, (0, 1, 2, 3, 0))


def test_a_change_changes_one_slot() -> None:
    assert Change(2, 5).apply(STITCH) == Stitch(AS_IT_IS, (0, 1, 5, 3, 0))
    assert STITCH.options == (0, 1, 2, 3, 0)


def test_a_change_is_told_by_names() -> None:
    assert Change(0, 2).text(GUIDE) == "layer00: int8/channel/minmax w6"
    assert Change(4, 1).text(GUIDE) == "graph/add: int8"


def test_only_options_worth_having_are_changes() -> None:
    changes = all_changes(GUIDE, AS_IT_IS, COSTS)
    assert len(set(changes)) == len(changes) == 4 * 7 + 2
    dearer = [cost.copy() for cost in COSTS]
    dearer[1][3] = 0.5  # four bits that lose less than eight and six: nobody wants those any more
    kept = {(one.slot, one.option) for one in all_changes(GUIDE, AS_IT_IS, dearer)}
    assert {(1, 1), (1, 2)}.isdisjoint(kept)
    assert (1, 3) in kept


def test_what_a_stitch_has_already_is_no_change() -> None:
    changes = all_changes(GUIDE, AS_IT_IS, COSTS)
    singles = single_changes(changes, STITCH, np.random.default_rng(0))
    assert len(singles) == len(changes) - len(GUIDE.usual)
    assert all(one.apply(STITCH) != STITCH for one in singles)


def test_of_a_deep_model_a_draw_of_the_changes_is_taken_and_a_seed_repeats_it() -> None:
    guide = chain(100)
    stitch = Stitch(AS_IT_IS, (0,) * 100)
    costs = [np.arange(7.0) for _ in guide.usual]
    changes = all_changes(guide, AS_IT_IS, costs)
    drawn = [single_changes(changes, stitch, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert len(drawn[0]) == len(set(drawn[0])) == 400
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(one.slot for one in drawn[0]) > 90 > 10 > min(one.slot for one in drawn[0])


def test_pairs_of_all_and_triples_of_the_first_few_change_different_slots() -> None:
    ranked = [Change(slot, option) for option in (1, 2) for slot in range(4)]
    found = list(combined_changes(ranked))
    pairs, triples = ([one for one in found if len(one) == n] for n in (2, 3))
    assert len(found) == len(pairs) + len(triples)
    assert set(pairs) == {one for one in combinations(ranked, 2) if one[0].slot != one[1].slot}
    assert set(triples) == {
        one for one in combinations(ranked[:5], 3) if len({change.slot for change in one}) == 3
    }
    assert list(combined_changes([])) == []
