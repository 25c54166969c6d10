"""Which policy of a round acts, which round is kept, and how far calls and tokens reach, against plain counting."""

import json
import random
import re

import pytest
from made_up_outcomes import plain_interval

from atlas_ray.data.records import Step, Trajectory
from atlas_ray.data.results import ALWAYS_QUICK
from atlas_ray.stages.round_parts import within_calls, within_tokens
from atlas_ray.stages.round_scores import Judged, common, episodes_of, system, verdicts

TERM = "londi(c=0.05)"


def row(seed, win, calls):
    return {"success": win, "calls": calls, "seed": seed, "flops": 1e6, "seconds": 0.5, "money": 0.0}


def played(rate, calls, seeds=1, episodes=120, first=0):
    """Episodes with exactly this share of successes and so many calls each, by training seed."""
    found = []
    for k in range(seeds):
        wins = [i < round(rate * episodes) for i in range(episodes)]
        random.Random(first + k).shuffle(wins)
        found.append({i: row(i, w, calls) for i, w in enumerate(wins)})
    return found


def judged(quick, switch, calls, first=0, **more):
    return Judged(played(quick, 0, first=first, **more), played(switch, calls, first=first + 7, **more), TERM)


@pytest.mark.parametrize(
    ("quick", "switch", "calls", "acts"),
    [
        (0.40, 0.70, 2, True),  # more success
        (0.40, 0.70, 9, True),  # however dear: the price is for training
        (0.60, 0.66, 2, True),  # it cannot be told that QUICK has as much
        (0.60, 0.40, 1, False),
        (0.98, 0.99, 1, False),  # within the margin, shown
    ],
)
def test_quick_acts_alone_only_where_it_is_shown_to_be_as_good(quick, switch, calls, acts):
    each = judged(quick, switch, calls, episodes=400)
    (found,) = verdicts([each], 0.05)
    assert found.policy == (TERM if acts else ALWAYS_QUICK) and found.kept and not found.why
    assert each.acting(found.policy) is (each.switch if acts else each.quick)
    assert found.alone.success.mean == pytest.approx(quick - switch)


def test_a_switch_that_never_calls_is_its_quick():
    same = played(0.6, 0, episodes=200)
    assert verdicts([Judged(same, same, TERM)], 0.05)[0].policy == ALWAYS_QUICK
    few = played(0.6, 0, episodes=20)
    assert verdicts([Judged(few, few, TERM)], 0.05)[0].policy == TERM, "20 episodes show nothing"


def told(before, after, margin=0.05, episodes=1000):
    """The verdict on a round whose switch has another rate of success and other calls than the one before."""
    rounds = [Judged(played(0.0, 0, episodes=episodes), nested(*each, episodes), TERM) for each in (before, after)]
    return verdicts(rounds, margin)[1]


def nested(rate, calls, episodes):
    """Episodes of which the first ones succeed: of two such systems one has all successes of the other."""
    return [{i: row(i, i < round(rate * episodes), calls) for i in range(episodes)}]


@pytest.mark.parametrize(
    ("before", "after", "kept", "word"),
    [
        ((0.6, 3), (0.6, 1), True, ""),
        ((0.6, 3), (0.58, 1), True, ""),  # a loss within the margin
        ((0.6, 1), (0.9, 3), True, ""),
        ((0.6, 1), (0.6, 1), False, "neither more success nor fewer calls"),
        ((0.5, 1), (0.5, 2), False, "neither"),
        ((0.9, 3), (0.5, 1), False, "more than 0.05 below round 0's"),
        ((0.6, 3), (0.54, 1), False, "but its success is below round 0's"),
        ((0.6, 3), (0.555, 1), False, "cannot be told from 1000 episodes (some "),
    ],
)
def test_a_round_is_kept_for_more_success_or_for_fewer_calls_within_the_margin(before, after, kept, word):
    found = told(before, after)
    assert found.kept == kept and word in found.why and (found.over, bool(found.why)) == (0, not kept)


