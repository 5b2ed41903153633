"""report.html: a run, or several side by side, as one file that any browser opens.

The file holds its style, its script and its numbers. It asks no other host for anything, and its
policy forbids it to. Whatever comes from a run, samples above all, is escaped.
"""

import html
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gptjax.base.files import write_atomically
from gptjax.runs.recorded import Recorded
from gptjax.runs.thinning import few, tokens_by_step

TEMPLATE = Path(__file__).with_name("report_page.html")
PART = re.compile(r"\{\{(\w+)\}\}")
Cells = Sequence[str]


def write_page(
    path: Path, title: str, lead: str, sections: Iterable[str], curves: dict[str, Any]
) -> None:
    """Replace the page at `path`; `title` and `lead` are text, `sections` are HTML."""
    parts = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "written": html.escape(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        "body": "\n".join(filter(None, sections)),
        "curves": as_script(curves),
    }
    # in one pass, so that a text with such a mark in it stays as it is
    page = PART.sub(lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_atomically(path, page.encode("utf-8", "replace"))


def as_script(value: Any) -> str:
    r"""JSON that cannot end the element it stands in.

    >>> as_script({"name": "</script>"})
    '{"name":"\\u003c/script>"}'
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def curves_of(
    runs: Sequence[Recorded], names: Sequence[str], panels: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the script of the page draws: panels, and for each run its tokens and its marks."""
    about = []
    for run, name in zip(runs, names, strict=True):
        steps, tokens = tokens_by_step(run.rows)
        about.append(
            {"name": name, "steps": steps, "tokens": tokens, "unit": f"{run.unit}s",
             "starts": few(run.restarts), "skipped": few(run.skipped)}
        )  # fmt: skip
    return {"runs": about, "panels": panels}


def section(title: str, *parts: str, note: str = "") -> str:
    """A card under a heading; nothing if it would be empty. `title` and `note` are text."""
    if not any(parts):
        return ""
    name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
    hint = f"<p class='hint'>{html.escape(note)}</p>" if note else ""
    return (
        f"<section class='card' aria-labelledby='{name}'>\n<h2 id='{name}'>{html.escape(title)}"
        f"</h2>{hint}\n{''.join(parts)}\n</section>"
    )


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Figures in large type: name, value, and a few words about it."""
    items = [
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
        f"<small>{html.escape(words)}</small></dd></div>"
        for name, value, words in figures
    ]
    return f"<dl class='tiles'>{''.join(items)}</dl>" if items else ""


def table(header: Cells, rows: Sequence[Cells], numbers: bool = True) -> str:
    """A table; with `numbers`, all columns but the first are flush right."""
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in header)
    lines = [
        f"<tr><th scope='row'>{html.escape(first)}</th>"
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    ]
    looks = " class='numbers'" if numbers else ""
    return (
        f"<div class='scroll' tabindex='0'><table{looks}><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def folded(summary: str, content: str, is_open: bool = False) -> str:
    """HTML under a line of text that opens and closes it."""
    return (
        f"<details{' open' * is_open}><summary>{html.escape(summary)}</summary>{content}</details>"
    )


def text_block(text: str) -> str:
    """A text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def links(names: Iterable[str]) -> str:
    """Links to files beside the page."""
    items = [
        f"<li><a href='{html.escape(name, quote=True)}'>{html.escape(name)}</a></li>"
        for name in names
    ]
    return f"<ul class='links'>{''.join(items)}</ul>" if items else ""


def bar(parts: Sequence[tuple[str, str, float, str]]) -> str:
    """One bar of several parts: class, name, share (0 to 1) and value in words of each."""
    pieces, keys = [], []
    for look, name, share, words in parts:
        if share > 0:
            shown, value = html.escape(name), html.escape(words)
            pieces.append(
                f"<i class='{look}' style='flex-grow:{share:.5f}' title='{shown}: {value}'></i>"
            )
            keys.append(
                f"<li><i class='{look}'></i>{shown}<b>{value}</b><span>{share:.1%}</span></li>"
            )
    if not pieces:
        return ""
    return f"<div class='bar'>{''.join(pieces)}</div><ul class='keys'>{''.join(keys)}</ul>"


def pairs(rows: Iterable[tuple[str, str, str]]) -> str:
    """Names and values in columns, each with a few soft words."""
    items = [
        f"<li><span>{html.escape(name)}</span><b>{html.escape(value)}</b>"
        f"<small>{html.escape(words)}</small></li>"
        for name, value, words in rows
    ]
    return f"<ul class='pairs'>{''.join(items)}</ul>" if items else ""


def count(n: float) -> str:
    """A number of tokens in three digits.

    >>> count(3891200), count(524), count(9.7e9)
    ('3.89 M', '524', '9.7 B')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            return f"{n / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{n:,.0f}"


def clock(seconds: float) -> str:
    """A time in its two largest units.

    >>> clock(7.25), clock(75), clock(3725), clock(180000)
    ('7.2 s', '1 min 15 s', '1 h 2 min', '2 d 2 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {large} {rest // part} {small}"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
