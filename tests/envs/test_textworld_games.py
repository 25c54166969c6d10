"""TextWorld's games: made once, the same everywhere, split by their seeds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import textworld_episode

from atlas_ray.envs import textworld as module
from atlas_ray.envs.core import EnvironmentDiedError, MissingExtraError, UnknownEnvironmentError
from atlas_ray.envs.textworld import TASKS, TextWorld, make_game

textworld = pytest.importorskip("textworld")

ROOT = Path(__file__).parents[2]

HUNT, COOK = "treasure-hunter-5-v0", "cooking-easy-v0"


@pytest.fixture
def no_making(monkeypatch):
    def refuse(order):
        raise AssertionError(f"{order} was made again")

    monkeypatch.setattr(module, "_make", refuse)


def new(task, cache, **kwargs):
    return TextWorld(task, cache=cache, **kwargs)


def begun(task, cache, variation=0, **kwargs):
    env = new(task, cache, **kwargs)
    observation, info = env.reset(options={"variation": variation})
    return env, observation, info


def test_options_are_honoured_or_refused(cache, no_making):
    env, _, _ = begun(HUNT, cache)
    assert env.reset(options={"task": "cooking-easy", "variation": 0})[0].startswith("-= Kitchen =-")
    assert (env.task, env.variation) == ("cooking-easy", 0)
    env.reset(seed=1400)
    assert (env.task, env.variation) == ("treasure-hunter-5", 0)
    for bad in ({"variation": 1400}, {"variation": 3, "split": "dev"}, {"split": "x"}, {"task": "x"}, {"level": 1}):
        with pytest.raises(ValueError, match="variation|split|task|level"):
            env.reset(options=bad)
    with pytest.raises(UnknownEnvironmentError, match="cooking-easy"):
        TextWorld("chess-v0")


def test_splits_do_not_meet():
    env = TextWorld(split="dev")
    ranges = {s: env.variations("cooking", s) for s in ("train", "dev", "test")}
    assert {s: len(r) for s, r in ranges.items()} == {"train": 1000, "dev": 200, "test": 200}
    assert sorted(v for r in ranges.values() for v in r) == list(env.variations("cooking", None))


def test_the_split_decides_the_food(tmp_path, monkeypatch):
    def note(order):
        orders.append(order)
        Path(order[3]).with_suffix(".ni").touch()

    orders = []
    monkeypatch.setattr(module, "_make", note)
    for task in ("cooking", "simple"):
        for seed in (999, 1000, 1200):
            make_game(task, seed, tmp_path)
    assert [o[1]["split"] for o in orders[:3]] == ["train", "valid", "test"]
    assert [o[1]["test"] for o in orders[3:]] == [False, False, True]


def test_a_made_game_is_not_made_again(cache, no_making, tmp_path, monkeypatch):
    make_game("cooking-easy", 0, cache)
    shared = tmp_path
    (shared / "textworld").symlink_to(cache)
    monkeypatch.setenv("ATLAS_RAY_CACHE", str(shared))
    assert make_game("cooking-easy", 0) == shared / "textworld" / make_game("cooking-easy", 0, cache).relative_to(cache)
    with pytest.raises(AssertionError, match="made again"):
        make_game("cooking-easy", 77, cache)


def test_nothing_but_games_is_left_in_the_cache(cache):
    for home in cache.iterdir():
        assert not home.name.startswith(".")
        assert sorted(f.name for f in home.iterdir()) == ["game.json", "game.z8"]


def start(task, cache, variation):
    """The same in another process, whose strings hash in another way."""
    return subprocess.Popen(
        [sys.executable, textworld_episode.__file__, task, str(cache), str(variation)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_the_same_game_from_nothing_in_another_process(cache, tmp_path):
    """Cooking games are the trap: textworld makes them from sets of strings."""
    there = start(COOK, tmp_path, 0)
    assert textworld_episode.episode(COOK, cache, 0) == answer(there)
    homes = [make_game("cooking-easy", 0, c).parent for c in (cache, tmp_path)]
    files = [{f.name: f.read_bytes() for f in home.iterdir()} for home in homes]
    assert files[0] == files[1]


@pytest.mark.slow
def test_two_processes_make_the_same_game_at_once(tmp_path):
    there = start(HUNT, tmp_path, 5)
    assert textworld_episode.episode(HUNT, tmp_path, 5) == answer(there)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_race_that_is_lost_uses_the_winners_game(cache, tmp_path, monkeypatch):
    source = make_game("treasure-hunter-5", 0, cache).parent

    def slow(order):
        draft = Path(order[3]).parent
        for home in (tmp_path / "winner", draft):
            home.mkdir(exist_ok=True)
            for name in ("game.json", "game.z8"):
                (home / name).write_bytes((source / name).read_bytes())
        (draft / "game.ni").touch()
        (tmp_path / "winner").rename(tmp_path / source.name)

    monkeypatch.setattr(module, "_make", slow)
    assert make_game("treasure-hunter-5", 0, tmp_path) == tmp_path / source.name / "game.z8"
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_a_game_that_cannot_be_made_is_an_error_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "broken", ("tw-coin_collector", {"level": 999}))
    with pytest.raises(EnvironmentDiedError, match="tw-coin_collector with seed 3 could not be made: .*level"):
        make_game("broken", 3, tmp_path)
    monkeypatch.setattr(module, "_MAKE_SECONDS", 0.01)
    with pytest.raises(EnvironmentDiedError, match="not made within"):
        make_game("coin-collector-5", 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_the_constructor_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atlas-ray\[textworld\]'"):
        TextWorld()


def test_the_module_itself_imports_nothing_of_textworld():
    code = (
        "import sys; import atlas_ray.envs.textworld; sys.exit('textworld' in sys.modules or 'jericho' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
