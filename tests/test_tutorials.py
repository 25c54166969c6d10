"""The tutorials: every command is run here, or says in its heading what it needs that is not here.

A block of ``sh`` is run as it stands, with the files that the page told to save. What needs a GPU or a cluster has a
title that says so, as in ``sh title="needs a GPU"``.
"""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from atlas_ray.cli import main
from atlas_ray.cli_arguments import overrides, parser
from atlas_ray.data.gateway_record import Record
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load, shipped
from atlas_ray.rundir.files import read_json
from atlas_ray.trajectory import read_trajectories

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
    """A command of ours, or a script of the page, in this process."""
    name, *arguments = words(command)
    if name == "python":
        runpy.run_path(*arguments)
    else:
        assert name == "atlas-ray", command
        assert main(arguments) == 0, command


NAMES = sorted(path.stem for path in TUTORIALS.glob("*.md"))


def commands_of(path):
    """Our commands in a page, as lists of words."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    for language, _, block in BLOCK.findall(text):
        if language not in ("", "sh", "bash"):
            continue
        for line in block.splitlines():
            if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/|python -m )?atlas[-_]ray (.*)", line):
                yield shlex.split(found[1], comments=True)


PAGES = [*sorted(TUTORIALS.parent.glob("*.md")), TUTORIALS.parent.parent / "README.md"]


def test_every_command_of_the_pages_is_one_of_today():
    told, seen = [], 0
    for path in PAGES:
        for command in commands_of(path):
            seen += 1
            if "--select.fractoin" in command:
                continue  # which the page shows to be refused
            try:
                arguments, rest = parser().parse_known_args(command)
                fields = overrides(rest)
                if getattr(arguments, "recipe", None) in ("demo", *shipped()) and "SEED" not in " ".join(command):
                    load(arguments.recipe, fields, arguments.quick)
            except (SystemExit, InputError) as error:
                told.append(f"{path.name}: {' '.join(command)}: {error}")
    assert told == []
    assert seen > 25


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_something_else_is_a_command_of_today(name, saved):
    page = saved(name)
    assert page.commands
    for command in page.elsewhere:
        found = [word for word in words(command) if not re.match(r"[A-Z_]+=", word)]
        if found[0] == "atlas-ray":
            arguments, rest = parser().parse_known_args(found[1:])
            if Path(getattr(arguments, "recipe", None) or "").is_file():
                load(arguments.recipe, overrides(rest))
            else:
                assert rest == []


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


def test_own_traces_are_there(saved):
    run(saved("own-traces").commands[0])


@pytest.mark.slow
def test_own_traces_become_a_file_for_a_trainer(saved, capsys):
    page = saved("own-traces")
    for command in page.commands:
        run(command)
    said = capsys.readouterr()
    assert "left out by collect.keep: 1 failure" in said.out + said.err and "Cohen's kappa" in said.out
    made = [json.loads(line) for line in Path("masked.jsonl").read_text().splitlines()]
    trained = [[m["content"] for m in row["messages"] if m["train"]] for row in made]
    assert [len(each) for each in trained] == [1, 1] and trained[0][0].endswith("Action: open red mug")
    again = [json.loads(line)["messages"] for line in Path("masked-too.jsonl").read_text().splitlines()]
    assert again == [row["messages"] for row in made]


def test_the_oracles_recipes_are_recipes(saved):
    page = saved("oracle-vllm")
    dry = [command for command in page.commands if "--dry-run" in command]
    assert len(dry) == 2
    for command in dry:
        run(command)


@pytest.mark.slow
def test_the_oracle_has_episodes_and_an_estimate(saved, capsys):
    page = saved("oracle-vllm")
    for command in page.commands:
        run(command)
    assert re.search(r"80 requests, .* prompt tokens", capsys.readouterr().out)
    assert len(read_trajectories("runs/marked/trajectories/expert.jsonl")) == 80


def test_the_gateways_recipe_is_one(saved):
    run(saved("agent-in-production").commands[0])
    load("learned.toml")


@pytest.mark.slow
def test_the_agent_in_production_stays_in_its_budget_and_is_written_down(saved, monkeypatch, capsys):
    page = saved("agent-in-production")
    assert page.commands == ["atlas-ray gateway support.toml --dry-run", "atlas-ray gateway --report sessions"]
    from gateway_parts import Upstream, gateway

    upstream = Upstream()
    there = {
        f"gateway.{who}": f'{{model = "{name}", base_url = "{upstream.url}", price_completion = 10.0}}'
        for who, name in (("quick", "small"), ("deepthink", "large"))
    }
    try:
        with gateway(load("support.toml", there), Path("state")) as (port, _):
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
            run("python agent.py")
    finally:
        upstream.kill()
    assert len(upstream.requests) == 3
    assert capsys.readouterr().out.count("calls=") == 3
    (session,) = Record(Path("sessions")).sessions()
    assert session.trajectory.success is True and len(session.trajectory.steps) == 3
    run(page.commands[1])
    assert Path("sessions/report.html").is_file()
