"""What the pages of reports are made of: the frame, sections, tables, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from loadgen.report.scales import ms_label

Tile = tuple[str, str, str]
"""What it is, the figure, and a note below it."""


def page(
    title: str,
    *,
    about: Sequence[str],
    tiles: Iterable[Tile],
    sections: Mapping[str, str],
    end: str,
) -> str:
    """A page that needs nothing else. Sections are HTML by their headings."""
    template = Template(files("loadgen.report").joinpath("template.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title),
        about=escape(" · ".join(about)),
        headline="".join(
            f'<div class="tile"><span>{name}</span><b>{value}</b><small>{note}</small></div>'
            for name, value, note in tiles
        ),
        sections="\n".join(
            f"<section><h2>{name}</h2>{body}</section>" for name, body in sections.items()
        ),
        footer=end,
    )


def folded(title: str, body: str) -> str:
    """What is opened by a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[str] = ()) -> str:
    texts = {0, *(place for place, name in enumerate(head) if name in words)}

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if place in texts else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def histogram(times: Iterable[float], width_s: float, bins: int) -> list[float]:
    counts = [0.0] * bins
    for at in times:
        counts[min(bins - 1, int(at / width_s))] += 1
    return counts


def nothing(text: str) -> str:
    return f'<p class="nothing">{escape(text)}</p>'


def ms(value: float | None) -> str:
    return "-" if value is None else ms_label(value)


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
