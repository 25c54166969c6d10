"""The rules of ALFWorld's expert, on a game of a few facts: no textworld is needed."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from atlas_ray.envs.alfworld_expert import Goal, Guide
from atlas_ray.envs.core import ExpertGaveUpError

IN_SAFE = "(objectType ?{o} MugType) (receptacleType ?r SafeType) (inReceptacle ?{o} ?r)"
GOALS = {
    "simple": IN_SAFE.format(o="o"),
    "hot": "(heatable ?o) (isHot ?o) " + IN_SAFE.format(o="o"),
    "two": IN_SAFE.format(o="o1") + " (not (= ?o1 ?o2)) " + IN_SAFE.format(o="o2"),
    "lamp": "(objectType ?ot DeskLampType) (isToggled ?ot) (objectType ?o MugType) (holds ?a ?o)",
    "movable": "(isReceptacleObject ?mo) " + IN_SAFE.format(o="o"),
}


@dataclass
class Tiny:
    """A room of two mugs, a fork, a lamp, a desk, a closed safe and a microwave, with ALFWorld's rules for them."""

    problem: str
    walkthrough: list = field(default_factory=list)
    inside: dict = field(default_factory=lambda: {"mug1": "desk", "mug2": "shelf", "fork": "desk", "lamp": "desk"})
    here: str = "start"
    held: str | None = None
    true: set = field(default_factory=set)

    def facts(self):
        made = [("atlocation", "me", self.here), *(("inreceptacle", o, r) for o, r in self.inside.items())]
        made += [("receptacleatlocation", r, f"at {r}") for r in ("desk", "shelf", "safe", "microwave")]
        made += [("receptacletype", r, f"{r}type") for r in ("desk", "shelf", "safe", "microwave")]
        made += [("objecttype", o, t) for o, t in (("mug1", "mugtype"), ("mug2", "mugtype"), ("fork", "forktype"))]
        made += [("objecttype", "lamp", "desklamptype"), ("toggleable", "lamp"), *self.true]
        made += [(able, mug) for mug in ("mug1", "mug2") for able in ("pickupable", "heatable")]
        made += [("holds", "me", self.held)] if self.held else []
        return [SimpleNamespace(name=n, arguments=[SimpleNamespace(name=a) for a in rest]) for n, *rest in made]

    def commands(self):
        found = {f"go to {r}": ("gotolocation", {"r": r}) for r in ("desk", "shelf", "safe", "microwave")}
        place, closed = self.here.removeprefix("at "), ("opened", "safe") not in self.true
        if place == "safe" and closed:
            found["open safe"] = ("openobject", {"r": "safe"})
        elif self.held is None:
            found |= {f"take {o}": ("pickupobject", {"o": o, "r": r}) for o, r in self.inside.items() if r == place}
        else:
            found[f"put {self.held} in/on {place}"] = ("putobject", {"o": self.held, "r": place})
        if place == "microwave" and self.held:
            found["heat"] = ("heatobject", {"o": self.held, "r": place})
        if place == "desk":
            found["use lamp"] = ("toggleobject", {"o": "lamp"})
        return {
            command: SimpleNamespace(
                name=name, mapping=_Placeholders({k: SimpleNamespace(name=v) for k, v in given.items()})
            )
            for command, (name, given) in found.items()
        }

    def do(self, command):
        verb, _, rest = command.partition(" ")
        if verb == "go":
            self.here = f"at {rest.removeprefix('to ')}"
        elif verb == "open":
            self.true.add(("opened", "safe"))
        elif verb == "take":
            self.held = rest
            del self.inside[rest]
        elif verb == "put":
            self.inside[self.held], self.held = rest.rpartition(" ")[2], None
        elif verb == "heat":
            self.true.add(("ishot", self.held))
        else:
            self.true.add(("istoggled", "lamp"))

    def meant(self, command):
        return command

    def plan(self):
        return []


class _Placeholders(dict):
    """A mapping whose keys have names, as textworld's placeholders."""

    def items(self):
        return [(SimpleNamespace(name=key), value) for key, value in super().items()]


def played(game, most=20):
    guide, done = Guide(game), []
    while len(done) < most:
        try:
            done.append(guide.act().action)
        except ExpertGaveUpError:
            break
        game.do(done[-1])
        if reached(game):
            break
    return done


def reached(game):
    safe = [o for o, r in game.inside.items() if r == "safe"]
    return {
        GOALS["simple"]: len(safe) == 1,
        GOALS["hot"]: any(("ishot", o) in game.true for o in safe),
        GOALS["two"]: len(safe) == 2,
        GOALS["lamp"]: ("istoggled", "lamp") in game.true and game.held in ("mug1", "mug2"),
    }.get(game.problem.partition("(:goal ")[2], False)


def tiny(goal, **state):
    return Tiny(f"(:goal {GOALS[goal]}", **state)


TO_SAFE = ["go to safe", "open safe", "put mug1 in/on safe"]


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [
        ("simple", ["go to desk", "take mug1", *TO_SAFE]),
        ("hot", ["go to desk", "take mug1", "go to microwave", "heat", *TO_SAFE]),
        (
            "two",
            ["go to desk", "take mug1", *TO_SAFE, "go to shelf", "take mug2", "go to safe", "put mug2 in/on safe"],
        ),
        ("lamp", ["go to desk", "take mug1", "use lamp"]),
    ],
)
def test_the_rules_go_straight_to_the_goal(goal, wanted):
    game = tiny(goal)
    assert played(game) == wanted and reached(game)


def test_the_rules_go_on_from_whatever_was_done():
    game = tiny("hot", held="fork", here="at shelf", inside={"mug1": "safe", "mug2": "shelf", "lamp": "desk"})
    done = played(game)
    assert done[0] == "put fork in/on shelf" and reached(game)
    assert "open safe" in done, "the mug in the closed safe is not hot yet"


def test_a_walkthrough_goes_first_and_is_left_where_somebody_else_leaves_it():
    game = tiny("simple", walkthrough=["go to shelf", "take mug2"])
    guide = Guide(game)
    assert guide.act().action == "go to shelf"
    game.do("go to desk")
    guide.follow("go to desk")
    assert guide.act().action == "take mug1"


def test_a_goal_of_another_type_is_left_to_the_planner():
    assert Goal.of(f"(:goal {GOALS['movable']}") is None
    game = tiny("movable")
    with pytest.raises(ExpertGaveUpError, match="planner finds no way"):
        Guide(game).act()
    game.plan = lambda: ["look"]
    assert Guide(game).act().action == "look"
