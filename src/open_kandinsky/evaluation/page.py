"""Parts of one self-contained HTML page: no script, no address outside it. All text is escaped here."""

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

FIGURE = re.compile(r"[-−+]?\d|–$")
RIGHT = ' class="figure"'

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #22262b; --soft: #666d76; --line: #e1e3e6; --tint: #f3f4f5;
  --accent: #2f6fb5; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #dfe2e6; --soft: #98a0aa; --line: #30343a;
  --tint: #1f2226; --accent: #7db2ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 3rem 0 0.75rem; font-size: 1.25rem; letter-spacing: -0.005em; }
p { margin: 0.5rem 0 1rem; max-width: 44rem; }
.note { padding: 0.75rem 1rem; max-width: none; background: var(--tint); border-left: 3px solid var(--accent); }
.scroll { overflow-x: auto; margin: 0.75rem 0 1.25rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
caption { padding: 0.25rem 0; text-align: left; color: var(--soft); }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.figure { padding: 0.4rem 0 0.4rem 0.9rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.figure { white-space: normal; }
.figure + :not(.figure) { padding-left: 1.75rem; }
figure { margin: 1rem 0 1.5rem; }
figcaption { margin-top: 0.4rem; color: var(--soft); font-size: 0.9rem; max-width: 44rem; }
img, svg { display: block; max-width: 100%; height: auto; }
img { border: 1px solid var(--line); border-radius: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 0 1.5rem; }
.grid svg { width: 100%; }
code { font: 0.875em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
"""


class Section(NamedTuple):
    """A heading and what is below it, as HTML."""

    title: str
    html: str


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole document. A section without a title stands below the one before it."""
    body = "\n".join(f"<section>{heading(section.title)}{section.html}</section>" for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" if title else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def note(text: str) -> str:
    """A paragraph that is not to be overlooked."""
    return f'<p class="note">{escape(text)}</p>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Rows of text. A column is set flush right if each of its cells starts with a digit or a sign, or is a dash."""
    figures = [all(FIGURE.match(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(_cell("th", text, right) for text, right in zip(header, figures, strict=True))
    body = "\n".join(
        f"<tr>{''.join(_cell('td', text, right) for text, right in zip(row, figures, strict=True))}</tr>"
        for row in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{named}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
    )


def _cell(tag: str, text: str, right: bool) -> str:
    """A heading may be broken behind each underscore, so that a wide table fits a page."""
    shown = escape(text).replace("_", "_<wbr>") if tag == "th" else escape(text)
    return f"<{tag}{RIGHT if right else ''}>{shown}</{tag}>"


def picture(png: bytes, alt: str) -> str:
    """A PNG inside the page; `alt` says what it shows to who cannot see it."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def figure(html: str, caption: str) -> str:
    """A picture or a drawing, as HTML, with words below it."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>\n"


def grid(figures: Sequence[str]) -> str:
    """Drawings, as HTML, side by side where there is room."""
    return f'<div class="grid">{"".join(f"<figure>{drawing}</figure>" for drawing in figures)}</div>\n'
