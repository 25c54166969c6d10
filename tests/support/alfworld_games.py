"""Tiny games in ALFWorld's own format, where its loader looks for them."""

import json

from atlas_ray.envs.alfworld import FOLDERS

CLOSED = ("Cabinet_bar__plus_01", "Cabinet_bar__plus_02", "Fridge_bar__plus_01")

SURFACES = ("CounterTop_bar__plus_01", "Desk_bar__plus_01", "Microwave_bar__plus_01", "Sink_bar__plus_01_bar_SinkBasin")

THINGS = {
    "Apple_bar__plus_01": "Cabinet_bar__plus_01",
    "Apple_bar__plus_02": "CounterTop_bar__plus_01",
    "Mug_bar__plus_01": "Desk_bar__plus_01",
    "DeskLamp_bar__plus_01": "Desk_bar__plus_01",
}


def kind(identifier):
    return "SinkBasin" if "SinkBasin" in identifier else identifier.partition("_bar_")[0]


def problem(goal, turn):
    """A one-room household; ``turn`` moves the things on, so that games differ."""
    places = list(dict.fromkeys(THINGS.values()))
    things = {t: p if "Lamp" in t else places[(places.index(p) + turn) % 3] for t, p in THINGS.items()}
    locations = {r: f"loc_bar_{n}" for n, r in enumerate(CLOSED + SURFACES)}
    objects = ["agent1 - agent", "loc_bar_start - location"]
    facts = ["(atLocation agent1 loc_bar_start)"]
    for r, location in locations.items():
        objects += [f"{r} - receptacle", f"{location} - location"]
        facts += [f"(receptacleType {r} {kind(r)}Type)", f"(receptacleAtLocation {r} {location})"]
        facts += [f"(openable {r})"] * (r in CLOSED)
        facts += [f"(canContain {kind(r)}Type {kind(t)}Type)" for t in things]
    for t, place in things.items():
        objects.append(f"{t} - object")
        facts += [f"(objectType {t} {kind(t)}Type)", f"(inReceptacle {t} {place})"]
        facts += [f"(objectAtLocation {t} {locations[place]})"]
        if "Lamp" in t:
            facts.append(f"(toggleable {t})")
        else:
            facts += [f"({p} {t})" for p in ("pickupable", "cleanable", "heatable", "coolable")]
    objects += [f"{t}Type - otype" for t in {kind(t) for t in things}]
    objects += [f"{r}Type - rtype" for r in {kind(r) for r in locations}]
    lines = "\n".join(objects), "\n".join(dict.fromkeys(facts)), goal
    return "(define (problem tiny) (:domain alfred)\n(:objects {})\n(:init {})\n{}".format(*lines)


def put(root, split, name, trial="trial_1", **game):
    folder = root / "json_2.1.1" / FOLDERS[split] / name / trial
    folder.mkdir(parents=True)
    texts = {"pddl_domain": "d" * 70_000, "grammar": "", "pddl_problem": "", "solvable": True, "walkthrough": None}
    (folder / "game.tw-pddl").write_text(json.dumps({**texts, **game}))
    return folder / "game.tw-pddl"
