"""Charts as inline SVG: plain functions from data to text. Colours are classes that the page's CSS defines.

A chart is drawn on a fixed canvas and scales with the page. Legends are HTML, so that they wrap; an element with
`data-series="X"` is hidden when the legend entry X is switched off, and `data-tip` is shown on hover.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from loadgen.report.scales import (
    Linear,
    Logarithmic,
    count_label,
    linear_ticks,
    log_ticks,
    ms_label,
    s_label,
    time_ticks,
)

WIDTH = 1000
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44
LABEL_WIDTH = 230
ROW = 30
LONGEST_LABEL = 30
CURVE_POINTS = 300
HOVER_COLUMNS = 80
LEAST_LOG_MS = 0.01
CDF_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Series:
    """Values with a name for the legend and a CSS class for the colour."""

    name: str
    css: str
    values: Sequence[float]


def legend(series: Sequence[tuple[str, str]]) -> str:
    """Switches for (name, CSS class) pairs."""
    entries = "".join(
        f'<button type="button" data-toggle="{css}"><i class="{css}"></i>{escape(name)}</button>'
        for name, css in series
    )
    return f'<div class="legend">{entries}</div>'


def cdf(series: Sequence[Series]) -> str:
    """Share of values up to x, on a logarithmic axis of ms; each series' values ascending."""
    height = 340
    low = max(LEAST_LOG_MS, min(one.values[0] for one in series))
    high = max(low, *(one.values[-1] for one in series))
    ticks = log_ticks(low / CDF_MARGIN, high * CDF_MARGIN)
    x = Logarithmic(ticks[0], ticks[-1], LEFT, WIDTH - RIGHT)
    y = Linear(0, 1, height - BOTTOM, TOP)
    parts = [
        _y_axis(y, [0, 0.25, 0.5, 0.75, 1], lambda share: f"{share:.0%}"),
        _x_axis(x, ticks, ms_label, height),
        _axis_title("latency from the intended send time (log)", height),
    ]
    parts += [
        f'<path class="line {one.css}" data-series="{one.css}" d="{_steps(one.values, x, y)}"/>'
        for one in reversed(series)
    ]
    parts.append(_cdf_hovers(series, x, height))
    return _svg(height, parts, "Cumulative distribution of latency")


def stacked_bars(series: Sequence[Series], width_s: float, title: str) -> str:
    """One bar a bin, the series on top of one another from the first up."""
    height = 260
    totals = [sum(column) for column in zip(*(one.values for one in series), strict=True)]
    ticks = linear_ticks(max(totals), whole=True)
    x, y = _time_scales(len(totals), width_s, ticks[-1], height)
    parts = _time_axes(x, y, ticks, len(totals) * width_s, height)
    for place in range(len(totals)):
        floor = 0.0
        for one in series:
            if value := one.values[place]:
                parts.append(_bar(x, y, place * width_s, width_s, floor, floor + value, one.css))
                floor += value
    parts += _time_hovers(series, x, width_s, height)
    return _svg(height, parts, title)


def timeline(series: Sequence[Series], width_s: float, title: str, *, filled: bool = False) -> str:
    """A line for each series, level over each bin; perhaps filled below."""
    height = 220
    bins = len(series[0].values)
    ticks = linear_ticks(max(max(one.values) for one in series), whole=filled)
    x, y = _time_scales(bins, width_s, ticks[-1], height)
    parts = _time_axes(x, y, ticks, bins * width_s, height)
    for one in series:
        points = _held(one.values, width_s, x, y)
        if filled:
            area = f"{points}V{y(0):.1f}H{x(0):.1f}Z"
            parts.append(f'<path class="area {one.css}" data-series="{one.css}" d="{area}"/>')
        parts.append(f'<path class="line {one.css}" data-series="{one.css}" d="{points}"/>')
    parts += _time_hovers(series, x, width_s, height)
    return _svg(height, parts, title)


