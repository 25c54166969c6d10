"""Java simulators: a JVM per process and jar, shared by up to 40 environments, and gone when nobody needs it.

The simulators of ScienceWorld and TextWorld-Express keep an episode in an interface object, so one JVM serves many
episodes at once; upstream starts one JVM per environment. ScienceWorld's interfaces share Scala's global random
generator, so a call that draws from it is given its own seed: an episode does not depend on what is played beside it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .core import EnvironmentDiedError, MissingExtraError

ANSWER_SECONDS = 300.0
"""A call into the JVM that takes longer is taken for a hang (a gold path may take two minutes)."""


def said_error(text: object) -> bool:
    """Whether a simulator's answer is an error of its own, which it words as an observation."""
    return str(text).lstrip().startswith("ERROR:")


START_SECONDS = 120.0
"""A JVM that is not there after this time is taken for one that never will be."""
MOST_INTERFACES = 40
"""Of one JVM: each of ScienceWorld's holds up to 15 MB of the heap. Whoever plays more at a time has another JVM."""


@dataclass(frozen=True)
class Simulator:
    """What to start: ``package`` holds the jar, ``interface`` is the class that plays one episode at a time.

    ``cache`` names a Scala object and its map, shared by all episodes: what a gold path leaves there, later ones take.
    """

    title: str
    package: str
    interface: str
    cache: tuple[str, str] | None = None

    def missing(self) -> str | None:
        """Why it cannot run on this machine, None if it can."""
        if find_spec(self.package) is None or find_spec("py4j") is None:
            return f"{self.title} needs the extra 'science': pip install 'atlas-ray[science]'"
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


def _client(settings: Any) -> Any:
    from py4j.java_gateway import GatewayClient
    from py4j.protocol import Py4JNetworkError

    owner = os.getpid()

    class Client(GatewayClient):
        """py4j's, without the second attempt that could repeat a step, and without printing what we raise."""

        def send_command(self, command: str, retry: bool = True, binary: bool = False) -> Any:
            # py4j tells the JVM of every object that is collected, in a forked child too, over its parent's connection
            if os.getpid() != owner:
                raise Py4JNetworkError("the JVM belongs to the process from which this one was forked")
            connection = self._get_connection()
            try:
                response = connection.send_command(command)
            except BaseException:
                connection.close(True)
                raise
            self._give_back_connection(connection)
            return response

    return Client(gateway_parameters=settings)


