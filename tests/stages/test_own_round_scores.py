"""Which round of a model's own runs is kept, on made-up episodes."""

import pytest

from atlas_ray.stages.own_round_scores import apart, cell, common, own_verdicts, played_by

EPISODES = [("A", seed) for seed in range(60)]


def played(wins, *, of=60):
    """A model that succeeds in the first ``wins`` of ``of`` episodes."""
    return {episode: number < wins for number, episode in enumerate(EPISODES[:of])}


def test_a_round_is_kept_where_success_rose_beyond_chance_over_the_one_kept_last():
    found = own_verdicts([[played(10)], [played(30), played(32)], [played(31), played(30)], [played(55), played(57)]])
    assert [(each.over, each.kept) for each in found] == [(None, True), (0, True), (1, False), (1, True)]
    assert found[1].gained.mean == pytest.approx(21 / 60) and found[3].gained.mean == pytest.approx(25 / 60)
    assert "more success than in round 1 cannot be told of round 2 from 60 episodes" in found[2].why
    assert not found[1].why and not found[3].why


def test_a_loss_is_said_and_so_is_how_many_episodes_would_do():
    assert own_verdicts([[played(40)], [played(5)]])[1].why == "round 1 succeeds less often than round 0"
    assert "(some " in own_verdicts([[played(20)], [played(22)]])[1].why


def test_only_episodes_that_all_have_played_count():
    one, other = [played(10), played(12, of=50)], [played(5, of=55)]
    seeds = common([one, other])
    assert seeds == sorted(EPISODES[:50])
    assert cell(one, seeds).episodes == 100 and cell(one, seeds).success == 22 / 100
    assert apart(one, other, seeds).mean == pytest.approx((22 - 10) / 100)
    assert common([one], lambda episode: episode[0] == "B") == []


def test_lost_episodes_say_nothing_and_the_later_line_counts(tmp_path):
    path = tmp_path / "episodes.jsonl"
    rows = [("m", 1, "true", "true"), ("m", 1, "true", "false"), ("m", 2, "false", "true"), ("n", 3, "true", "false")]
    path.write_text(
        "".join(
            f'{{"model": "{model}", "level": "A", "seed": {seed}, "success": {won}, "lost": {lost}}}\n'
            for model, seed, won, lost in rows
        )
    )
    assert played_by(path, "m") == {("A", 1): True}
