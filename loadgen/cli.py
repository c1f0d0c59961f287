"""`loadgen`: makes, looks at and replays traces. Parses, composes, prints; decides nothing itself.

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

from loadgen import mapping, payloads, session, synth
from loadgen.arrivals import Law
from loadgen.errors import LoadgenError, UsageError
from loadgen.inspection import inspect_trace
from loadgen.mapping import Assignment
from loadgen.report import folder, table
from loadgen.report.summary import Summary, as_json, summarise
from loadgen.session import Outcome, Plan
from loadgen.traces import invocations
from loadgen.traces.detect import FORMATS, read_trace

SPARE_DESCRIPTORS = 64

app = typer.Typer(
    help="Make, inspect and replay traces of invocations.",
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
