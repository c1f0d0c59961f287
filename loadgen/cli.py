"""`loadgen`: makes, looks at, replays and simulates traces. Parses, composes, prints; decides nothing itself.

Exit codes: 0 done, 1 the operation failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from yarl import URL

from faasd.policies.preloading.registry import DEFAULT, POLICIES
from faasd.policies.routing.routers import ROUTERS
from loadgen import mapping, payloads, session, synth
from loadgen.arrivals import Law
from loadgen.errors import LoadgenError, UsageError
from loadgen.inspection import inspect_trace
from loadgen.mapping import Assignment
from loadgen.report import comparison, folder, table
from loadgen.report.comparison import Comparison
from loadgen.report.summary import Summary, as_json, summarise
from loadgen.session import Outcome, Plan
from loadgen.simulation import Node, simulate
from loadgen.simulation import Outcome as Simulated
from loadgen.simulation.api import DEFAULT_PROFILES, DEFAULT_ROUTING, split_policies, workload_of
from loadgen.simulation.model import REFERENCES
from loadgen.traces import invocations
from loadgen.traces.detect import FORMATS, read_trace

SPARE_DESCRIPTORS = 64

app = typer.Typer(
    help="Make, inspect, replay and simulate traces of invocations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TracePath = Annotated[
    Path, typer.Argument(metavar="TRACE", help="Trace file, or a folder that holds one.")
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help=f"Do not detect it: {', '.join(FORMATS)}."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
TraceDuration = Annotated[
    float | None,
    typer.Option("--duration", min=0.001, help="Only the first so many seconds of the trace."),
]
BusiestOnly = Annotated[
    int | None,
    typer.Option("--functions", min=1, help="Only so many functions, the most invoked."),
]


def main() -> None:
    """The console entry."""
    try:
        app()
    except LoadgenError as error:
        Console(stderr=True, soft_wrap=True).print(f"loadgen: {error}", markup=False)
        sys.exit(error.exit_code)


@app.command("synth")
def synth_command(
    *,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
    functions: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    duration: Annotated[float, typer.Option(min=1, help="Seconds.")] = 300,
    rate: Annotated[float, typer.Option(min=0.001, help="Mean invocations a second.")] = 10,
    shape: Annotated[synth.Shape, typer.Option()] = synth.Shape.AZURE,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a synthetic trace in the shape of a production one; the same arguments, the same file."""
    made = synth.SHAPES[shape](functions=functions, duration_s=duration, rate=rate, seed=seed)
    invocations.write(out, made)
    Console(soft_wrap=True).print(
        f"{out}: {len(made):,} invocations of {functions} functions in {duration:g} s",
        markup=False,
        highlight=False,
    )


@app.command("inspect")
def inspect_command(
    trace: TracePath,
    *,
    duration: TraceDuration = None,
    functions: BusiestOnly = None,
    format_name: FormatName = None,
    as_json: AsJson = False,
) -> None:
    """Show what a trace holds: its format, rates and functions."""
    read = read_trace(trace, format_name=format_name, cut_s=duration or math.inf)
    figures = inspect_trace(read if functions is None else read.busiest(functions))
    if as_json:
        print(json.dumps(dataclasses.asdict(figures), indent=2))
        return
    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    say(f"{figures.path}: {FORMATS[figures.format].title} ({figures.format})")
    say(
        f"{figures.invocations:,} invocations of {len(figures.functions)} functions in "
        f"{figures.span_s:,.1f} s: {figures.rate_mean_rps:,.2f}/s mean, "
        f"{figures.rate_peak_rps:,.2f}/s peak (over {figures.peak_window_s:g} s)"
    )
    for size in figures.sizes:
        say(f"{size.name}: p50 {size.p50:g}, p99 {size.p99:g}")
    console.print(table.trace_table(figures))


