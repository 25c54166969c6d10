"""Finds words that were replaced: names file, line, word and what to say. Run it from the root of the repository.

``NAMES`` are looked for among the identifiers of Python files and in the code that Markdown quotes, ``TEXTS``
everywhere. A line that must keep one (an alias, a key of an older file) says ``old name`` in a comment.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

EXEMPT = {
    ".ci/words.py",
    "CHANGELOG.md",
    "atlas_ray/moved.py",
    "tests/recipe/test_renamed.py",
    "tests/test_layout.py",
    "tests/test_packaging.py",
    "tests/test_words.py",
}
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".sh", ".txt"}
NAMES = {
    "Answers": "DecisionCache",
    "Ask": "OraclePrompt",
    "Asked": "ActRequest",
    "Beginnings": "EpisodeStarter",
    "Clonable": "Restorable",
    "Coming": "ClientEnvSpec",
    "Contestant": "PolicySpec",
    "Demand": "ResourceRequest",
    "Desk": "SessionManager",
    "Finished": "EpisodeResult",
    "Flow": "ThroughputMeter",
    "Gauge": "CounterSample",
    "Home": "RunDirHandle",
    "Keeper": "RunSync",
    "Ledger": "ComputeAccountant",
    "Lesson": "TrainingSetup",
    "Lines": "HttpClient",
    "Outside": "ClientEnv",
    "Pace": "RateLimiter",
    "Piece": "SnapshotEntry",
    "Prefix": "ReplayState",
    "Reading": "HiddenStateRequest",
    "Room": "TokenBudget",
    "Scoring": "ScoreRequest",
    "Seat": "EngineLease",
    "Section": "ConfigModel",
    "Spent": "TokenCost",
    "Talk": "Conversation",
    "Team": "ProcessGroup",
    "Tree": "TokenTrie",
    "Trouble": "NoResponseError",
    "Writer": "ChatBackend",
    "Writing": "GenerateRequest",
    "at_home": "localize",
    "complete_each": "complete(..., return_exceptions=True)",
    "harmless": "sanitize",
    "keep_replay": "keep_replay_buffer",
    "lanes": "prefix_groups",
    "open_desk": "open_sessions",
    "plant": "build_tries",
    "play_switching": "evaluate_policy",
    "seated": "with_leases",
    "speechless": "expert_failures",
    "surviving": "with_recovery",
}
TEXTS = {
    r"--places\b": "--max-sessions",
    r"^\s*(import envs|from envs)\b": "from atlas_ray import envs",
    r"[\"'`]envs:[A-Z]": "atlas_ray.envs:",
}
_NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")


def findings(path: str, text: str) -> list[str]:
    """A line for each word in a text."""
    lines = text.splitlines()
    found = [*_names(path, text, lines), *_texts(lines)]
    return [
        f"{path}:{number}: {word}: say {better}"
        for number, word, better in sorted(set(found))
        if "old name" not in lines[number - 1]
    ]


def _names(path: str, text: str, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    if not _NAME.search(text):
        return
    if path.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in NAMES:
                yield token.start[0], token.string, NAMES[token.string]
    elif path.endswith(".md"):
        for number, line in enumerate(lines, 1):
            for quoted in re.findall(r"`[^`]+`", line):
                yield from ((number, name, NAMES[name]) for name in _NAME.findall(quoted))


def _texts(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(lines, 1):
        for word, better in TEXTS.items():
            if match := re.search(word, line):
                yield number, match[0].strip(), better


def main() -> int:
    """Look at every file that git knows."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S607
    paths = [Path(name) for name in listed if name not in EXEMPT]
    found = [
        line
        for path in paths
        if path.suffix in SUFFIXES and path.is_file()
        for line in findings(str(path), path.read_text(encoding="utf-8"))
    ]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
