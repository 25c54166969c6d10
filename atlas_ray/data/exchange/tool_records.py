"""Records of agents that call tools, as trajectories and back: mini-swe-agent, SWE-smith, tau-bench and others."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import Field

from ...errors import InputError
from ...rundir.files import replacing
from ...rundir.layout import RunLayout
from ..records import Annotation, Step, Trajectory
from ..tool_conversation import messages_of
from .conversations import Conversation, Options, raw_turns
from .meta import ANNOTATED, ITSELF, Meta
from .outcomes import EpisodeOutcome, number_of, of_fields, of_number
from .reading import JsonRecord
from .survey import META, Survey
from .tool_turns import MINI, is_mini, is_smith, messages_digest, read_tool_conversation, tool_steps
from .turns import FLAGS, is_answer


class ImportedRecord(Trajectory):
    """A trajectory that remembers the record it was read from, with all its keys, so that it can be written back.

    ``record`` is no part of the trajectory's line, nor of a comparison.
    """

    record: dict[str, Any] = Field(exclude=True, repr=False)
    options: Any = Field(exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.row() == other.row()

    __hash__ = Trajectory.__hash__


def tool_item(
    conversation: Conversation, meta: Meta | None, source: str, options: Options, survey: Survey
) -> Trajectory:
    """The trajectory of a record.

    Raises:
        InputError: names record and field.
    """
    record = conversation.record
    if meta is not None:
        known, score = meta.model_dump(include=set(ITSELF)), meta.score
    else:
        outcome = _outcome(record, options, survey)
        known, score = _named(record, conversation.key, source), outcome.score
        known |= {"score": score, "success": outcome.success}
    return ImportedRecord(
        **known,
        instruction=conversation.instruction,
        steps=tool_steps(conversation, meta, score or 0.0),
        tools=conversation.tools or (),
        record=record.value,
        options=options,
    )


def _outcome(record: JsonRecord, options: Options, survey: Survey) -> EpisodeOutcome:
    """The outcome by the record's fields alone: what a tool printed is no verdict, nor is that a run was submitted."""
    found = of_fields(record, options.success_field)
    if options.success_field is None:
        if found.score == 1:
            found = of_fields(record, None, survey.other_scale())
        told = record.value.get("reward_info")  # tau2-bench's
        reward = number_of(told.get("reward")) if isinstance(told, dict) else None
        if found == EpisodeOutcome() and reward is not None:
            found = of_number(reward)
    return found.filled(options.success)


def _named(record: JsonRecord, key: str, source: str) -> dict[str, Any]:
    """Id, env, task, seed and source, by what each format has of them.

    Raises:
        InputError: the id is none.
    """
    value = record.value
    if key == "traj":
        task, trial = value.get("task_id", record.index), value.get("trial")
        name = f"tau-bench_{task}" + ("" if trial is None else f"_{trial}")
        return _about(record, name, "tau-bench", task, trial, "tau-bench")
    if value.get("task_id") is not None and ("reward_info" in value or "termination_reason" in value):
        name = value.get("id") or f"tau2-bench_{value['task_id']}_{value.get('trial')}"
        seed = value.get("seed") if value.get("seed") is not None else value.get("trial")
        return _about(record, name, "tau2-bench", value["task_id"], seed, "tau2-bench")
    if is_mini(value):
        task = value.get("instance_id")
        return _about(record, task or _stem(record), MINI, task or "unknown", None, _model(value) or MINI)
    if is_smith(value):
        model = value.get("model")
        name = model if isinstance(model, str) and model else "SWE-smith"
        return _about(record, value["traj_id"], "SWE-smith", value["instance_id"], None, name)
    for field in ("id", "trajectory_id", "instance_id", "item_id"):
        if value.get(field) is not None:
            return _about(record, value[field], "unknown", "unknown", None, source, field)
    return _about(record, f"{key}_{record.index}", "unknown", "unknown", None, source)


