"""The tutorials: every command is run here, or says in its heading what it needs that is not here.

A block of ``sh`` is run as it stands, with the files that the page told to save. What needs a GPU or a cluster has a
title that says so, as in ``sh title="needs a GPU"``.
"""

import re
import shlex
from pathlib import Path

import pytest

from atlas_ray.cli import main
from atlas_ray.rundir.files import read_json

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Page:
    """Of a tutorial: the files that it tells to save, its commands, and those that need what is not here."""

    def __init__(self, name):
        self.files, self.commands, self.elsewhere = {}, [], []
        for language, title, text in BLOCK.findall((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
            if language == "sh":
                lines = [" ".join(shlex.split(line, comments=True)) and line for line in joined(text)]
                (self.elsewhere if title.startswith("needs ") else self.commands).extend(filter(None, lines))
            elif title:
                self.files[title] = text

    def save(self, folder):
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def joined(text):
    """The commands of a block, those over several lines as one."""
    return re.sub(r"\\\n\s*", "", text).splitlines()


def words(command):
    return shlex.split(command, comments=True)


def run(command):
    """A command of ours, in this process."""
    name, *arguments = words(command)
    assert name == "atlas-ray", command
    assert main(arguments) == 0, command


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves a tutorial's files where the commands then are."""
    monkeypatch.chdir(tmp_path)

    def save(name):
        page = Page(name)
        page.save(tmp_path)
        return page

    return save


def test_the_environment_is_that_of_the_reference():
    page = (TUTORIALS.parent / "environments.md").read_text(encoding="utf-8")
    assert Page("own-environment").files["my_games.py"] in page


def test_own_environment_is_checked_and_its_recipe_is_one(saved, capsys):
    page = saved("own-environment")
    assert page.commands == [
        "atlas-ray doctor --env my_games:MyGames/Doors-v0",
        "atlas-ray run doors.toml --dry-run   # every default filled in; exit code 2 where something is not there",
        "atlas-ray run doors.toml",
    ]
    run(page.commands[0])
    assert capsys.readouterr().out.endswith("keeps the dialect\n")
    run(page.commands[1])


@pytest.mark.slow
def test_own_environment_trains_a_model_that_plays_it(saved):
    page = saved("own-environment")
    run(page.commands[2])
    arms = {arm["selector"]: arm for arm in read_json(Path("runs/doors/results.json"))["atlas"]["arms"]}
    assert arms["all"]["held_in"]["success"] >= 0.9
    assert arms["last"]["held_in"]["success"] == 0.25
    assert arms["last"]["trained_tokens"] < arms["all"]["trained_tokens"] / 2
    assert Path("runs/doors/report.html").is_file()
