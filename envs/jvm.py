"""Java simulators: one JVM a process and jar, shared by all its environments, bounded, and gone when it is not needed.

The jars of ScienceWorld and TextWorld-Express hold no state outside their interface object, so one JVM serves many
episodes at once (tested); upstream starts one JVM an environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .core import EnvironmentDiedError, MissingExtraError

ANSWER_SECONDS = 300.0
"""A call into the JVM that takes longer is taken for a hang (a gold path may take two minutes)."""


@dataclass(frozen=True)
class Simulator:
    """What to start: ``package`` holds the jar, ``interface`` is the class that plays one episode at a time."""

    title: str
    package: str
    interface: str

    def missing(self) -> str | None:
        """Why it cannot run on this machine, None if it can."""
        if find_spec(self.package) is None or find_spec("py4j") is None:
            return f"{self.title} needs the extra 'java': pip install 'atlas-ray[java]'"
        if shutil.which("java") is None:
            return f"{self.title} needs a Java runtime (11 or later): no 'java' is on the PATH"
        return None

    def check(self) -> None:
        """Refuse early: a JVM is started only with the first episode.

        Raises:
            MissingExtraError: no jar or no Java here.
        """
        if why := self.missing():
            raise MissingExtraError(why)


def _options() -> list[str]:
    return [
        f"-Xmx{os.environ.get('ATLAS_RAY_JVM_HEAP', '768m')}",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # The simulators walk hash sets of objects without an order of their own, so the order of lines, and on some
        # tasks the temperatures and the bees, differ from run to run. One identity hash for all makes them exact.
        "-XX:+IgnoreUnrecognizedVMOptions",
        "-XX:+UnlockExperimentalVMOptions",
        "-XX:hashCode=2",
    ]


class _Machine:
    """A running JVM. It ends with its last user, with this process (kill -9 included), or when it stops answering."""

    def __init__(self, simulator: Simulator) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        folder = os.path.dirname(str(find_spec(simulator.package).origin))  # type: ignore[union-attr]
        jar = next(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".jar"))
        self.simulator, self.users = simulator, 0
        try:
            # the gateway runs whatever it is told: without the token any user of this machine could tell it
            port, token, self.process = launch_gateway(
                classpath=jar,
                cwd=folder,
                die_on_exit=True,
                javaopts=_options(),
                create_new_process_group=True,
                enable_auth=True,
                return_proc=True,
            )
        except Exception as error:
            raise EnvironmentDiedError(f"{simulator.title}: the JVM does not start: {error}") from error
        settings = GatewayParameters(port=port, auth_token=token, read_timeout=ANSWER_SECONDS)
        self.gateway = JavaGateway(gateway_parameters=settings, java_process=self.process)

    def end(self) -> None:
        """Kill the JVM."""
        with contextlib.suppress(Exception):
            self.gateway.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


_machines: dict[tuple[int, Simulator], _Machine] = {}
_lock = threading.RLock()


def _forget(machine: _Machine) -> None:
    with _lock:
        for key, known in list(_machines.items()):
            if known is machine:
                del _machines[key]
    machine.end()


class Interface:
    """One interface object inside the JVM: plays one episode at a time, beside others.

    Raises:
        MissingExtraError: no jar or no Java here.
        EnvironmentDiedError: the JVM cannot be started.
    """

    def __init__(self, simulator: Simulator) -> None:
        simulator.check()
        with _lock:
            # a forked child must not talk into its parent's JVM
            key = (os.getpid(), simulator)
            machine = _machines.get(key)
            if machine is None or machine.process.poll() is not None:
                machine = _machines[key] = _Machine(simulator)
            machine.users += 1
        self._machine = machine
        self._finalize = weakref.finalize(self, _leave, machine, os.getpid())
        self._object = self._guarded(simulator.interface, lambda: _class(machine.gateway, simulator.interface)())

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return int(self._machine.process.pid)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the interface object.

        Raises:
            EnvironmentDiedError: the JVM is gone, does not answer within ``ANSWER_SECONDS``, or its simulator failed.
        """
        return self._guarded(method, lambda: getattr(self._object, method)(*arguments))

    def strings(self, method: str) -> list[str]:
        """Call a method that returns a ``List<String>``, in two round trips whatever its length."""
        join = self._machine.gateway.jvm.java.lang.String.join
        joined = self._guarded(method, lambda: join("\n", getattr(self._object, method)()))
        return str(joined).split("\n") if joined else []

    def close(self) -> None:
        """Leave the JVM, which ends with its last user."""
        self._finalize()

    def _guarded(self, what: str, work: Any) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError

        title = self._machine.simulator.title
        try:
            return work()
        except Py4JJavaError as error:
            if self._machine.process.poll() is None:
                raise EnvironmentDiedError(f"{title}: {what} failed in the simulator: {error.java_exception}") from None
            raise self._died(what, error) from None
        except (Py4JError, OSError) as error:
            raise self._died(what, error) from None

    def _died(self, what: str, error: Exception) -> EnvironmentDiedError:
        _forget(self._machine)
        name = self._machine.simulator.title
        return EnvironmentDiedError(f"{name}: the JVM died or hung in {what} ({type(error).__name__})")


def _class(gateway: Any, dotted: str) -> Any:
    found = gateway.jvm
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def _leave(machine: _Machine, owner: int) -> None:
    if os.getpid() != owner:
        return
    with _lock:
        machine.users -= 1
        last = machine.users <= 0
    if last:
        _forget(machine)


def machines() -> list[int]:
    """Process ids of the JVMs this process runs."""
    with _lock:
        return [m.process.pid for (pid, _), m in _machines.items() if pid == os.getpid()]