def test_so_many_episodes_would_show_it():
    why = told((0.6, 3), (0.57, 1), episodes=200).why
    needed = int(re.search(r"\(some ([\d,]+) could", why)[1].replace(",", ""))
    assert not told((0.6, 3), (0.57, 1), episodes=needed // 2).kept
    assert told((0.6, 3), (0.57, 1), episodes=needed + 50).kept
    assert told((0.6, 3), (0.57, 1), margin=0.2, episodes=200).kept
    assert "in these it is further below" in told((0.6, 3), (0.525, 1), episodes=40).why


def test_training_seeds_that_differ_cannot_be_outdone_by_episodes():
    quick = played(0.0, 0, seeds=3)
    before = [rows for _ in range(3) for rows in nested(0.6, 3, 120)]
    after = [rows for rate in (0.4, 0.6, 0.8) for rows in nested(rate, 1, 120)]
    why = verdicts([Judged(quick, before, TERM), Judged(quick, after, TERM)], 0.05)[1].why
    assert "no number of episodes could show it with 3 training seeds" in why


def test_small_losses_do_not_add_up():
    quick = played(0.0, 0, episodes=4000)
    rates = (0.60, 0.57, 0.54)
    rounds = [Judged(quick, nested(rate, 3 - n, 4000), TERM) for n, rate in enumerate(rates)]
    found = verdicts(rounds, 0.05)
    assert [each.kept for each in found] == [True, True, False]
    assert "round 2 calls less than round 1" in found[2].why and "below round 0's" in found[2].why
    assert verdicts(rounds[1:], 0.05)[1].kept, "without round 0 there would be nothing against it"


def test_a_round_behind_one_that_is_not_kept_is_compared_with_the_one_that_is():
    quick = played(0.0, 0, episodes=1000)
    rounds = [Judged(quick, nested(*each, 1000), TERM) for each in ((0.6, 2), (0.6, 3), (0.6, 1))]
    found = verdicts(rounds, 0.05)
    assert [(each.over, each.kept) for each in found] == [(None, True), (0, False), (0, True)]


def plainly(rounds, margin):
    """Policies and rounds kept by the rules, in plain loops, with intervals from plain loops."""

    def rows(system, name):
        return [[float(rows[i][name]) for i in sorted(rows)] for rows in system]

    def ends(first, second, name):
        return plain_interval(rows(first, name), rows(second, name), True, counts=name == "calls")

    policies, kept, before = [], [], []
    for each in rounds:
        alone = True
        for other in [each.switch, *before]:
            if ends(each.quick, other, "success")[0] <= -margin:
                alone = False
        acting = each.quick if alone else each.switch
        policies.append(ALWAYS_QUICK if alone else TERM)
        good = True
        if before:
            good = ends(acting, before[-1], "success")[0] > 0
            if not good and ends(acting, before[-1], "calls")[1] < 0:
                good = all(ends(acting, other, "success")[0] > -margin for other in before)
        kept.append(good)
        if good:
            before.append(acting)
    return policies, kept


def test_verdicts_are_those_of_plain_counting():
    rng, seen = random.Random(11), set()
    for number in range(30):
        seeds = 1 + number % 3
        rounds = [
            judged(
                rng.choice([0.3, 0.5, 0.9]),
                rng.choice([0.5, 0.7, 0.95]),
                rng.choice([1, 2, 5]),
                seeds=seeds,
                episodes=40,
                first=100 * rng.randrange(9),
            )
            for _ in range(4)
        ]
        rounds[0] = Judged(rounds[0].quick[:1], rounds[0].switch, TERM)  # nobody has tuned it, so there is one
        found = verdicts(rounds, 0.15)
        assert ([each.policy for each in found], [each.kept for each in found]) == plainly(rounds, 0.15)
        seen |= {(each.policy, each.kept) for each in found[1:]}
    assert len(seen) == 4


def test_systems_are_summed_up_over_the_episodes_that_all_have_played(tmp_path):
    rows = [
        {"policy": TERM, "training": k, "seed": i, "success": i % 2 == k, "calls": i, "flops": 2.0, "seconds": 1.0}
        | {"money": 0.5}
        for k in (0, 1)
        for i in range(6)
    ]
    rows[3]["lost"] = True
    rows.append({**rows[0], "calls": 6})  # played again
    path = tmp_path / "episodes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = [episodes_of(path, TERM, k) for k in (0, 1)]
    seeds = common(both)
    assert seeds == [0, 1, 2, 4, 5]
    found = system(TERM, both, seeds)
    assert found.success == 0.5 and found.episodes == 10
    assert found.calls == pytest.approx((6 + 1 + 2 + 4 + 5 + 0 + 1 + 2 + 4 + 5) / 10)
    assert episodes_of(path, ALWAYS_QUICK, None) == {}


def episodes(lengths, wins):
    step = Step(observation="o", action="a")
    return [
        Trajectory(
            id=f"e/{i}",
            env="e",
            task="e",
            seed=i,
            instruction="",
            steps=(step,) * n,
            score=float(w),
            success=w,
            source="d",
        )
        for i, (n, w) in enumerate(zip(lengths, wins, strict=True))
    ]


def test_calls_are_spent_to_the_last_and_an_episode_that_is_broken_off_is_no_lesson():
    given = episodes([5, 7, 4, 6], [True, False, True, True])
    for calls, kept in ((4, []), (5, [0]), (15, [0]), (16, [0, 2]), (21, [0, 2]), (22, [0, 2, 3])):
        found, spent = within_calls(iter(given), calls)
        assert ([t.seed for t in found], spent) == (kept, calls)
    assert within_calls(iter(given), 30) == ([given[0], given[2], given[3]], 22), "there were no more episodes"


def test_no_more_tokens_are_taken_than_there_are():
    given = episodes([5, 7, 4, 6], [True, False, True, True])
    for tokens, kept, calls in ((9, [], 0), (10, [0], 5), (17, [0], 5), (18, [0, 2], 16), (99, [0, 2, 3], 22)):
        found, spent = within_tokens(iter(given), tokens, lambda t: 2 * len(t.steps))
        assert ([t.seed for t in found], spent) == (kept, calls)
