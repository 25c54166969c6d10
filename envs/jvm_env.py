"""What all environments have in common that a Java simulator plays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from .core import EnvironmentDiedError, Expert, ExpertGaveUpError, GoldPath, TextEnv, UnknownEnvironmentError
from .jvm import Interface, Simulator


class JvmEnv(TextEnv):
    """A text environment that a Java simulator plays. A subclass names its ``simulator`` and how to get a gold path."""

    simulator: ClassVar[Simulator]
    cheap_clone: ClassVar[bool] = False
    reusable: ClassVar[bool] = True

    def __init__(self, task: str, max_steps: int | None = None, split: str | None = None) -> None:
        super().__init__(task.removesuffix("-v0"), max_steps, split)
        if self.task not in self.tasks():
            raise UnknownEnvironmentError(f"{task}: not played here; known are {', '.join(self.tasks())}")
        self._simulator: Interface | None = None
        self.simulator.check()

    def _interface(self) -> Interface:
        """The interface object, in a JVM that is started when it is needed."""
        if self._simulator is None:
            self._simulator = Interface(self.simulator)
        return self._simulator

    def take_over(self, idle: Iterable[TextEnv]) -> None:
        """Go on with an interface object of one that does not play, so that as many are kept as ever played at once."""
        for other in idle:
            if self._simulator is None and type(other) is type(self) and (kept := other._simulator) and kept.alive:
                self._simulator, other._simulator = kept, None

    def _call(self, method: str, *arguments: object, seed: str | None = None, afresh: bool = False) -> Any:
        try:
            return self._interface().call(method, *arguments, seed=seed, afresh=afresh)
        except EnvironmentDiedError:
            self.close()
            raise

    def _gold(self) -> list[str]:
        """The actions that win the episode, which is made anew for it."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Process id of the JVM that plays this environment, beside others."""
        return self._interface().pid

    def expert(self, cpu_seconds: float = 2.0) -> Expert:
        """The simulator's gold path."""
        if self.history:
            raise ExpertGaveUpError("the gold path starts at the first step: ask for it right after reset()")
        path = self._gold()
        if not path or path[0].startswith("ERROR"):
            raise ExpertGaveUpError(f"the simulator has no gold path for {self.task}, variation {self.variation}")
        return GoldPath(path, self)

    def close(self) -> None:
        """Leave the JVM, which ends with its last user."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None
        self._done = True