def _about(
    record: JsonRecord, name: object, env: str, task: object, seed: object, source: str, field: str = "id"
) -> dict[str, Any]:
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise record.error(f"must be a name or a number, is {name!r}", field)
    number = seed if isinstance(seed, int) and not isinstance(seed, bool) else record.index
    return {"id": str(name), "env": env, "task": str(task), "seed": number, "source": source}


def _stem(record: JsonRecord) -> str:
    """The id of a trajectory that has none: its file's name."""
    name = record.path.name
    for ending in (".gz", ".json", ".traj"):
        name = name.removesuffix(ending)
    return name if record.index == 0 else f"{name}_{record.index}"


def _model(value: dict[str, Any]) -> str | None:
    for name in ("info", "config", "model"):
        value = value.get(name) if isinstance(value.get(name), dict) else {}  # type: ignore[assignment]
    model = value.get("model_name")
    return model if isinstance(model, str) and model else None


# --- back ---


def record_of(item: Trajectory) -> dict[str, Any] | None:
    """The record that a trajectory was read from, if it still says the same."""
    if not isinstance(item, ImportedRecord):
        return None
    record = JsonRecord(item.record, Path(), 0, None)
    try:
        key, raws = raw_turns(record)
        conversation = read_tool_conversation(record, key, raws, item.options, None)
        steps = tool_steps(conversation, None, 0.0)
    except InputError:
        return None
    said = [(s.observation, s.parts, s.thought, s.action) for s in steps]
    same = said == [(s.observation, s.parts, s.thought, s.action) for s in item.steps]
    return item.record if same and conversation.instruction == item.instruction else None


def tool_line(
    item: Trajectory, annotation: Annotation | None, critical: frozenset[int], flag: str, bare: bool
) -> dict[str, Any]:
    """A line of OpenAI messages with ``tools``: the messages as they were read where they still say the same.

    ``bare``: nothing but what OpenAI's fine-tuning takes, with the flag on the agent's messages as 0 or 1.
    """
    record = record_of(item)
    messages = messages_of(item) if record is None else raw_turns(JsonRecord(record, Path(), 0, None))[1]
    tools: dict[str, Any] = {"tools": list(item.tools)} if item.tools else {}
    if bare:
        names = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call")
        messages = [{k: m[k] for k in names if k in m} for m in messages]
        return {"messages": flagged(messages, critical, flag, numbers=True), **tools}
    beside: dict[str, Any] = (
        {} if record is None else {k: record[k] for k in ("system", "system_prompt") if k in record}
    )
    line: dict[str, Any] = {"messages": flagged(messages, critical, flag, numbers=False), **tools, **beside}
    return line | {META: _meta_row(item, annotation, line, None if record else int(bool(item.instruction)))}


def flagged(messages: list[dict[str, Any]], critical: frozenset[int], flag: str, numbers: bool) -> list[dict[str, Any]]:
    """Messages with the flag on each, or with ``numbers`` as 0 or 1 on the agent's alone; other flags are taken off."""
    step, made = -1, []
    for message in messages:
        agent = is_answer(message)
        step += agent
        trained = agent and step in critical
        mark = {flag: int(trained)} if numbers and agent else {} if numbers else {flag: trained}
        made.append({k: v for k, v in message.items() if k not in FLAGS} | mark)
    return made


def _meta_row(
    item: Trajectory, annotation: Annotation | None, line: dict[str, Any], head: int | None
) -> dict[str, Any]:
    meta: dict[str, Any] = {k: getattr(item, k) for k in ITSELF} | {"calls_tools": True}
    meta["rewards"] = [s.reward for s in item.steps]
    for name, values in (
        ("actors", [s.actor for s in item.steps]),
        ("probabilities", [s.probability for s in item.steps]),
    ):
        if any(value is not None for value in values):
            meta[name] = values
    if head is not None:
        meta["head"] = head
    if exact := _exact_rows(item, JsonRecord(line | {META: meta}, Path(), 0, None)):
        meta["exact_tool_steps"] = exact
    told = annotation.row() if annotation else {}
    return meta | {k: told[k] for k in ANNOTATED if k in told}


