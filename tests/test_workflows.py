"""The workflows: pinned actions, as few rights as they need, and a release that keeps no secret."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def read(name):
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_actions_are_pinned_by_commit_and_rights_are_given_by_name(name):
    text, made = WORKFLOWS[name].read_text(encoding="utf-8"), read(name)
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action, _ in used)
    assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", version) for _, version in used)
    assert made["permissions"] == {"contents": "read"}
    assert "secrets." not in text and "pull_request_target" not in text
    for job in made["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "what others name goes through the environment"
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_is_checked_before_it_is_published_and_only_then_may_ask_for_a_token():
    jobs = read("release")["jobs"]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]
    assert "make release-check" in [step.get("run") for step in jobs["build"]["steps"]]
    assert not [step for step in jobs["publish"]["steps"] if "run" in step], (
        "nothing of the checkout runs beside the token"
    )
    assert ".ci/run" in [step.get("run") for step in read("ci")["jobs"]["tests"]["steps"]]


def test_the_pythons_of_a_release_are_those_that_are_allowed():
    code = (ROOT / ".ci" / "release_check.py").read_text(encoding="utf-8")
    tried = re.findall(r'"(3\.\d+)"', re.search(r"^PYTHONS = \((.*)\)$", code, re.MULTILINE)[1])
    given = [
        step["with"]["python-version"]
        for step in read("release")["jobs"]["build"]["steps"]
        if "with" in step and "python-version" in step["with"]
    ]
    assert sorted(re.findall(r"^3\.\d+$", given[0], re.MULTILINE)) == tried
    classes = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', classes).groups()
    assert tried == [f"3.{minor}" for minor in range(int(low), int(high))]