@app.command("replay")
def replay_command(
    trace: TracePath,
    *,
    report: Annotated[
        Path, typer.Option(help="Folder for report.json, invocations.csv and report.html.")
    ],
    url: Annotated[
        str, typer.Option(envvar="FAASD_URL", help="Base URL of the platform.")
    ] = "http://127.0.0.1:8080",
    speed: Annotated[
        float, typer.Option(min=0.001, help="How many times faster than the trace.")
    ] = 1.0,
    duration: TraceDuration = None,
    functions: BusiestOnly = None,
    map_text: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="FILE.json|NAME=ENDPOINT,...",
            help=f"Endpoints of trace functions. Rule: {mapping.RULE}.",
        ),
    ] = None,
    payloads_file: Annotated[
        Path | None,
        typer.Option(
            "--payloads",
            help="JSON of endpoint to {content_type, body|base64|file}; otherwise the "
            "function's example, otherwise {}.",
        ),
    ] = None,
    law: Annotated[
        Law, typer.Option(help="Gaps between arrivals where the trace has only counts.")
    ] = Law.EXPONENTIAL,
    seed: Annotated[int, typer.Option(help="Of the law's random numbers.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after its sending a request has failed.")
    ] = 60.0,
    format_name: FormatName = None,
    api_key: Annotated[str | None, typer.Option(envvar="FAASD_API_KEY")] = None,
    max_outstanding: Annotated[
        int, typer.Option(min=1, help="Requests in flight; past that, sends are late.")
    ] = 10_000,
    as_json_text: AsJson = False,
) -> None:
    """Replay a trace against a platform, open loop, and report what it did."""
    read = read_trace(trace, format_name=format_name, cut_s=duration or math.inf)
    chosen = read if functions is None else read.busiest(functions)
    if not chosen.functions:
        raise UsageError(f"{read.path} has no invocation in its first {duration:g} s.")
    plan = Plan(
        trace=chosen,
        url=_url(url),
        speed=speed,
        law=law,
        seed=seed,
        timeout_s=timeout,
        max_outstanding=min(max_outstanding, _most_connections(max_outstanding)),
        override=mapping.parse_override(map_text) if map_text else {},
        payloads=payloads.from_file(payloads_file) if payloads_file else {},
        api_key=api_key,
    )
    folder.prepare(report)
    outcome = _run(plan, quiet=as_json_text)
    summary = summarise(plan, outcome)
    folder.write(report, summary, outcome)
    if as_json_text:
        print(json.dumps(as_json(summary), indent=2))
    else:
        _print_result(summary, report)
    sys.exit(_exit_code(outcome))


