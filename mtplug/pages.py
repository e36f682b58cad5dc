"""Pages that need nothing beside themselves: no script, no network, light or dark as the reader's system is."""

from __future__ import annotations

import html
import unicodedata
from pathlib import Path


def document(title: str, below: str, body: str) -> str:
    """A whole page.

    Args:
        title: text.
        below: a line of text below the title.
        body: HTML.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{safe(title)}</h1>\n<p class="soft">{safe(below)}</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def table(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """A table; heads are text, the rest is HTML."""
    heads = "".join(f'<th scope="col">{safe(h)}</th>' for h in head)
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>'


def language(code: str) -> str:
    """The attribute that says an element's language; empty for an empty code."""
    return f' lang="{safe(code.replace("_", "-"))}"' if code else ""


def safe(text: str) -> str:
    """Escaped; control characters, which HTML does not allow, as the symbols that stand for them."""
    shown = "".join(
        (chr(0x2400 + ord(c)) if ord(c) < 32 else "�")
        if unicodedata.category(c) in ("Cc", "Cs") and c != "\t"
        else c
        for c in text
    )
    return html.escape(shown, quote=True)
