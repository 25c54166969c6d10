"""Which policy of a round acts, which round is kept, and how far calls and tokens reach, against plain counting."""

import json
import random

import pytest

from atlas_ray.data.records import Step, Trajectory
from atlas_ray.data.results import ALWAYS_QUICK
from atlas_ray.stages.round_parts import within_calls, within_tokens
from atlas_ray.stages.round_scores import (
    Judged,
    common,
    compared,
    episodes_of,
    has_gained,
    is_of_use,
    kept_round,
    system,
)

TERM = "londi(c=0.05)"


def played(rate, calls, seeds=1, episodes=120, cost=0.05, first=0):
    """Episodes with exactly this share of successes and so many calls each, by training seed."""
    found = []
    for k in range(seeds):
        wins = [i < round(rate * episodes) for i in range(episodes)]
        random.Random(first + k).shuffle(wins)
        about = {"flops": 1e6, "seconds": 0.5, "money": 0.0}
        found.append(
            {
                i: {"success": w, "calls": calls, "objective": 0.9 * w - cost * calls, "seed": i, **about}
                for i, w in enumerate(wins)
            }
        )
    return found


def judged(quick, switch, calls, **more):
    return Judged(played(quick, 0, **more), played(switch, calls, first=7, **more), TERM)


@pytest.mark.parametrize(
    ("quick", "switch", "calls", "acts"),
    [
        (0.40, 0.70, 2, True),  # more success
        (0.60, 0.62, 2, False),  # cannot be told apart: no calls
        (0.40, 0.70, 9, True),  # more success, however dear: the price is for training
        (0.60, 0.30, 1, False),
        (0.60, 0.60, 0, False),  # a switch that never calls is QUICK
    ],
)
def test_a_switch_acts_only_where_its_calls_are_of_use(quick, switch, calls, acts):
    each = judged(quick, switch, calls)
    assert is_of_use(each.of_use) == acts
    assert each.policy == (TERM if acts else ALWAYS_QUICK)
    assert each.acting is (each.switch if acts else each.quick)


@pytest.mark.parametrize(
    ("before", "after", "gained"),
    [
        ((0.6, 3), (0.6, 1), True),
        ((0.6, 1), (0.6, 1), False),
        ((0.6, 1), (0.9, 3), True),
        ((0.9, 3), (0.5, 1), False),  # fewer calls, but less success
        ((0.5, 1), (0.5, 2), False),
    ],
)
def test_a_round_gains_by_more_success_or_by_fewer_calls(before, after, gained):
    assert has_gained(compared(played(*after), played(*before))) == gained


def brute(first, second, resamples=3000):
    """The crossed bootstrap in plain loops, with other random numbers."""
    rng = random.Random(3)
    seeds, ids = range(max(len(first), len(second))), sorted(first[0])

    def one(rows, k, name, i):
        return float(rows[k % len(rows)][i][name])

    def interval(name):
        d = [[one(first, k, name, i) - one(second, k, name, i) for i in ids] for k in seeds]
        means = []
        for _ in range(resamples):
            rows, columns = rng.choices(seeds, k=len(seeds)), rng.choices(range(len(ids)), k=len(ids))
            means.append(sum(d[k][i] for k in rows for i in columns) / (len(rows) * len(columns)))
        means.sort()
        return means[round(0.025 * resamples)], means[round(0.975 * resamples)]

    return {name: interval(name) for name in ("success", "calls")}


def test_the_round_that_is_kept_is_that_of_plain_counting():
    rng, seen = random.Random(11), set()
    for _ in range(8):
        rounds = [
            judged(
                rng.choice([0.3, 0.5, 0.7]), rng.choice([0.5, 0.7, 0.9]), rng.choice([1, 2, 5]), seeds=2, episodes=40
            )
            for _ in range(4)
        ]
        acting = []
        for each in rounds:
            sure = brute(each.switch, each.quick, 400)["success"][0] > 0
            acting.append(each.switch if sure else each.quick)
        kept = 0
        while kept + 1 < len(rounds):
            found = brute(acting[kept + 1], acting[kept], 400)
            if not (found["success"][0] > 0 or (found["calls"][1] < 0 and found["success"][1] >= 0)):
                break
            kept += 1
        assert kept_round(rounds)[0] == kept
        seen.add(kept)
    assert len(seen) > 1


def test_systems_are_summed_up_over_the_episodes_that_all_have_played(tmp_path):
    rows = [
        {"policy": TERM, "training": k, "seed": i, "success": i % 2 == k, "calls": i, "flops": 2.0, "seconds": 1.0}
        | {"money": 0.5, "objective": 0.0}
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
