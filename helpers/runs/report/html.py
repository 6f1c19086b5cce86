"""A page of HTML that needs no network, no script and no other file: its frame and style, tables, figures, text of strangers.

All that comes from data or models goes through `text`: nothing in it can become markup, turn the reading direction of what
stands beside it, or break the file.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

# Nothing may be loaded from anywhere, and no script runs: the page may show answers of a model, which are a stranger's text.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Colours of figures in plots.py, by what stands for them on the page: one value in the light, one in the dark.
COLOURS = {
    "#000000": "currentColor",
    "#1f77b4": "var(--c0)",
    "#808080": "var(--grey)",
    "#b84a00": "var(--c1)",
    "#1b7837": "var(--c2)",
    "#7b3294": "var(--c3)",
    "#ffffff": "var(--paper)",
}

LONGEST_CELL = 300  # characters of a table's cell; a longer one is cut, and says so

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --quiet: #555b66; --line: #c9cdd4; --soft: #f3f4f6; --link: #0b57d0;
  --good: #0a6b2b; --bad: #a4161a; --c0: #1f6fb4; --c1: #b84a00; --c2: #1b7837; --c3: #7b3294; --grey: #6b7280; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e7e9ee; --quiet: #a7aebb; --line: #3a3f49;
  --soft: #1f2229; --link: #8ab4f8; --good: #7fd69a; --bad: #ff9a95; --c0: #6db3f2; --c1: #ff9d5c; --c2: #7fd08f; --c3: #d3a0e8;
  --grey: #a0a7b4; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; background: var(--paper); color: var(--ink); }
h1 { line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { margin: 1.5rem 0 .3rem; } p, li, dd { overflow-wrap: anywhere; } a { color: var(--link); }
.quiet { color: var(--quiet); } .good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.problem { border-left: .3rem solid var(--bad); padding: .3rem .8rem; background: var(--soft); }
.verdict { font-size: 1.15rem; }
nav ul { columns: 12rem; padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); white-space: pre-line; }
td { max-width: 32rem; overflow-wrap: break-word; } th { font-weight: 600; } tbody th { font-weight: 400; }
.number { text-align: right; } .code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; min-width: 6rem; }
th.code { min-width: 9rem; }
figure { display: inline-block; vertical-align: top; width: min(100%, 29rem); margin: 1rem 0 .5rem; }
svg { display: block; width: 100%; height: auto; fill: currentColor; }
figcaption { color: var(--quiet); font-size: .9rem; }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft);
  padding: .4rem .7rem; margin: .2rem 0 .6rem; max-height: 24rem; overflow-y: auto; }
dl { margin: .5rem 0; } dt { color: var(--quiet); font-size: .9rem; } dd { margin: 0; }
.sample { border-left: .3rem solid var(--line); padding-left: .8rem; margin: 1rem 0; } .sample > div { min-width: 0; }
@media (min-width: 40rem) { figure { margin-right: 1rem; } .sample { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; } }
@media (max-width: 40rem) { body { padding: .6rem; } table { font-size: .875rem; } th, td { padding-right: .6rem; } }
@media print { :root { color-scheme: light; }
  body { font-size: 10pt; max-width: none; padding: 0; } nav { display: none; } .wide, .said { overflow: visible; max-height: none; }
  h2, h3, caption, summary { break-after: avoid; } tr, figure, .sample { break-inside: avoid; }
  figure { width: 48%; margin: .5rem 1% .5rem 0; } table { font-size: 8.5pt; } th, td { padding-right: .6rem; } }
"""


def printable(words: str) -> str:
    """Without characters that no page can hold, which become �."""
    return "".join(
        c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff" and c != "\x7f") else "�"
        for c in words
    )


def text(value: Any) -> str:
    """A value as text that is safe anywhere in the page."""
    return escape(printable(str(value)))


def said(words: str, longest: int = 4000) -> str:
    """What a person or a model wrote, as it was written, its direction by its own first letters.

    Args:
        longest: more characters than this are cut, and the page says so.
    """
    cut = (
        f'<p class="quiet">… the first {longest:,} of {len(words):,} characters</p>'
        if len(words) > longest
        else ""
    )
    return f'<div class="said" dir="auto" tabindex="0">{text(words[:longest]) or "(nothing)"}</div>{cut}'


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def problem(words: str) -> str:
    """Something that is missing or damaged: never left out without a word."""
    return paragraph(words, "problem")


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    right: Sequence[int] = (),
    code: Sequence[int] = (),
) -> str:
    """Rows under a head; the first cell of a row names it. True and False become words in colour.

    Args:
        caption: what the table shows, for a reader who jumps from table to table.
        right: columns of numbers. code: columns of names that may break anywhere.
    """
    kinds = {**{i: "number" for i in right}, **{i: "code" for i in code}}

    def cell(place: int, value: Any) -> str:
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        kind = f' class="{kinds[place]}"' if place in kinds else ""
        if isinstance(value, bool):
            inside = '<span class="good">yes</span>' if value else '<span class="bad">no</span>'
        else:
            words = str(value)
            inside = text(
                words
                if len(words) <= LONGEST_CELL
                else f"{words[:LONGEST_CELL]}… ({len(words):,} characters)"
            )
        return f"<{tag}{scope}{kind}>{inside}</{tag}>"

    heads = "".join(
        f'<th scope="col"{" class=number" if i in right else ""}>{text(name)}</th>'
        for i, name in enumerate(head)
    )
    body = "".join("<tr>" + "".join(cell(i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return (
        f'<div class="wide" role="region" aria-label="{text(caption)}" tabindex="0"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, inside: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{inside}</details>"


def figure(name: str, draw: Callable[[], Any], description: str) -> str:
    """A matplotlib figure as SVG in the page's own colours and letters.

    Args:
        name: a word for it, once a page; ids in the figure begin with it.
        draw: makes the figure. It is called with settings that keep labels as plain text.
        description: what it shows, for who can't see it, and as its caption.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "legend.frameon": False,
        "font.size": 10,
        "savefig.transparent": True,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # matters to pictures; here the browser has the letters
        draw().savefig(buffer, format="svg", metadata={"Date": None})
    svg = re.search(r"<svg.*</svg>", printable(buffer.getvalue()), re.S)[0]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>| xmlns(:xlink)?=\"[^\"]*\"|<!--.*?-->",
        "",
        svg,
        flags=re.S,
    )
    svg = (
        re.sub(r"\bid=\"", f'id="{name}-', svg)
        .replace("url(#", f"url(#{name}-")
        .replace('xlink:href="#', f'href="#{name}-')
    )
    svg = re.sub("|".join(COLOURS), lambda match: COLOURS[match[0]], svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(
        r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>",
        rf'<svg viewBox="\1" role="img" aria-label="{text(description)}">',
        svg,
        count=1,
    )
    return f"<figure>{svg}<figcaption>{text(description)}</figcaption></figure>"


def page(title: str, head: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page.

    Args:
        title: of the page, as plain text.
        head: HTML that comes before the contents.
        sections: (id, heading, HTML) of each.
    """
    contents = "".join(f'<li><a href="#{name}">{text(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{text(heading)}</h2>{inside}</section>'
        for name, heading, inside in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{text(title)}</h1>{head}</header>"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>{body}</main></body></html>\n'
    )
