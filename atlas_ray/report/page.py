"""HTML that is safe by construction: every plain string that enters :func:`el` is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

# One palette for the page, the pictures inside it (colours become variables) and the PNGs (light values).
LIGHT = {
    "ink": "#1d232b",
    "muted": "#616c7a",
    "rule": "#d8dde4",
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
    "paper": "#14181d",
    "panel": "#1c2229",
    "blue": "#7db4e3",
    "orange": "#eb9a56",
    "tint": "#2e241b",
}

_STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 .7rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
h4 { font-size: .92rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; }
p { margin: .5rem 0; }
a { color: var(--blue); }
.lead { font-size: 1.05rem; color: var(--muted); }
.note, .missing { color: var(--muted); font-size: .88rem; }
.missing { font-style: italic; }
.reading { padding-left: 1.1rem; }
.reading li { margin: .35rem 0; }
.wide { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: baseline;
  white-space: nowrap; }
th { color: var(--muted); font-weight: 600; font-size: .8rem; line-height: 1.3; vertical-align: bottom;
  white-space: normal; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
.number { text-align: right; }
.ci { color: var(--muted); font-size: .92em; }
.answer { margin: 1.4rem 0; padding: 1.1rem 1.3rem 1.2rem; background: var(--panel); border-radius: 10px; }
.answer h3 { margin: 0; color: var(--muted); font-weight: 600; font-size: .88rem; }
.answer .headline { font-size: 1.3rem; line-height: 1.35; font-weight: 600; margin: .25rem 0 .6rem; max-width: 44rem; }
.answer .numbers { margin: .4rem 0 0; padding-left: 1.1rem; color: var(--muted); font-size: .88rem; }
figure { margin: 1.2rem 0; }
.drawing { overflow-x: auto; }
figure svg { display: block; width: 100%%; max-width: 42rem; min-width: 27rem; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--muted); font-size: .88rem; max-width: 46rem; margin-top: .4rem; }
details { margin: .9rem 0; }
summary { cursor: pointer; color: var(--blue); }
pre { background: var(--panel); padding: .9rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .8rem; }
.goal { background: var(--panel); border-radius: 6px; padding: .6rem .9rem; max-width: none; }
.steps { list-style: none; margin: .8rem 0; padding: 0; }
.steps li { border-left: 3px solid var(--rule); padding: .35rem .9rem; margin: .35rem 0; max-width: none; }
.steps li.marked { border-color: var(--orange); background: var(--tint); border-radius: 0 6px 6px 0; }
.steps p { margin: .1rem 0; max-width: none; }
.goal, .steps p, td.wrap { unicode-bidi: plaintext; }
.goal, .steps p { white-space: pre-wrap; overflow-wrap: anywhere; }
.steps .head { color: var(--muted); font-size: .8rem; }
.steps .seen { color: var(--muted); font-size: .9rem; }
.steps .thought { font-style: italic; }
.steps .action { font-weight: 600; }
.steps li { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
.told { flex: 3 1 22rem; min-width: 0; }
.marks { flex: 1 1 11rem; min-width: 0; }
.steps .none { color: var(--muted); font-size: .88rem; }
.badge { color: var(--orange); font-weight: 600; }
@media (max-width: 36rem) { body { padding-top: 1.5rem; font-size: 15px; } h1 { font-size: 1.5rem; } }
"""

NOTHING = "\N{EN DASH}"  # stands in a table for what is not there

# nothing in the page may load or run anything
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


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


def table(heads: list[str], rows: list[list[str | Html]], text: int = 1, wrap_last: bool = False) -> Html:
    """A table whose first ``text`` columns are words and the others right-aligned numbers.

    ``wrap_last`` makes the last column a wrapped text.
    """

    def kind(column: int) -> str:
        return "wrap" if wrap_last and column == len(heads) - 1 else "text" if column < text else "number"

    head = el("tr", [el("th", name, cls=kind(i)) for i, name in enumerate(heads)])
    body = [el("tr", [el("td", value, cls=kind(i)) for i, value in enumerate(row)]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", body)), cls="wide")


def page(title: str, parts: Iterable[Html]) -> str:
    """The whole document."""
    colours = [" ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (LIGHT, DARK)]
    style = _STYLE % {"light": colours[0], "dark": colours[1]}
    return (
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
                el("title", title),
                f"<style>{style}</style>",
                "</head>",
                "<body>",
                *parts,
                "</body>",
                "</html>",
                "",
            ]
            # a lone surrogate (JSON can hold one) cannot be written as UTF-8
        )
        .encode("utf-8", "replace")
        .decode("utf-8")
    )
