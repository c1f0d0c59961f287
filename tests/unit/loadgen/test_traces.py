"""Each reader on a small file in its format, and what is said about files that are not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.errors import TraceError, UsageError
from loadgen.traces.detect import read_trace
from loadgen.traces.model import Counts, Instants, Trace, TraceFunction

Write = Callable[[str, str], Path]

MINUTES = (
    "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f,http,2,0,1\no,a,g,timer,1,1,1\n"
    "o,b,idle,queue,0,0,0\n"
)


def by_name(trace: Trace) -> dict[str, TraceFunction]:
    return {function.name: function for function in trace.functions}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:bz2") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_reads_counts_per_minute_without_functions_that_are_never_invoked(write: Write) -> None:
    trace = read_trace(write("invocations.csv", MINUTES))

    assert trace.format == "azure2019"
    assert trace.span_s == 180
    assert isinstance(trace.events, Counts)
    assert [(f.name, f.invocations) for f in trace.functions] == [("f", 3), ("g", 3)]
    assert [list(cells.bins) for cells in trace.events.cells] == [[0, 2], [0, 1, 2]]


def test_joins_the_durations_and_memory_that_lie_beside_the_counts(write: Write) -> None:
    path = write("invocations.csv", MINUTES)
    write("durations.csv", "HashOwner,HashApp,HashFunction,percentile_Average_50\no,a,f,120.5\n")
    write("memory.csv", "HashOwner,HashApp,SampleCount,AverageAllocatedMb_pct50\no,a,7,96\n")

    functions = by_name(read_trace(path.parent))

    assert functions["f"] == TraceFunction("f", 3, duration_ms=120.5, memory_mb=96)
    assert functions["g"] == TraceFunction("g", 3, duration_ms=None, memory_mb=96)


def test_joins_only_tables_of_the_same_day(write: Write) -> None:
    path = write("invocations_per_function_md.anon.d01.csv", MINUTES)
    head = "HashOwner,HashApp,HashFunction,percentile_Average_50\n"
    write("function_durations_percentiles.anon.d01.csv", f"{head}o,a,f,10\n")
    write("function_durations_percentiles.anon.d02.csv", f"{head}o,a,f,20\n")

    assert by_name(read_trace(path))["f"].duration_ms == 10


def test_reads_counts_without_owner_and_application(write: Write) -> None:
    trace = read_trace(write("t.csv", "HashFunction,Trigger,1\ndh,timer,1\nul,timer,0\n"))

    assert [(f.name, f.invocations) for f in trace.functions] == [("dh", 1)]


def test_tells_functions_of_one_name_apart_by_their_application(write: Write) -> None:
    text = "HashOwner,HashApp,HashFunction,Trigger,1\no,a,f,http,1\no,b,f,http,2\no,b,f,http,3\n"

    trace = read_trace(write("t.csv", text))

    assert [(f.name, f.invocations) for f in trace.functions] == [("o/a/f", 1), ("o/b/f", 5)]


def test_reads_only_the_minutes_before_the_cut(write: Write) -> None:
    trace = read_trace(write("t.csv", MINUTES), cut_s=90)

    assert trace.span_s == 90
    assert [(f.name, f.invocations) for f in trace.functions] == [("f", 2), ("g", 2)]


def test_reads_ends_and_durations_as_starts_in_order(write: Write) -> None:
    text = "app,func,end_timestamp,duration\nA,f,110.0,1.0\nA,f,112.0,10.0\nB,f,115.0,2.0\n"

    trace = read_trace(write("t.csv", text))

    assert trace.format == "azure2021"
    assert isinstance(trace.events, Instants)
    assert list(trace.events.times_s) == pytest.approx([0, 7, 11])
    assert by_name(trace)["A/f"] == TraceFunction("A/f", 2, duration_ms=5500)
    assert by_name(trace)["B/f"].duration_ms == 2000


def test_reads_invocations_in_ms_with_their_metadata(write: Write) -> None:
    path = write("trace.csv", "func_name,invoke_time_ms\nb,1500\na,250\nb,4000\n")
    write("metadata-trace.csv", "func_name,cold_dur_ms,warm_dur_ms,mem_mb,mean_iat\nb,90,8,64,1\n")

    trace = read_trace(path)

    assert isinstance(trace.events, Instants)
    assert list(trace.events.times_s) == [0.25, 1.5, 4.0]
    assert by_name(trace)["b"] == TraceFunction("b", 2, duration_ms=8, memory_mb=64)
    assert by_name(trace)["a"] == TraceFunction("a", 1)


def test_leaves_out_functions_whose_invocations_are_all_cut(write: Write) -> None:
    path = write("trace.csv", "func_name,invoke_time_ms\na,0\nb,5000\na,900\n")

    trace = read_trace(path, cut_s=1)

    assert trace.functions == (TraceFunction("a", 2),)
    assert trace.span_s == 0.9


def test_reads_counts_per_second_from_a_text_file(write: Write) -> None:
    trace = read_trace(write("nasa.txt", "3 0\t2\n4  1\n"))

    assert trace.format == "counts"
    assert trace.span_s == 5
    assert trace.functions == (TraceFunction("nasa", 10),)
    assert isinstance(trace.events, Counts)
    assert list(trace.events.cells[0].bins) == [0, 2, 3, 4]


def test_reads_counts_from_an_archive_only_as_far_as_the_cut(tmp_path: Path) -> None:
    numbers = b"5 " * 200_000 + b"broken"
    path = archive(tmp_path / "w.tbz2", {"._workload.txt": b"\0", "workload.txt": numbers})

    trace = read_trace(path, cut_s=10)

    assert trace.functions == (TraceFunction("w", 50),)
    assert trace.span_s == 10


def test_reads_llm_requests_with_their_sizes(write: Write) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:05.4799600,31,8\n"
    )

    trace = read_trace(write("code.csv", text))

    assert trace.format == "azure-llm"
    assert trace.functions == (TraceFunction("code", 2),)
    assert trace.span_s == pytest.approx(1.5, abs=1e-6)
    assert list(trace.sizes["ContextTokens"]) == [4808, 31]


def test_reads_genai_requests_by_base_model(write: Write) -> None:
    text = (
        "gmt_create,exec_time_seconds,prompt_length,checkpoint_model_version_id\n"
        "2024-11-15 16:57:50,32.0,63.0,M0\n2024-11-15 16:57:40,,,M1\n2024-11-15 16:58:00,40,1,\n"
    )

    trace = read_trace(write("lora_request_trace.csv", text))

    assert trace.format == "alibaba-genai"
    assert by_name(trace)["M0"] == TraceFunction("M0", 1, duration_ms=32_000)
    assert by_name(trace)["M1"].duration_ms is None
    assert by_name(trace)["unnamed"].invocations == 1
    assert list(trace.sizes["prompt_length"]) == [0, 63, 1]


def test_the_busiest_functions_keep_their_invocations(write: Write) -> None:
    text = "func_name,invoke_time_ms\nc,1\na,2\nb,3\na,4\nb,5\nc,6\na,7\n"

    trace = read_trace(write("t.csv", text)).busiest(2)

    assert trace.functions == (TraceFunction("a", 3), TraceFunction("b", 2))
    assert isinstance(trace.events, Instants)
    assert list(trace.events.functions) == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "t.csv",
            "func_name,invoke_time_ms\na,1\nb,x\n",
            "line 3: invoke_time_ms is 'x'; expected",
        ),
        ("t.csv", "func_name,invoke_time_ms\na,-1\n", "expected a number of at least 0"),
        ("t.csv", "func_name,invoke_time_ms\na,nan\n", "line 2: invoke_time_ms is 'nan'"),
        ("t.csv", "func_name,invoke_time_ms\na\n", "line 2: has 1 fields; expected 2"),
        ("t.csv", "func_name,invoke_time_ms\n,5\n", "line 2: func_name is empty"),
        ("t.csv", "func_name,invoke_time_ms\n", "holds no invocations"),
        ("t.csv", "HashFunction,1,2\nf,1,-4\n", "line 2: minute 2 is '-4'; expected a whole"),
        ("t.csv", "HashFunction,1,3\nf,1,4\n", "line 1: the header's minutes"),
        ("t.csv", "HashFunction,1\nf,0\n", "holds no invocations"),
        ("t.csv", "app,func,end_timestamp,duration\na,f,1,-2\n", "line 2: duration is '-2'"),
        ("t.txt", "1 2\n3 four 5\n", "line 2: number 2 is 'four'; expected a whole number"),
        ("t.txt", "0 0 0\n", "holds no requests"),
        (
            "t.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
            "line 2: TIMESTAMP is 'yesterday'; expected a time",
        ),
        ("t.csv", "one,two\n1,2\n", "is in no known format; expected a header"),
    ],
)
def test_malformed_traces_are_refused_with_file_line_and_what_was_expected(
    write: Write, name: str, text: str, said: str
) -> None:
    path = write(name, text)

    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_format_can_be_forced(write: Write) -> None:
    path = write("t.csv", "func_name,invoke_time_ms,app,func,end_timestamp,duration\nx,1,a,f,3,1\n")

    assert read_trace(path, format_name="invocations").functions[0].name == "x"
    assert read_trace(path, format_name="azure2021").functions[0].name == "a/f"


def test_an_unknown_format_and_a_missing_file_are_usage_errors(
    write: Write, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="azure2021"):
        read_trace(write("t.csv", MINUTES), format_name="parquet")
    with pytest.raises(UsageError, match="no file"):
        read_trace(tmp_path / "missing.csv")


def test_a_folder_must_hold_exactly_one_trace(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found none"):
        read_trace(tmp_path)

    write("a.csv", MINUTES)
    write("b.csv", MINUTES)

    with pytest.raises(UsageError, match=r"found a\.csv, b\.csv"):
        read_trace(tmp_path)


def test_a_broken_archive_and_binary_content_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "w.tbz2"
    broken.write_bytes(b"not an archive")
    binary = tmp_path / "w.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")

    with pytest.raises(TraceError, match="broken archive"):
        read_trace(broken)
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(binary, format_name="invocations")
