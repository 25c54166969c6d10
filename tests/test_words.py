"""The list of replaced words finds them where they are names, and nowhere else."""

import importlib.util
from pathlib import Path

CI = Path(__file__).parent.parent / ".ci" / "words.py"


def findings(path, text):
    spec = importlib.util.spec_from_file_location("words", CI)
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    return words.findings(path, text)


def test_a_replaced_word_is_named_with_its_line_and_what_to_say():
    code = '"""A Desk."""\nfrom x import Desk\nDesk = 1  # the old name\ntold = "Desk"  # Desk\nopen_desk(Desk())\n'
    assert findings("a.py", code) == [
        "a.py:2: Desk: say SessionManager",
        "a.py:5: Desk: say SessionManager",
        "a.py:5: open_desk: say open_sessions",
    ]
    assert findings("a.md", "A Desk stands there.\nUse `Desk(1)`, or\n`--places 3`.\n") == [
        "a.md:2: Desk: say SessionManager",
        "a.md:3: --places: say --max-sessions",
    ]
    assert findings("a.toml", "import envs\n") == ["a.toml:1: import envs: say from atlas_ray import envs"]
    assert findings("a.py", "import environs\nx = 'in envs: all'\n") == []