def horizontal_stacks(rows: Sequence[str], series: Sequence[Series], title: str) -> str:
    """One bar a row, in ms; the values of a series are those of the rows."""
    height = len(rows) * ROW + TOP + BOTTOM
    totals = [sum(column) for column in zip(*(one.values for one in series), strict=True)]
    ticks = linear_ticks(max(totals))
    x = Linear(0, ticks[-1], LABEL_WIDTH, WIDTH - RIGHT - 70)
    parts = [_x_axis(x, ticks, ms_label, height), _axis_title("mean of successes", height)]
    for place, (row, total) in enumerate(zip(rows, totals, strict=True)):
        top = TOP + place * ROW + 5
        middle = top + ROW / 2 - 1
        parts.append(
            f'<text class="label" x="{LABEL_WIDTH - 10}" y="{middle:.1f}" text-anchor="end">'
            f"{escape(_shortened(row))}</text>"
        )
        floor = 0.0
        for one in series:
            if value := one.values[place]:
                parts.append(
                    f'<rect class="fill {one.css}" data-series="{one.css}" x="{x(floor):.1f}" '
                    f'y="{top}" width="{max(0.5, x(floor + value) - x(floor)):.1f}" '
                    f'height="{ROW - 10}"/>'
                )
                floor += value
        parts.append(f'<text x="{x(total) + 8:.1f}" y="{middle:.1f}">{ms_label(total)}</text>')
        told = [f"{one.name} {ms_label(one.values[place])}" for one in series]
        parts.append(_hover(0, top - 5, WIDTH, ROW, [row, *told]))
    return _svg(height, parts, title)


@dataclass(frozen=True, slots=True)
class Point:
    """One of a scatter: its name and class as a series has them, and what its tip says."""

    name: str
    css: str
    x: float
    y: float
    lines: Sequence[str]


def scatter(
    points: Sequence[Point], x_title: str, y_label: Callable[[float], str], title: str
) -> str:
    """Points by two figures of which less is better, from 0; those that none beats in both are joined."""
    height = 340
    across = linear_ticks(max(one.x for one in points))
    up = linear_ticks(max(one.y for one in points))
    x = Linear(0, across[-1], LEFT, WIDTH - RIGHT)
    y = Linear(0, up[-1], height - BOTTOM, TOP)
    joined = " ".join(f"{x(one.x):.1f},{y(one.y):.1f}" for one in front(points))
    parts = [
        _y_axis(y, up, y_label),
        _x_axis(x, across, count_label, height),
        _axis_title(x_title, height),
        f'<polyline class="front" points="{joined}"/>',
    ]
    labelled: list[tuple[float, float]] = []
    for one in points:
        left, top = x(one.x), y(one.y)
        end = left > WIDTH - 200
        at = _clear_of(labelled, left, top - 10)
        labelled.append((left, at))
        parts.append(
            f'<g data-series="{one.css}"><circle class="fill {one.css}" cx="{left:.1f}" '
            f'cy="{top:.1f}" r="6"/><text class="label" x="{left - 10 if end else left + 10:.1f}" '
            f'y="{at:.1f}" text-anchor="{"end" if end else "start"}">'
            f"{escape(_shortened(one.name))}</text></g>"
        )
        parts.append(_hover(left - 9, top - 9, 18, 18, [one.name, *one.lines]))
    return _svg(height, parts, title)