def _exact_rows(item: Trajectory, record: JsonRecord) -> list[dict[str, Any]]:
    """The steps that their messages do not say exactly."""
    messages, meta = record.value["messages"], Meta.model_validate(record.value[META])
    try:
        conversation = read_tool_conversation(record, "messages", messages, Options(), meta)
        said: tuple[Step | None, ...] = tool_steps(conversation, meta, 0.0)
        head = conversation.head
    except InputError:  # a text that reads like a call, or none
        said, head = (None,) * len(item.steps), meta.head or 0
    agents = [n for n, message in enumerate(messages) if is_answer(message)]
    starts = [head, *(n + 1 for n in agents)]
    return [
        {
            "index": index,
            "step": step.model_dump(exclude_none=True),
            "messages": messages_digest(messages[starts[index] : agents[index] + 1]),
        }
        for index, step in enumerate(item.steps)
        if said[index] != step
    ]


def original(item: Trajectory, critical: frozenset[int] | None, flag: str) -> dict[str, Any]:
    """The record that a trajectory was read from, with every key; with ``critical`` also the flag on every message.

    Raises:
        InputError: it was not read from a record of a tool-calling agent, or says something else now.
    """
    record = record_of(item)
    if record is None:
        raise InputError(
            f"trajectory {item.id!r} is not as a record of a tool-calling agent has it, so there is no original: "
            "choose the format messages"
        )
    if critical is None:
        return record
    key, raws = raw_turns(JsonRecord(record, Path(), 0, None))
    told: Any = flagged(raws, critical, flag, numbers=flag == "weight")
    return record | {key: json.dumps(told, ensure_ascii=False) if isinstance(record[key], str) else told}


# --- beside the trajectories of a run ---


class RecordKeeper(AbstractContextManager["RecordKeeper"]):
    """Keeps the records of a run's trajectories in a file, one at a time; without any there is no file.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = RunLayout(run_dir).imported_records
        self._open: AbstractContextManager[Path] | None = None
        self._file: IO[str] | None = None

    def keep(self, item: Trajectory) -> None:
        """Keep the record that a trajectory was read from, if there is one."""
        if not isinstance(item, ImportedRecord):
            return
        if self._file is None:
            self._open = replacing(self._path)
            self._file = self._open.__enter__().open("w", encoding="utf-8")
        options = {"reasoning": item.options.reasoning, "thinking": list(item.options.thinking)}
        row = {"id": item.id, "options": options, "record": item.record}
        self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and self._open is not None:
            self._file.close()
            self._open.__exit__(kind, error, trace)


class RecordReader:
    """Gives the trajectories of a run the records they were read from, which stay in their file until then.

    Args:
        run_dir: the run directory.
    """

    _BEGINS = b'{"id": '

    def __init__(self, run_dir: Path) -> None:
        self._path, self._places = RunLayout(run_dir).imported_records, dict[str, int]()
        if self._path.exists():
            at = 0
            with self._path.open("rb") as file:
                for line in file:
                    name, _ = json.JSONDecoder().raw_decode(line[len(self._BEGINS) :].decode())
                    self._places[name], at = at, at + len(line)

    def with_record(self, item: Trajectory) -> Trajectory:
        """The trajectory with its record, if there is one."""
        if item.id not in self._places or item.tools is None:
            return item
        with self._path.open("rb") as file:
            file.seek(self._places[item.id])
            row = json.loads(file.readline())
        options = Options(reasoning=row["options"]["reasoning"], thinking=tuple(row["options"]["thinking"]))
        return ImportedRecord(**dict(item), record=row["record"], options=options)