def _launch(jar: str) -> tuple[int, str, subprocess.Popen[str]]:
    """Start a JVM with a gateway, as py4j's ``launch_gateway`` does, which waits for ever and hides what Java says.

    Returns:
        Port, token and process. The process ends with its standard input.

    Raises:
        EnvironmentDiedError: it ends, or is not there within ``START_SECONDS``.
    """
    from py4j.java_gateway import find_jar_path

    process = subprocess.Popen(  # noqa: S603
        [
            *("java", "-classpath", os.pathsep.join((find_jar_path(), jar)), *_options()),
            # without the token any user of this machine could tell the gateway what to run
            *("py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=os.path.dirname(jar),
        text=True,
        errors="replace",
        process_group=0,
    )
    lines, complaints = queue.SimpleQueue[str](), collections.deque[str](maxlen=5)

    def read(stream: Any, take: Callable[[str], object], most: int | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            for number, line in enumerate(stream):
                if most is None or number < most:
                    take(line.strip())
        if most is not None:
            for _ in range(most):
                take("")  # whoever waits for a line hears that there is none

    # both are read to their end, or Java would wait for somebody to read what simulators print
    listening = threading.Thread(target=read, args=(process.stderr, complaints.append, None), daemon=True)
    listening.start()
    threading.Thread(target=read, args=(process.stdout, lines.put, 2), daemon=True).start()
    end = time.monotonic() + START_SECONDS
    try:
        port, token = (lines.get(timeout=max(0.0, end - time.monotonic())) for _ in range(2))
        return int(port), token, process
    except (queue.Empty, ValueError) as error:
        process.kill()
        process.wait()
        listening.join(1.0)
        why = f"not within {START_SECONDS:g} s" if isinstance(error, queue.Empty) else "it ended"
        raise EnvironmentDiedError("; ".join(filter(None, [why, *complaints]))) from None


class _Machine:
    """A running JVM. It ends with its last user, with this process (kill -9 included), or when it stops answering."""

    def __init__(self, simulator: Simulator, alone: bool) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway

        # what goes wrong is raised as one error of ours; py4j would print its own traceback for each as well. Whoever
        # keeps logs gives "py4j" back the level that it had, and py4j has something to say when the JVM is gone
        logging.getLogger("py4j.java_gateway").setLevel(logging.CRITICAL)
        folder = os.path.dirname(str(find_spec(simulator.package).origin))  # type: ignore[union-attr]
        jar = next(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".jar"))
        self.simulator, self.alone, self.users, self.owner = simulator, alone, 0, os.getpid()
        try:
            port, token, self.process = _launch(jar)
        except (OSError, EnvironmentDiedError) as error:
            raise EnvironmentDiedError(f"{simulator.title}: the JVM does not start: {error}") from error
        settings = GatewayParameters(port=port, auth_token=token, read_timeout=ANSWER_SECONDS)
        self.gateway = JavaGateway(_client(settings), gateway_parameters=settings, java_process=self.process)
        self.lock = threading.Lock()
        self._random: Any = None

    @property
    def alive(self) -> bool:
        """Whether it runs, and is this process's: a forked child must not talk into its parent's JVM."""
        return self.owner == os.getpid() and self.process.poll() is None

    def _named(self, name: str) -> Any:
        return functools.reduce(getattr, name.split("."), self.gateway.jvm)

    def interface(self) -> Any:
        """A new interface object."""
        return self._named(self.simulator.interface)()

    def empty_cache(self) -> None:
        """Let what is asked next depend on nothing that was asked before."""
        if self.simulator.cache is not None:
            name, method = self.simulator.cache
            getattr(getattr(self._named(name), "MODULE$"), method)().clear()

    def seed(self, text: str) -> None:
        """Seed Scala's global random generator."""
        if self._random is None:
            self._random = getattr(getattr(self.gateway.jvm.scala.util, "Random$"), "MODULE$")
        self._random.setSeed(zlib.crc32(text.encode()) >> 1)

    def end(self) -> None:
        """Kill the JVM, unless it is that of the process from which this one was forked."""
        if os.getpid() != self.owner:
            return
        with contextlib.suppress(Exception):
            self.gateway.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


_machines: list[_Machine] = []
_lock = threading.RLock()


def _with_room(simulator: Simulator) -> _Machine | None:
    shared = (m for m in _machines if m.simulator == simulator and not m.alone and m.alive)
    return next((m for m in shared if m.users < MOST_INTERFACES), None)


def _forget(machine: _Machine) -> None:
    with _lock:
        if machine in _machines:
            _machines.remove(machine)
    machine.end()


class Interface:
    """One interface object inside the JVM: plays one episode at a time, beside others.

    Args:
        simulator: which.
        alone: in a JVM of its own, where the simulator keeps state of an episode outside the interface object.

    Raises:
        MissingExtraError: no jar or no Java here.
        EnvironmentDiedError: the JVM cannot be started.
    """

    def __init__(self, simulator: Simulator, alone: bool = False) -> None:
        simulator.check()
        with _lock:
            machine = None if alone else _with_room(simulator)
            if machine is None:
                machine = _Machine(simulator, alone)
                _machines.append(machine)
            machine.users += 1
        self.loaded: tuple[str, ...] | None = None
        """What its simulator was last told to load, where that outlives an episode."""
        self._machine = machine
        self._finalize = weakref.finalize(self, _leave, machine, os.getpid())
        self._object = self._guarded(simulator.interface, lambda: machine.interface())

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return int(self._machine.process.pid)

    @property
    def alone(self) -> bool:
        """Whether no other plays in its JVM."""
        return self._machine.alone

    @property
    def alive(self) -> bool:
        """Whether its JVM is there, and of this process."""
        return self._machine.alive

    def call(self, method: str, *arguments: Any, seed: str | None = None, afresh: bool = False) -> Any:
        """Call a method of the interface object, with the simulator's random generator seeded by a text.

        ``afresh``: empty the simulator's cache first.

        Raises:
            EnvironmentDiedError: the JVM is gone, does not answer within ``ANSWER_SECONDS``, or its simulator failed.
        """

        def work() -> Any:
            if afresh:
                self._machine.empty_cache()
            return getattr(self._object, method)(*arguments)

        return self._guarded(method, work, seed)

    def strings(self, method: str, seed: str | None = None) -> list[str]:
        """Call a method that returns a ``List<String>``, in two round trips whatever its length."""
        join = self._machine.gateway.jvm.java.lang.String.join
        joined = self._guarded(method, lambda: join("\n", getattr(self._object, method)()), seed)
        return str(joined).split("\n") if joined else []

    def close(self) -> None:
        """Leave the JVM, which ends with its last user."""
        self._finalize()

    def _guarded(self, what: str, work: Callable[[], Any], seed: str | None = None) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError

        title = self._machine.simulator.title
        try:
            with self._machine.lock:
                if seed is not None:
                    self._machine.seed(seed)
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
        return [m.process.pid for m in _machines if m.owner == os.getpid()]
