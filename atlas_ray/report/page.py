"""HTML that is safe by construction: every plain string that enters :func:`el` is escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

# One palette for the page, the pictures inside it (colours become variables) and the PNGs (light values).
LIGHT = {
    "ink": "#1d232b",
    "muted": "#616c7a",
    "rule": "#d8dde4",
    "edge": "#868f9b",
    "paper": "#fdfdfc",
    "panel": "#f4f5f7",
    "blue": "#2a6496",
    "orange": "#b8560f",
    "tint": "#fbf0e4",
}
DARK = {
    "ink": "#e2e6eb",
    "muted": "#98a3b1",
    "rule": "#343c47",
    "edge": "#6b7684",
    "paper": "#14181d",
    "panel": "#1c2229",
    "blue": "#7db4e3",
    "orange": "#eb9a56",
    "tint": "#2e241b",
}

NOTHING = "\N{EN DASH}"  # stands in a table for what is not there

# nothing in the page may load anything, and only the script of this hash may run
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src {}; base-uri 'none'; form-action 'none'"


class Html(str):
    """Markup that is already safe."""


def el(tag: str, *children: str | Html | Iterable[Html], **attributes: str) -> Html:
    """An element; plain strings are escaped. ``cls`` stands for the class attribute."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, str):
            parts.append(child if isinstance(child, Html) else html.escape(child))
        else:
            parts.extend(child)
    opening = "".join(f' {"class" if k == "cls" else k}="{html.escape(v)}"' for k, v in attributes.items())
    return Html(f"<{tag}{opening}>{''.join(parts)}</{tag}>")


def missing(what: str) -> Html:
    """The line that stands for a part whose input is not there."""
    return el("p", f"Not shown: {what}.", cls="missing")


def short(text: str, most: int) -> str:
    """At most ``most`` characters of a text, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def scrolling(content: Html, what: str, cls: str) -> Html:
    """What may be wider than the page and then scrolls by itself, by keys too."""
    return el("div", content, cls=cls, tabindex="0", role="group", **{"aria-label": f"{what}, scrolls sideways"})


def table(heads: list[str], rows: list[list[str | Html]], text: int = 1, wrap_last: bool = False) -> Html:
    """A table whose first ``text`` columns are words and the others right-aligned numbers.

    ``wrap_last`` makes the last column a wrapped text.
    """

    def kind(column: int) -> str:
        return "wrap" if wrap_last and column == len(heads) - 1 else "text" if column < text else "number"

    head = el("tr", [el("th", name, cls=kind(i), scope="col") for i, name in enumerate(heads)])
    body = [el("tr", [el("td", value, cls=kind(i)) for i, value in enumerate(row)]) for row in rows]
    return scrolling(el("table", el("thead", head), el("tbody", body)), "table", "wide")


def data(name: str, value: Any) -> Html:
    """JSON for the script of the page; nothing in it can end its element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{html.escape(name)}">{text}</script>')


def shipped(name: str) -> str:
    """A file of this package: ``page.css``, ``viewer.js``."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def page(title: str, parts: Iterable[Html], script: str = "") -> str:
    """The whole document.

    Args:
        title: of the window.
        parts: of the body.
        script: the one that may run, at the end of the body.
    """
    colours = [" ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (LIGHT, DARK)]
    colours.append(colours[0])  # paper is white whatever the screen is
    themes = ":root {{ color-scheme: light dark; {} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {} }} }}\n"
    themes += "@media print {{ :root {{ {} }} }}\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = _POLICY.format(f"'sha256-{digest}'" if script else "'none'")
    return (
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                el("title", title),
                f"<style>\n{themes.format(*colours)}{shipped('page.css')}</style>",
                "</head>",
                "<body>",
                "<main>",
                *parts,
                "</main>",
                *([f"<script>{script}</script>"] if script else []),
                "</body>",
                "</html>",
                "",
            ]
            # a lone surrogate (JSON can hold one) cannot be written as UTF-8
        )
        .encode("utf-8", "replace")
        .decode("utf-8")
    )
