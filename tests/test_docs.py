"""The pages: links that lead somewhere, messages that the code gives, a reference that holds every field."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from atlas_ray.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "clusters" / "README.md", ROOT / "atlas_ray/weights/README.md"]
)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s]+)")
PLACEHOLDER = "…"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slug(heading):
    """The anchor of a heading, on the site and where code is hosted."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip().replace(" ", "-")


def anchors(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "recipe.md":
        text += script("recipe_reference").markdown()
    return {slug(title) for title in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)}


def test_every_link_leads_to_a_file_and_a_heading_that_are_there():
    headings, wrong, seen = {}, [], 0
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            seen += 1
            if not target.exists() or not target.is_relative_to(ROOT):
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
            elif anchor and target.suffix == ".md" and anchor not in headings.setdefault(target, anchors(target)):
                wrong.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
    assert wrong == []
    assert seen > 100


def test_every_page_is_in_the_navigation_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r"[\w/-]+\.md", nav)
    outside = {page for name, page in script("hooks").OUTSIDE.items() if (ROOT / name).is_file()}
    assert sorted(named) == sorted({p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} | outside)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_another_host(tmp_path):
    pytest.importorskip("material", reason="extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        assert "Content-Security-Policy\" content=\"default-src 'self';" in page.read_text(encoding="utf-8"), page
    reference = (tmp_path / "site" / "recipe.html").read_text(encoding="utf-8")
    assert "<code>worker_timeout</code>" in reference and 'id="selectoracle"' in reference
    assert "read_trajectories" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")


def test_links_of_files_outside_lead_to_their_places_on_the_site():
    led = script("hooks").led
    text = "[a](docs/report.md#safety) [b](CONTRIBUTING.md) [c](examples/atlas_loop.py) [d](https://a.b/c) [e](#f)"
    assert led(text, "README.md", "index.md") == (
        "[a](report.md#safety) [b](contributing.md) [c](source/examples/atlas_loop.py.md) [d](https://a.b/c) [e](#f)"
    )
    assert led("[a](../../README.md) [b](../api.md)", "docs/tutorials/t.md", "tutorials/t.md") == (
        "[a](../index.md) [b](../api.md)"
    )
    assert led("[a](../docs/gateway.md)", "clusters/README.md", "clusters.md") == "[a](gateway.md)"


def test_the_notebook_is_a_page_with_what_it_printed_and_its_picture():
    made = script("hooks").notebook((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert made.startswith("# From trajectories to a picture\n") and made.count("```python\n") == 8
    assert "```text\npick up the green key\n" in made and made.count("](data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", "<img alt=x src='//cdn.example/x.png'>"),
        ("a.html", '<link rel="stylesheet" href="https://fonts.example/css">'),
        ("a.css", "@import 'https://fonts.example/css';"),
        ("a.css", "a { background: url(https://cdn.example/x.png) }"),
    ],
)
def test_what_another_host_would_be_asked_for_is_found(tmp_path, name, text):
    (tmp_path / "fine.html").write_text(
        '<a href="https://a.b/">x</a><img src="x.png"><link rel="canonical" href="//a">'
    )
    assert script("hooks").foreign(tmp_path) == []
    (tmp_path / name).write_text(text)
    (found,) = script("hooks").foreign(tmp_path)
    assert found.startswith(f"{name}: ") and "example" in found


def test_the_reference_has_every_field_of_every_table_with_type_and_meaning():
    made = script("recipe_reference")
    text, tables = made.markdown(), list(made.tables())
    assert len(tables) > 25 and {"", "[select.oracle]", "[[switch.models]]", "[[finetune.arms]]"} <= dict(tables).keys()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for heading, table in tables:
        rows = re.findall(
            r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$",
            sections[f"`{heading}`" if heading else "The top of the file"],
            re.M,
        )
        assert [row[0] for row in rows] == list(table.model_fields)
        assert [row for row in rows if row[1].startswith("any value") or not row[3].strip()] == []
    assert "| `fraction` | number, above 0, at most 1 | `0.3` | At most this share" in text
    assert '| `decide` | `"score"` or `"generate"` | `"score"` |' in text
    assert "| `arms` | list of table, at least 1 of them | **required** | What to train" in text


def test_the_pictures_are_small_stand_alone_and_fit_light_and_dark():
    pictures = sorted((DOCS / "images").glob("*.svg"))
    for path in pictures:
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.get("viewBox") and "<title>" in text and "prefers-color-scheme: dark" in text
        assert len(text) < 8_000 and "http" not in text.replace("http://www.w3.org/2000/svg", "")


# -- the messages of the troubleshooting page


def entries():
    """(what it looks like, the module that says it) of the page."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    found = re.findall(r"^### `(.+)`\n<!-- from: (\S+) -->\n(?:<!-- said: (.+) -->\n)?\n\S", text, re.MULTILINE)
    assert len(found) == text.count("\n### ")
    return [(said or shown, name) for shown, name, said in found]


def said_in(path):
    """The texts of a module, with a placeholder for each value; neighbours are joined."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else PLACEHOLDER for v in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_of_the_troubleshooting_page_is_the_codes():
    found = entries()
    assert len(found) >= 20
    for shown, name in found:
        texts = [re.sub(r"[…\s]+", " ", text) for text in said_in(ROOT / name)]
        wanted = [part.strip() for part in re.split(r"[…\s]*…[…\s]*", shown) if part.strip(" ':")]
        assert any(all(part.strip("'") in text for part in wanted) for text in texts), (shown, name)


RECIPE = 'name = "r"\nworkers = 0\n[collect]\nlevels = { GoToLocalS5N2 = 1 }\n[select]\nselectors = ["all"]\n'


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["run", "no-such-recipe"], "no recipe of that name and no such file"),
        (["run", "r.toml", "--select.fractoin", "0.2"], "unknown key; did you mean 'fraction'?"),
        (
            ["export", ".", "--format", "messages", "--selector", "all", "--out", "x"],
            "is not a run directory: it has no recipe.resolved.json",
        ),
        (
            ["run", "r.toml", "--dry-run", "--select.selectors", '["value"]', "--select.model", "no such model"],
            "no model of that name; shipped are",
        ),
        (
            ["run", "r.toml", "--dry-run", "--select.selectors", '["calls"]'],
            "calls marks steps by who took them, and experts take all of theirs: give collect.switch",
        ),
    ],
)
def test_messages_of_the_page_are_what_a_user_sees(command, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(RECIPE)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert shown in said and said.count("\n") == 1
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert re.split(r"'|recipe\.resolved", shown)[0] in page
