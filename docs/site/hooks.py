"""What MkDocs does besides: pages from outside ``docs/``, the recipe reference, nothing from another host.

Pages link to files of the repository as on any host of code. Here README, changelog and others become pages of their
own, and a source file that some page links to becomes a page that shows it.
"""

from __future__ import annotations

import importlib.util
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "clusters/README.md": "clusters.md",
    "atlas_ray/weights/README.md": "weights.md",
    "examples/quickstart.ipynb": "notebook.md",
}
"""Files of the repository that are pages, and where on the site."""
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh", ".yaml": "yaml", ".yml": "yaml"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
REFERENCE = "<!-- recipe reference -->"
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*?\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?![^>]*\brel=["']?(?:canonical|prev|next|edit))[^>]*?\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""",
    re.IGNORECASE,
)
"""What a page or a style sheet would fetch from another host."""

_origins: dict[str, str] = {}
"""Page of the site -> the file of the repository that it is made of."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside, and one for each source file that a page links to."""
    from mkdocs.structure.files import File, InclusionLevel

    _origins.clear()
    _origins.update({page: name for name, page in OUTSIDE.items() if (ROOT / name).is_file()})
    _origins.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    linked = {
        target
        for origin in list(_origins.values())
        for target in (_target(link, origin) for link in LINK.findall(_text(origin)))
        if not target.startswith("docs/") and target not in OUTSIDE and (ROOT / target).is_file()
    }
    _origins.update({_place(name): name for name in linked})
    for page, name in _origins.items():
        if not name.startswith("docs/"):
            content = _text(name) if name in OUTSIDE else _source(name)
            level = InclusionLevel.INCLUDED if name in OUTSIDE else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, page, content=content, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the recipe reference in, and let links lead to where their files are on the site."""
    here = page.file.src_uri
    origin = _origins[here]

    text = markdown if here.startswith("source/") else led(markdown, origin, here)
    return text.replace(REFERENCE, _reference()) if REFERENCE in text else text


def led(markdown: str, origin: str, here: str) -> str:
    """A file's text as the page ``here`` has it: its links lead to the places of their files on the site."""

    def place(match: re.Match[str]) -> str:
        target = _target(match[1], origin)
        there = target.removeprefix("docs/") if target.startswith("docs/") else OUTSIDE.get(target) or _place(target)
        return posixpath.relpath(there, posixpath.dirname(here) or ".")

    return LINK.sub(place, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that would load anything from another host.

    Raises:
        PluginError: names page and address.
    """
    from mkdocs.exceptions import PluginError

    if found := foreign(Path(config["site_dir"])):
        raise PluginError("the site loads from other hosts:\n" + "\n".join(found))


def foreign(site: Path) -> list[str]:
    """What the pages and style sheets of a built site load from other hosts."""
    return [
        f"{path.relative_to(site)}: {next(filter(None, found))}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css", ".svg")
        for found in LOADS.findall(path.read_text(encoding="utf-8"))
    ]


def _text(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return notebook(text) if name.endswith(".ipynb") else text


def notebook(text: str) -> str:
    """A notebook as a page: its cells, what they printed or returned, and their pictures."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![the picture](data:image/png;base64,{data['image/png'].strip()})")
            elif said := "".join(output.get("text") or data.get("text/plain") or ()).rstrip():
                parts.append(f"```text\n{said}\n```")
    return "\n\n".join(parts) + "\n"


def _target(link: str, origin: str) -> str:
    """The path in the repository that a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _place(name: str) -> str:
    return f"source/{name}.md"


def _source(name: str) -> str:
    language = LANGUAGES.get(Path(name).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n~~~~{language}\n{_text(name)}~~~~\n"


def _reference() -> str:
    spec = importlib.util.spec_from_file_location("recipe_reference", Path(__file__).with_name("recipe_reference.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.markdown())
