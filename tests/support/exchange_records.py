"""Records in the neighbours' formats, for the tests of the exchange."""

import json

import pytest

from atlas_ray.errors import InputError
from atlas_ray.trajectory import Annotation, Step, Trajectory

BUY = "Thought:\nTime to buy it.\n\nAction:\nclick[Buy Now]"


def turns_of(*acts, last=None, losses=None, acknowledgement="Ok."):
    """The turns of a record with these agent's turns."""
    losses = [True] * len(acts) if losses is None else losses
    turns = [
        {"from": "human", "loss": None, "value": "You are web shopping."},
        {"from": "gpt", "loss": False, "value": acknowledgement},
    ]
    for number, (act, loss) in enumerate(zip(acts, losses, strict=True)):
        turns.append({"from": "human", "loss": None, "value": f"page {number}"})
        turns.append({"from": "gpt", "loss": loss, "value": act})
    if last is not None:
        turns.append({"from": "human", "loss": None, "value": last})
    return turns


def record(*acts, item_id="webshop_6", **kwargs):
    return {"item_id": item_id, "conversations": turns_of(*(acts or (BUY,)), **kwargs)}


def write(path, *records):
    text = json.dumps(list(records)) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in records)
    path.write_text(text, encoding="utf-8")
    return path


def refused(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return caught.value


def three_steps(**changes):
    base = {
        "id": "atlas_ray.envs:BabyAIText/GoToLocal-v0/3",
        "env": "atlas_ray.envs:BabyAIText/GoToLocal-v0",
        "task": "GoToLocal-v0",
        "seed": 3,
        "instruction": "go to the ball",
        "steps": (
            Step(observation="a wall", thought="explore", action="turn left", reward=0.0),
            Step(observation="a ball", action="go forward", reward=0.25),
            Step(observation="near", thought="", action="toggle", reward=0.5),
        ),
        "score": 0.75,
        "success": False,
        "source": "expert",
    }
    return Trajectory(**{**base, **changes})


def annotation(trajectory_id, *critical, selector="value", fraction=0.3):
    return Annotation(trajectory_id=trajectory_id, selector=selector, fraction=fraction, critical=critical)


def broken(where, value):
    """A record with one place changed; ``where`` is a path of keys."""
    made = record(BUY, BUY)
    inner = made
    for key in where[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return made


ODD = [
    record(BUY, BUY, last="You bought it.", losses=[True, False], acknowledgement="OK. I'll try my best."),
    record("\n\nThought: a \n\nAction: \nclick[x]\n", BUY, item_id="webshop_6", losses=[False, True]),
    record("Action:look", "Thought:\nb\r\n\r\nAction:\r\nc", item_id="sciworld_3", losses=[False, False], last=""),
]
