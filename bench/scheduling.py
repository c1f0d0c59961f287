"""What the routing policies do to the slowest calls, in virtual time: a table and a picture.

Four workers of four warm slots each, half a millisecond away, Poisson arrivals; the policies are
those of the setting FAASD_ROUTING, as the controller runs them. `one queue` is what no policy can
beat: all slots behind one queue and no distance. Besides, what a decision costs here.

    python -m bench.scheduling [--calls 250000] [--picture docs/scheduling.svg]
"""

from __future__ import annotations

import argparse
import random
import timeit
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from bench.measure import ROOT, result, row
from faasd.policies.routing.candidate import Candidate, Locality
from faasd.policies.routing.routers import ROUTERS
from faasd.policies.virtual import Cluster, Workload, exponential, mix, simulate
from loadgen.report.scales import Linear, Logarithmic

SLOTS = [4] * 4
DELAY_S = 0.0005
LOADS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TABLED = (0.5, 0.7, 0.8, 0.9, 0.95)
WORKLOADS = {
    "runs of one kind": exponential(0.05),
    "one in ten runs is long": mix("bimodal", (0.9, 0.05), (0.1, 0.5)),
    "short, middling and long": mix("trimodal", (1 / 3, 0.05), (1 / 3, 0.5), (1 / 3, 5.0)),
}
SUBTITLES = ("exponential, mean 50 ms", "50 ms, or 500 ms", "50 ms, 500 ms or 5 s")
LIMIT = "one queue"
# `auto` is bounded-queue for runs as long as these.
POLICIES = [name for name in ROUTERS if name != "auto"]

Curves = Mapping[str, Sequence[float]]


def p99_ms(policy: str, workload: Workload, load: float, calls: int) -> float:
    """Of calls that arrive and run alike whatever the policy."""
    cluster = Cluster(SLOTS, delay_s=DELAY_S, warm=True)
    if policy == LIMIT:
        policy, cluster = "random", Cluster([sum(SLOTS)])
    router = ROUTERS[policy](random.Random(1))
    outcome = simulate(router, cluster, workload, load=load, calls=calls, seed=1)
    return outcome.percentile_s(99) * 1000


def measure(workload: Workload, calls: int) -> Iterator[tuple[str, list[float]]]:
    for policy in (*POLICIES, LIMIT):
        yield policy, [p99_ms(policy, workload, load, calls) for load in LOADS]


def decision_us(policy: str, workers: int) -> float:
    """The best of several rounds: what the machine does besides is not the policy's."""
    rng = random.Random(1)
    router = ROUTERS[policy](rng)
    candidates = [
        Candidate(f"worker-{place}", 4, rng.randrange(4), Locality.IDLE, held=1, places=4)
        for place in range(workers)
    ]
    rounds = timeit.repeat(lambda: router.choose(candidates, "ns/f@r1"), number=5000, repeat=7)
    return min(rounds) / 5000 * 1e6


WIDTH, HEIGHT = 1000, 396
LEFT, GAP, TOP, BOTTOM = 52, 26, 108, 52
MOST = 12
COLOURS = {
    "random": ("#d8413f", "#ea6a68"),
    "round-robin": ("#d0568f", "#e27bab"),
    "bounded-hash": ("#6a55c8", "#9485ee"),
    "least-outstanding": ("#d98200", "#e59a2c"),
    "power-of-two": ("#16a06a", "#2fb581"),
    "bounded-queue": ("#2a78d6", "#4f97ee"),
    LIMIT: ("#808289", "#8d9097"),
}


