"""A made-up run directory with every input of the report, and what every page must be."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

from atlas_ray import report
from atlas_ray.rundir.files import append_jsonl, write_json
from atlas_ray.trajectory import Annotation, Step, Trajectory, write_annotations, write_trajectories

HOSTILE = """<script>alert(1)</script></details></p>'" onload="x" $\\frac{ &amp; ]]> --> \u202e"""


def score(success, half, levels=None):
    cell = {"success": success, "ci95": [max(0.0, success - half), min(1.0, success + half)], "episodes": 450}
    return {**cell, "levels": {name: cell for name in levels}} if levels else cell


def arm(selector, held_in, held_out, half=0.04, anchor=0.0, fraction=0.3):
    untuned, everything = selector == "none", selector == "all"
    row = {
        "selector": selector,
        "fraction": 0.0 if untuned else 1.0 if everything else fraction,
        "seeds": [] if untuned else [0, 1, 2],
        "steps_share": 0.0 if untuned else 1.0 if everything else 0.327,
        "trained_tokens": 0 if untuned else 184_320 if everything else 61_210,
        "context_tokens": 0 if untuned else 903_211,
        "train_seconds": 0.0 if untuned else 48.2,
        "held_in": score(held_in, half, ["GoToLocalS6N4", "PickupDist"]),
        "held_out": None if held_out is None else score(held_out, half, ["PutNextLocalS5N3"]),
    }
    return {**row, "anchor": anchor} if anchor else row


def policy(name, success, calls, half=0.05, **more):
    return {
        "name": name,
        "success": success,
        "return": success * 0.8,
        "ci95": [max(0.0, success - half), min(1.0, success + half)],
        "deepthink_share": min(1.0, calls / 12),
        "deepthink_calls_per_episode": calls,
        "compute": 4.1e8 + 3.3e8 * calls,
        "compute_unit": "FLOPs/episode",
        "budget_violations": 0,
        "episodes": 300,
        **more,
    }


ARMS = [
    arm("none", 0.31, 0.12),
    arm("all", 0.66, 0.24),
    arm("random", 0.60, 0.23),
    arm("non-critical", 0.45, 0.17),
    arm("value", 0.64, 0.35),
    arm("value", 0.63, 0.36, anchor=0.5),
]
POLICIES = [
    policy("always-quick", 0.41, 0.0),
    policy("always-deepthink", 0.88, 11.2),
    policy("random(p=0.35)", 0.58, 4.2),
    policy("random(p=0.27, n=4)", 0.56, 3.2, budget=4),
    policy("cascade", 0.7, 4.1),
    policy("londi(c=0.02)", 0.84, 4.2, cost=0.02),
    policy("londi(c=0.05)", 0.71, 2.1, cost=0.05),
    policy("londi-b(n=2)", 0.6, 1.6, budget=2),
    policy("londi-b(n=4)", 0.74, 3.2, budget=4),
    policy("londi-b(n=6)", 0.8, 4.6, budget=6),
]


def steps(extra=""):
    """Seven steps of an episode; ``extra`` is put into every text."""
    texts = [
        ("You see a wall 2 steps left, You see a red ball 2 steps right and 1 step forward", "explore", "turn right"),
        ("You see a red ball 1 step left and 2 steps forward", "go to the red ball", "go forward"),
        ("You see a red ball 1 step left and 1 step forward", "go to the red ball", "go forward"),
        ("You see a red ball 1 step left", "the ball is on your left", "turn left"),
        ("You see a red ball 1 step forward", "it is in front of you", "pick up"),
        ("You carry a red ball, You see a green box 2 steps forward", "carry it to the box", "go forward"),
        ("You carry a red ball, You see a green box 1 step forward", "put it down", "drop"),
    ]
    return [
        {"observation": o + extra, "thought": t + extra, "action": a + extra, "reward": 0.82 * (i == 6)}
        for i, (o, t, a) in enumerate(texts)
    ]


def write_run(run_dir, name="demo", text="", arms=ARMS, policies=POLICIES):
    """A run directory with every input of the report, the texts of its episodes ending in ``text``."""
    levels = {"GoToLocalS6N4": 300, "PickupDist": 200}
    write_json(run_dir / "results.json", {"atlas": {"arms": arms}, "londi": {"policies": policies}})
    write_json(
        run_dir / "recipe.resolved.json",
        {
            "name": name,
            "collect": {"levels": levels},
            "select": {},
            "finetune": {"arms": [{"selector": "value"}, {"selector": "random"}], "seeds": [0, 1, 2]},
            "evaluate": {"held_in": list(levels), "held_out": ["PutNextLocalS5N3"]},
            "switch": {"levels": ["PickupLoc"], "costs": [0.02, 0.05], "budgets": [2, 4, 6]},
        },
    )
    rows = [
        Trajectory(
            id=f"episode/{i}",
            env="BabyAIText/PickupDist-v0",
            task="PickupDist-v0",
            seed=i,
            instruction="put the red ball next to the green box" + text,
            steps=tuple(Step(**s) for s in steps(text)),
            score=0.82,
            success=True,
            source="expert",
        )
        for i in range(2)
    ]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", rows)
    write_annotations(
        run_dir / "annotations" / "value.jsonl",
        [
            Annotation(
                trajectory_id="episode/1",
                selector="value",
                fraction=0.3,
                critical=(3, 4),
                categories={4: "critical action" + text},
                reasons={3: "value 0.2 before, 0.6 after" + text},
                model="tiny-quick",
            )
        ],
    )
    actors = ["quick", "quick", "quick", "deepthink", "deepthink", "quick", "quick"]
    write_json(
        run_dir / "switch" / "replay.json",
        {
            "policy": "londi-b" + text,
            "budget": 4,
            "env": "BabyAIText/PickupLoc-v0",
            "seed": 7,
            "instruction": "pick up the red ball" + text,
            "success": True,
            "steps": [{**s, "actor": a} for s, a in zip(steps(text), actors, strict=True)],
        },
    )
    events = [{"stage": "collect", "event": "dropped", "env": f"e{i}", "episodes": 2, "why": text} for i in range(3)]
    append_jsonl(run_dir / "events.jsonl", [*events, {"stage": "select", "event": "retried", "attempt": 1}])
    times = {"collect": 31.5, "select": 74.25, "finetune": 240.0, "evaluate": 95.0, "switch": 180.0}
    append_jsonl(
        run_dir / "metrics.jsonl",
        [{"stage": "finetune", "loss": 1.5}]
        + [{"stage": "pipeline", "name": name, "seconds": seconds} for name, seconds in times.items()],
    )


class Checker(HTMLParser):
    """Collects tags, attributes and text, and insists that tags close in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.text, self.handlers, self.scripts = [], [], [], [], [], []
        self.policy = ""

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]
        self.ids += [v for k, v in attrs if k == "id"]
        self.handlers += [k for k, v in attrs if k.startswith("on") or (v or "").strip().startswith("javascript:")]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open, self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts += [data] * (self.open[-1] == "script")
        else:
            self.text.append(data)


def check(page):
    """Parse a page; nothing in it runs but the viewer, by its hash, and that reads JSON."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(set(checker.ids)) == len(checker.ids)
    assert not checker.handlers
    assert checker.tags.count("script") == len(checker.scripts) == page.count("<script") in (0, 2)
    allowed = "'none'"
    if checker.scripts:
        data, script = checker.scripts
        assert json.loads(data)["episodes"] and not set("<>&") & set(data)
        assert script == (Path(report.__file__).parent / "viewer.js").read_text()
        allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert checker.policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed};")
    return checker, " ".join("".join(checker.text).split())