def _clear_of(labelled: Sequence[tuple[float, float]], left: float, at: float) -> float:
    """As low as a label can be without covering one that is there."""
    for _, other in sorted(labelled, key=lambda one: -one[1]):
        near = any(abs(x - left) < LABEL_WIDTH / 1.5 and abs(y - at) < 14 for x, y in labelled)
        if near:
            at = min(at, other - 14)
    return at


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: less of one only for more of the other, ascending in x."""
    found: list[Point] = []
    for one in sorted(points, key=lambda one: (one.x, one.y)):
        if not found or one.y < found[-1].y:
            found.append(one)
    return found


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></div>'
    )


def _y_axis(y: Linear, ticks: Sequence[float], label: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
        f'y2="{y(tick):.1f}"/><text x="{LEFT - 8}" y="{y(tick):.1f}" text-anchor="end">'
        f"{label(tick)}</text>"
        for tick in ticks
    )


def _x_axis(
    x: Callable[[float], float],
    ticks: Sequence[float],
    label: Callable[[float], str],
    height: float,
) -> str:
    bottom = height - BOTTOM
    return "".join(
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="'
        f'{"end" if x(tick) > WIDTH - 30 else "middle"}">{label(tick)}</text>'
        for tick in ticks
    )


def _axis_title(text: str, height: float) -> str:
    return (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 9}" '
        f'text-anchor="middle">{text}</text>'
    )


def _time_scales(bins: int, width_s: float, top: float, height: float) -> tuple[Linear, Linear]:
    x = Linear(0, bins * width_s, LEFT, WIDTH - RIGHT)
    return x, Linear(0, top, height - BOTTOM, TOP)


def _time_axes(
    x: Linear, y: Linear, ticks: Sequence[float], end_s: float, height: float
) -> list[str]:
    times = time_ticks(end_s)
    return [
        _y_axis(y, ticks, count_label),
        _x_axis(x, times, s_label, height),
        _axis_title("time since the start", height),
    ]


def _steps(values: Sequence[float], x: Logarithmic, y: Linear) -> str:
    """The empirical distribution as a path of at most `CURVE_POINTS` places, the last included."""
    count = len(values)
    chosen = sorted({round(i * (count - 1) / CURVE_POINTS) for i in range(CURVE_POINTS + 1)})
    path = [f"M{x(values[0]):.1f},{y(0):.1f}"]
    path += [f"H{x(values[place]):.1f}V{y((place + 1) / count):.1f}" for place in chosen]
    return "".join(path) + f"H{x.end}"


def _held(values: Sequence[float], width_s: float, x: Linear, y: Linear) -> str:
    path = [f"M{x(0):.1f},{y(values[0]):.1f}"]
    path += [
        f"V{y(value):.1f}H{x((place + 1) * width_s):.1f}" for place, value in enumerate(values)
    ]
    return "".join(path)


def _bar(
    x: Linear, y: Linear, at_s: float, width_s: float, low: float, high: float, css: str
) -> str:
    left, right = x(at_s), x(at_s + width_s)
    gap = 1 if right - left > 4 else 0
    return (
        f'<rect class="fill {css}" data-series="{css}" x="{left:.1f}" y="{y(high):.1f}" '
        f'width="{right - left - gap:.1f}" height="{y(low) - y(high):.1f}"/>'
    )


def _time_hovers(series: Sequence[Series], x: Linear, width_s: float, height: float) -> list[str]:
    hovers = []
    for place, values in enumerate(zip(*(one.values for one in series), strict=True)):
        at_s = place * width_s
        told = [
            f"{one.name} {value:,.4g}" for one, value in zip(series, values, strict=True) if value
        ]
        lines = [f"from {s_label(at_s)}", *(told or ["nothing"])]
        hovers.append(
            _hover(x(at_s), TOP, x(at_s + width_s) - x(at_s), height - BOTTOM - TOP, lines)
        )
    return hovers


def _cdf_hovers(series: Sequence[Series], x: Logarithmic, height: float) -> str:
    width = (WIDTH - LEFT - RIGHT) / HOVER_COLUMNS
    hovers = []
    for place in range(HOVER_COLUMNS):
        value = x.low * (x.high / x.low) ** ((place + 0.5) / HOVER_COLUMNS)
        told = [f"{one.name} {_share_up_to(one.values, value):.1%}" for one in series]
        left = LEFT + place * width
        lines = [f"within {ms_label(value)}", *told]
        hovers.append(_hover(left, TOP, width, height - BOTTOM - TOP, lines))
    return "".join(hovers)


def _share_up_to(ordered: Sequence[float], value: float) -> float:
    return bisect_right(ordered, value) / len(ordered)


def _hover(left: float, top: float, width: float, height: float, lines: Sequence[str]) -> str:
    tip = escape("\n".join(lines))
    return (
        f'<rect class="hover" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" data-tip="{tip}"/>'
    )


def _shortened(text: str) -> str:
    half = LONGEST_LABEL // 2
    return text if len(text) <= LONGEST_LABEL else f"{text[:half]}…{text[-half:]}"