def picture(panels: Mapping[str, Curves]) -> str:
    """One panel a workload, one line a policy: p99 against load, as a multiple of the p99 at rest."""
    width = (WIDTH - LEFT - GAP * len(panels)) / len(panels)
    parts = [_style(), f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>', *_legend()]
    y = Logarithmic(1, MOST, HEIGHT - BOTTOM, TOP)
    for place, (title, curves) in enumerate(panels.items()):
        left = LEFT + place * (width + GAP)
        x = Linear(LOADS[0], 0.96, left, left + width)
        parts += _panel(title, SUBTITLES[place], x, y, labelled=place == 0)
        at_rest = curves[LIMIT][0]
        for name in COLOURS:
            points = " ".join(
                f"{x(load):.1f},{y(value / at_rest):.1f}"
                for load, value in zip(LOADS, curves[name], strict=True)
                if value <= MOST * at_rest
            )
            parts.append(f'<polyline class="{_css(name)}" points="{points}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="p99 by load and routing policy">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _css(name: str) -> str:
    return name.replace(" ", "-")


def _style() -> str:
    light = "".join(f".{_css(name)}{{stroke:{one}}}" for name, (one, _) in COLOURS.items())
    dark = "".join(f".{_css(name)}{{stroke:{one}}}" for name, (_, one) in COLOURS.items())
    return (
        "<style>"
        'text{font:12px system-ui,"Segoe UI","DejaVu Sans",sans-serif;fill:#5c5f66}'
        ".title{font-size:14px;font-weight:600;fill:#17181a}.key{fill:#17181a}.page{fill:#fff}"
        ".grid{stroke:#e4e4df}polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
        f".{_css(LIMIT)}{{stroke-dasharray:5 4}}.bounded-queue{{stroke-width:2.8}}{light}"
        "@media(prefers-color-scheme:dark){text{fill:#a2a7b0}.title,.key{fill:#eceef1}"
        f".page{{fill:#1b1d20}}.grid{{stroke:#2b2e33}}{dark}}}"
        "</style>"
    )


def _legend() -> Iterator[str]:
    yield f'<text class="title" x="{LEFT}" y="24">p99 latency, in multiples of that of an idle cluster</text>'
    left = float(LEFT)
    for name in COLOURS:
        told = f"{name} (auto)" if name == "bounded-queue" else name
        yield f'<polyline class="{_css(name)}" points="{left:.0f},46 {left + 22:.0f},46"/>'
        yield f'<text class="key" x="{left + 28:.0f}" y="50">{escape(told)}</text>'
        left += 46 + 6.4 * len(told)


def _panel(
    title: str, subtitle: str, x: Linear, y: Logarithmic, *, labelled: bool
) -> Iterator[str]:
    yield f'<text class="title" x="{x.start:.0f}" y="{TOP - 28}">{escape(title)}</text>'
    yield f'<text x="{x.start:.0f}" y="{TOP - 12}">{escape(subtitle)}</text>'
    for times in (1, 2, 4, 8):
        yield (
            f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" '
            f'y1="{y(times):.1f}" y2="{y(times):.1f}"/>'
        )
        if labelled:
            yield f'<text x="{LEFT - 8}" y="{y(times) + 4:.1f}" text-anchor="end">{times}&#215;</text>'
    for load in (0.4, 0.6, 0.8, 0.9):
        yield (
            f'<text x="{x(load):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{load:.0%}</text>'
        )
    yield (
        f'<text x="{(x.start + x.end) / 2:.1f}" y="{HEIGHT - 12}" '
        f'text-anchor="middle">slots in use</text>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=250_000, help="per cell")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "scheduling.svg")
    options = parser.parse_args()
    panels: dict[str, Curves] = {}
    for title, workload in WORKLOADS.items():
        row(f"p99 in ms, {workload.name}", *(f"load {load:g}" for load in TABLED))
        curves = {}
        for policy, values in measure(workload, options.calls):
            row(
                policy,
                *(
                    f"{value:,.0f}"
                    for load, value in zip(LOADS, values, strict=True)
                    if load in TABLED
                ),
            )
            curves[policy] = values
        panels[title] = curves
        print()
    row("one decision, us", *(f"{workers} workers" for workers in (2, 4, 8)))
    for policy in ROUTERS:
        row(policy, *(f"{decision_us(policy, workers):.2f}" for workers in (2, 4, 8)))
    options.picture.write_text(picture(panels), encoding="utf-8")
    at = LOADS.index(0.9)
    result(
        bench="scheduling",
        calls=options.calls,
        **{
            f"{workload.name}_p99_ms": {name: round(curve[at]) for name, curve in curves.items()}
            for workload, curves in zip(WORKLOADS.values(), panels.values(), strict=True)
        },
    )


if __name__ == "__main__":
    main()