@app.command("simulate")
def simulate_command(
    trace: TracePath,
    *,
    policy: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="Policies to compare, each perhaps with options (fixed:idle_s=600,keeps=sandbox): "
            f"{', '.join(POLICIES)}.",
        ),
    ] = DEFAULT,
    nodes: Annotated[int, typer.Option(min=1, max=1000, help="Nodes, all alike.")] = 1,
    memory: Annotated[
        float, typer.Option(min=1, metavar="MB", help="Memory of each node for functions.")
    ] = 16_384,
    cores: Annotated[float, typer.Option(min=0.1, help="Cores of each node.")] = 16,
    profiles: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="What functions take: a profile file, or a reference that comes along: "
            f"{', '.join(REFERENCES)}.",
        ),
    ] = DEFAULT_PROFILES,
    own_figures: Annotated[
        bool,
        typer.Option(
            "--own-figures", help="Run times and memory are the trace's where it tells them."
        ),
    ] = False,
    map_text: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="FILE.json|NAME=PROFILE,...",
            help="Profiles of trace functions; the rule is that of replay.",
        ),
    ] = None,
    routing: Annotated[
        str, typer.Option(help=f"Between several nodes: {', '.join(ROUTERS)}.")
    ] = DEFAULT_ROUTING,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    law: Annotated[
        Law, typer.Option(help="Gaps between arrivals where the trace has only counts.")
    ] = Law.EXPONENTIAL,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a call waits before it is dropped.")
    ] = 60.0,
    duration: TraceDuration = None,
    functions: BusiestOnly = None,
    format_name: FormatName = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, report.json and one folder a policy."),
    ] = None,
    as_json_text: AsJson = False,
) -> None:
    """Run a trace through policies of preloading in virtual time, and compare what they did."""
    choices = split_policies(policy)
    read = read_trace(trace, format_name=format_name, cut_s=duration or math.inf)
    drawn = workload_of(
        read if functions is None else read.busiest(functions),
        profiles,
        seed=seed,
        law=law,
        own_figures=own_figures,
        override=mapping.parse_override(map_text) if map_text else {},
    )
    settings = {
        "nodes": nodes,
        "memory_mb": memory,
        "cores": cores,
        "profiles": profiles,
        "own_figures": own_figures,
        "routing": routing,
        "seed": seed,
        "law": law.value,
        "timeout_s": timeout,
    }
    if report is not None:
        folder.prepare(report, rows=False)
    console = Console(highlight=False, stderr=as_json_text)
    outcomes = []
    for choice in choices:
        outcome = simulate(
            drawn,
            policy=choice,
            nodes=[Node(memory, cores)] * nodes,
            seed=seed,
            routing=routing,
            timeout_s=timeout,
        )
        outcomes.append(outcome)
        _say_simulated(outcome, console)
    compared = Comparison(read, settings, outcomes)
    if as_json_text:
        print(json.dumps(comparison.to_json(compared), indent=2))
    else:
        console.print(table.comparison_table(outcomes))
        console.print(table.kinds_table(outcomes))
    if report is not None:
        comparison.write(report, compared)
        console.print(f"report: {report / 'report.html'}", markup=False, soft_wrap=True)
    sys.exit(0 if all(one.figures.succeeded for one in outcomes) else 1)


def _say_simulated(outcome: Simulated, console: Console) -> None:
    total = outcome.figures
    line = (
        f"{outcome.policy}: {total.sent:,} calls in {outcome.took_s:.2f} s, "
        f"{outcome.calls_per_s:,.0f} a second"
    )
    if total.failed:
        line += f"; dropped: {table.failures_line(total)}"
    console.print(line, markup=False, soft_wrap=True)


def _run(plan: Plan, *, quiet: bool) -> Outcome:
    progress = Console(stderr=True)
    # With --json, stdout is for the JSON alone.
    said = progress if quiet else Console()

    def announce(assignments: Sequence[Assignment]) -> None:
        said.print(table.mapping_table(assignments))

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(session.replay_trace(plan, progress, announce))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _url(text: str) -> URL:
    url = URL(text)
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageError(f"--url {text!r} is not a URL such as http://127.0.0.1:8080.")
    return url


def _most_connections(wanted: int) -> int:
    """Raises this process's limit of open files as far as it may, and says how many requests fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, soft - SPARE_DESCRIPTORS)


def _print_result(summary: Summary, report: Path) -> None:
    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    total = summary.total
    console.print(table.result_table(summary))
    console.print(table.starts_table(summary))
    say(
        f"sent {total.sent:,}, succeeded {total.succeeded:,}, "
        f"failed {total.sent - total.succeeded:,} in {summary.duration_s:.1f} s; "
        f"{summary.offered_rps:,.1f}/s offered; "
        f"send lag p99 {table.number(total.send_lag_ms.p99)} ms, "
        f"max {table.number(total.send_lag_ms.max)} ms"
    )
    if total.failed:
        say(f"failures: {table.failures_line(total)}")
    if held_back := summary.settings["held_back"]:
        say(f"{held_back:,} sends were late because --max-outstanding was reached")
    say(f"report: {report / 'report.html'}")


def _exit_code(outcome: Outcome) -> int:
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    return 0 if outcome.record.succeeded else 1
