"""What tests of several environments share."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where TextWorld's games are made, once; those of no test alone are there from the start."""
    from atlas_ray.envs.textworld import make_game

    folder = tmp_path_factory.mktemp("games")
    for task, seed in (("treasure-hunter-5", 0), ("cooking-easy", 0)):
        make_game(task, seed, folder)
    return folder


_JVMS = []


@pytest.fixture
def jvms():
    """A JVM of each simulator that stays for the tests after this one."""
    from atlas_ray.envs import jvm, science_world, textworld_express

    if not _JVMS:
        _JVMS.extend(jvm.Interface(module.SIMULATOR) for module in (science_world, textworld_express))


@pytest.fixture
def no_jvm():
    """For tests that count, kill or end JVMs."""
    while _JVMS:
        _JVMS.pop().close()
