"""Sessions as trajectories: ``DIR/trajectories/ID.jsonl``, and what they took in ``DIR/usage/ID.json``.

Both are written anew some seconds after a session went on, from the store, so a killed gateway writes them when it is
started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..data.gateway_record import Expense, PricedModel, Record, SessionUsage, Shadow, StepUsage
from ..data.records import Step, Trajectory, actor, write_trajectories
from ..recipe.gateway import Gateway
from ..rundir.files import write_json
from ..switching.budget import QUICK
from ..switching.spending import Usage, cost, dollars
from .replies import ApiError
from .store import Store
from .tables import ANSWERED, UNRECORDED, sessions, shadows, steps

ENV, NO_SEED = "gateway", 0
_AT_A_TIME = 50
_s, _k, _p = sessions.c, steps.c, sa.bindparam
_CHANGED = sa.select(sessions).where(UNRECORDED).order_by(_s.touched).limit(_AT_A_TIME)
_RECORDED = sessions.update().where(_s.id == _p("id_")).values(recorded=_p("touched_"))
_TAKEN = (
    sa.select(*(column for column in _k if column.name != "answer"))
    .where(_k.session == _p("id_"), _k.state == ANSWERED)
    .order_by(_k.number)
)
_SHADOWS = sa.select(shadows).where(shadows.c.session == _p("id_"))
_OUTCOME = (
    sessions.update()
    .where(sa.or_(_s.id == _p("session_"), _s.name == _p("session_")), _s.key == _p("key_"))
    .values(score=_p("score_"), success=_p("success_"), touched=_p("now_"))
)


class Recorder:
    """Writes the sessions of a store to a directory.

    Args:
        settings: of the recipe.
        store: what is written; used in its thread.
    """

    def __init__(self, settings: Gateway, store: Store) -> None:
        self._settings, self._store = settings, store
        self._record = None if settings.record is None else Record(Path(settings.record).expanduser())

    def write(self) -> int:
        """Write what has changed, at most some sessions; how many there were."""
        if self._record is None:
            return 0
        with self._store.transaction() as tx:
            found = tx.rows(_CHANGED)
            own = {row.id: (tx.rows(_TAKEN, id_=row.id), tx.rows(_SHADOWS, id_=row.id)) for row in found}
        for row in found:
            taken, beside = own[row.id]
            if taken:
                self._write(self._record, row, taken, {shadow.number: shadow for shadow in beside})
        with self._store.transaction() as tx:
            for row in found:
                # what came meanwhile makes it written again
                tx.do(_RECORDED, id_=row.id, touched_=row.touched)
        return len(found)

    def outcome(self, session: str, key: str, score: float | None, success: bool | None, now: float) -> None:
        """Note how a session ended; a second time in place of the first.

        Args:
            session: its id, or the name that a header gave it.
            key: whose it is.
            score: 0..1.
            success: whether the goal was reached.
            now: seconds since 1970.

        Raises:
            ApiError: there is no such session.
        """
        about = {"session_": session, "key_": key, "score_": score, "success_": success, "now_": now}
        with self._store.transaction() as tx:
            if not tx.do(_OUTCOME, **about):
                raise ApiError(404, "no such session", "session_not_found")

    def _write(self, record: Record, row: Any, taken: list[Any], beside: dict[int, Any]) -> None:
        models, settings = self._settings.models, self._settings
        made = [
            Step(
                observation=step.observation or "",
                action=step.action or "",
                actor=actor(step.model, len(models)),
                probability=step.probability,
            )
            for step in taken
        ]
        trajectory = Trajectory(
            id=row.id,
            env=ENV,
            task=settings.switch,
            seed=NO_SEED,
            instruction=row.goal,
            steps=tuple(made),
            score=row.score,
            success=row.success,
            source="gateway",
        )
        usage = SessionUsage(
            id=row.id,
            session=row.name,
            models=tuple(
                PricedModel(model=m.model, price_prompt=m.price_prompt, price_completion=m.price_completion)
                for m in models
            ),
            spent=Expense(calls=row.spent_calls, tokens=row.spent_tokens, usd=_shown(row.spent_usd)),
            steps=tuple(self._usage(step, beside.get(step.number)) for step in taken),
        )
        write_json(record.usage(row.id), usage.model_dump(mode="json"))
        write_trajectories(record.trajectory(row.id), [trajectory])

    def _usage(self, step: Any, shadow: Any) -> StepUsage:
        model = self._settings.models[step.model]
        return StepUsage(
            step=step.number,
            model=model.model,
            prompt_tokens=step.prompt_tokens,
            completion_tokens=step.completion_tokens,
            usd=self._money(step, step.model),
            begun=step.begun,
            seconds=max(0.0, step.ended - step.begun),
            shadow=None if shadow is None else self._shadow(shadow),
        )

    def _shadow(self, said: Any) -> Shadow:
        counts = {name: getattr(said, name) for name in ("same", "action", "prompt_tokens", "completion_tokens")}
        return Shadow(**counts, usd=self._money(said, QUICK))

    def _money(self, counted: Any, number: int) -> str | None:
        """What the tokens of a row cost by a model; None where nobody counted them."""
        if counted.prompt_tokens is None:
            return None
        usage = Usage(counted.prompt_tokens, counted.completion_tokens)
        return _shown(cost(self._settings.models[number], usage, bool(number)).usd)


def _shown(picodollars: int) -> str:
    return f"{dollars(picodollars):f}"
