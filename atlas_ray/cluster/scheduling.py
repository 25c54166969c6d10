"""Where Ray puts the actors that an actor starts."""

from __future__ import annotations

from typing import Any


def no_placement_group() -> dict[str, Any]:
    """Options of an actor, so that it is put wherever there is room.

    A trial of a sweep runs in a placement group that Tune made for its own process. What that process starts would be
    put there too, and wait without end.
    """
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if get_current_placement_group() is None:
        return {}
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(None)}
