"""What the evaluation keeps of its episodes, against a plain table of them."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.evaluation import Outcomes, _score

MODELS, LEVELS, FIRST, COUNT = ("none", "all/0"), ("A", "B"), 500, 6

rows = st.lists(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS),
            "level": st.sampled_from(LEVELS),
            "seed": st.integers(FIRST - 2, FIRST + COUNT + 1),
            "success": st.booleans(),
            "lost": st.booleans(),
        }
    ),
    max_size=30,
)


@given(rows)
def test_outcomes_are_those_of_a_table_of_the_last_row_of_each_episode(given_rows):
    ends, table = Outcomes(FIRST, COUNT), {}
    for row in given_rows:
        ends.note(row)
        if FIRST <= row["seed"] < FIRST + COUNT:
            table[row["model"], row["level"], row["seed"]] = None if row["lost"] else row["success"]
    assert (len(ends), ends.lost) == (len(table), list(table.values()).count(None))
    for model in MODELS:
        for level in LEVELS:
            for seed in range(FIRST - 3, FIRST + COUNT + 3):
                assert ends.ended(model, level, seed) == ((model, level, seed) in table)
                assert ends.success(model, level, seed) is table.get((model, level, seed))


def test_an_episode_that_one_training_lost_is_left_out_for_all():
    ends = Outcomes(0, 4)
    for seed, (one, other) in enumerate([(True, True), (True, None), (False, True), (False, False)]):
        for model, end in (("a/0", one), ("a/1", other)):
            ends.note({"model": model, "level": "A", "seed": seed, "success": bool(end), "lost": end is None})
    score = _score(ends, ["a/0", "a/1"], {"A": [0, 1, 2, 3]})
    assert (score.success, score.episodes) == (0.5, 6)


def test_a_hundred_thousand_episodes_take_a_hundred_kilobytes():
    tracemalloc.start()
    try:
        ends = Outcomes(0, 100_000)
        for seed in range(100_000):
            ends.note({"model": "a", "level": "A", "seed": seed, "success": seed % 3 == 0, "lost": False})
        assert len(ends) == 100_000
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
