"""ALFWorld's games are found and refused as its own loader does, and what is missing is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from alfworld_games import put

from atlas_ray.envs import alfworld as module
from atlas_ray.envs.alfworld import ALFWorld, missing
from atlas_ray.envs.core import MissingExtraError, UnknownEnvironmentError

ROOT = Path(__file__).parents[2]


# ---- finding the games, and saying what is missing ----------------------------------------------------------------
@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


def test_without_the_packages_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fast_downward" else name)
    with pytest.raises(MissingExtraError, match=r"pip install 'atlas-ray\[alfworld\]', then run 'alfworld-download'"):
        ALFWorld()


@pytest.mark.parametrize(
    ("folders", "setting", "message"),
    [
        ([], "nowhere", "there is no folder .*nowhere"),
        (["logic"], "", "holds no json_2.1.1"),
        (["json_2.1.1/train", "json_2.1.1/valid_seen"], "json_2.1.1", "it must be the folder above"),
        (["json_2.1.1/train/pick_and_place_simple-A-None-B-1/trial_1"], "", "there are no games"),
    ],
)
def test_games_that_are_not_there(installed, tmp_path, monkeypatch, folders, setting, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / setting))
    with pytest.raises(MissingExtraError, match=message) as caught:
        ALFWorld()
    assert ("alfworld-download" in str(caught.value)) == (setting != "json_2.1.1")
    assert missing() == str(caught.value)


def test_the_default_folder_is_alfworlds(installed, tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / ".cache" / "alfworld") in str(missing())
    put(tmp_path / ".cache" / "alfworld", "dev", "look_at_obj_in_light-CD-None-DeskLamp-1")
    assert missing() is None


def test_variations_are_numbered_by_path_and_cut_by_split(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    two = "pick_two_obj_and_place-Mug-None-Desk-"
    for split, name in (("train", two + "2"), ("train", two + "1"), ("dev", two + "3"), ("test", two + "0")):
        put(tmp_path, split, name)
    put(tmp_path, "train", two + "1", "trial_0")
    put(tmp_path, "train", "pick_and_place_simple-Mug-None-Desk-1")
    # left out, as ALFWorld does
    put(tmp_path, "train", "pick_and_place_with_movable_recep-Mug-Bowl-Desk-1")
    put(tmp_path, "train", "pick_and_place_simple-AppleSliced-None-Desk-1")
    put(tmp_path, "train", two + "7", solvable=False)
    put(tmp_path, "train", two + "8", solvable=None)
    env = ALFWorld("pick_two_obj_and_place-v0")
    ranges = [env.variations("pick_two_obj_and_place", s) for s in ("train", "dev", "test", None)]
    assert ranges == [range(3), range(3, 4), range(4, 5), range(5)]
    files = [f"{p.parts[-3]}/{p.parts[-2]}" for p in env._files("pick_two_obj_and_place", "train")]
    assert files == [f"{two}1/trial_0", f"{two}1/trial_1", f"{two}2/trial_1"]
    assert len(env.variations("all", None)) == 6
    assert len(env.variations("pick_and_place_simple", None)) == 1
    with pytest.raises(ValueError, match="look_at_obj_in_light: has no episodes"):
        env.reset(options={"task": "look_at_obj_in_light"})


def test_the_mark_of_a_solvable_game_is_found_wherever_it_stands(tmp_path):
    path = tmp_path / "game.tw-pddl"
    for solvable in (True, False):
        for game in ({"solvable": solvable, "pddl_domain": "d" * 70_000}, {"grammar": "g", "solvable": solvable}):
            path.write_text(json.dumps(game))
            assert module._solvable(path) == solvable


def test_unknown_tasks_are_refused(installed):
    with pytest.raises(UnknownEnvironmentError, match="pick_two_obj_and_place"):
        ALFWorld("juggle-v0")


def test_the_module_itself_imports_nothing_of_textworld():
    code = "import sys; import atlas_ray.envs.alfworld; sys.exit(bool({'textworld', 'fast_downward'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- names of games, and both wordings -----------------------------------------------------------------------------
TRIAL = "pick_two_obj_and_place-Mug-None-Desk-1/trial_T20190909_012406_369460"


def test_a_path_of_the_data_names_a_game_wherever_it_lies():
    seed = 190909012406369460
    for path in (f"/x/json_2.1.1/train/{TRIAL}/game.tw-pddl", TRIAL, f"$ALFWORLD_DATA/json_2.1.1/valid_seen/{TRIAL}"):
        assert module.game_of(path) == ("pick_two_obj_and_place", seed)
    for path in ("x.tw-pddl", "pick_two_obj_and_place-Mug-None-Desk-1/trial_1", TRIAL.replace("two_obj_and", "three")):
        assert module.game_of(path) is None


def test_a_seed_that_names_a_game_plays_it_whatever_else_is_there(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    name, _, trial = TRIAL.partition("/")
    put(tmp_path, "dev", name, trial)
    for turn in range(3):
        put(tmp_path, "train", f"pick_two_obj_and_place-Cup-None-Bed-{turn}")
    task, seed = module.game_of(TRIAL)
    env = ALFWorld(f"{task}-v0", split="train")
    monkeypatch.setattr(env, "begin", lambda variation: (str(env._all_files()[variation]), ""))
    for split, wanted in ((None, 3), ("train", 3), ("dev", 3)):
        env.reset(seed=seed, options={"split": split})
        assert env.variation == wanted and TRIAL in env.goal
    env.reset(seed=4)
    assert env.variation == 1
    env.reset(seed=seed, options={"variation": 2})
    assert env.variation == 2
    with pytest.raises(ValueError, match=f"the game {seed + 1} of {task} is not under"):
        env.reset(seed=seed + 1)


def test_the_version_says_which_games_are_there(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert "games" not in ALFWorld.versions()
    put(tmp_path, "train", "look_at_obj_in_light-CD-None-DeskLamp-1")
    first = ALFWorld.versions()["games"]
    assert first.startswith("1 (")
    module.game_files.cache_clear()
    put(tmp_path, "dev", "look_at_obj_in_light-CD-None-DeskLamp-2")
    assert ALFWorld.versions()["games"].startswith("2 (")


@pytest.mark.parametrize(
    ("known", "said", "meant"),
    [
        ("put a mug 1 in/on desk 2", "move a mug 1 to desk 2", "put a mug 1 in/on desk 2"),
        ("move mug 1 to desk 2", "put mug 1 in/on desk 2", "move mug 1 to desk 2"),
        ("move mug 1 to desk 2", "put mug 1 in/on desk 1", "put mug 1 in/on desk 1"),
        ("move mug 1 to desk 2", "put mug 1 on desk 2", "put mug 1 on desk 2"),
        ("go to desk 2", "go to desk 2", "go to desk 2"),
    ],
)
def test_both_wordings_of_putting_something_somewhere_mean_the_same(known, said, meant):
    game = object.__new__(module._Game)
    game._applicable = {known: None}
    assert game.meant(said) == meant


def test_what_players_add_or_leave_out_tells_no_states_apart(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    put(tmp_path, "train", "look_at_obj_in_light-CD-None-DeskLamp-1")
    env, room = ALFWorld(), "You are in the middle of a room. Looking quickly around you, you see a bed 1."
    on_desk = "On the desk 1, you see a mug 1."
    for shown, recorded in (
        (room, f"-= Welcome to TextWorld, ALFRED! =-\n\n{room}\n\nYour task is to: put a mug in desk."),
        (f"You arrive at desk 1. {on_desk}", on_desk),
        (f"You arrive at loc 12. {on_desk}", f"{on_desk}\nAVAILABLE ACTIONS: look,go to bed 1"),
        ("You move the mug 1 to the desk 1.", "You put the mug 1 in/on the desk 1."),
    ):
        assert env.tells_same(shown, recorded) and env.tells_same(recorded, shown)
    assert not env.tells_same(on_desk, "On the desk 1, you see nothing.")
    assert not env.tells_same("You move the mug 1 to the desk 1.", "You put the mug 1 in/on the desk 2.")
