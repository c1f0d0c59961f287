"""Request traces of inference services, one row a request with its sizes.

Azure LLM 2023: `TIMESTAMP,ContextTokens,GeneratedTokens`; all requests go to one model, named for the file.
Alibaba GenAI 2026 (`lora_request_trace.csv`): `gmt_create`, `checkpoint_model_version_id` (the base model, which is
the function), `exec_time_seconds` and several sizes. Both start at their first request.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadgen.traces.build import InstantsBuilder
from loadgen.traces.model import Trace
from loadgen.traces.rows import Row, column, header, rows

LLM = "azure-llm"
GENAI = "alibaba-genai"
LLM_SIZES = ("ContextTokens", "GeneratedTokens")
GENAI_SIZES = ("prompt_length", "num_images_per_prompt", "num_inference_steps", "num_lora")
UNNAMED_MODEL = "unnamed"


def recognises_llm(names: Sequence[str]) -> bool:
    return {"TIMESTAMP", *LLM_SIZES} <= set(names)


def recognises_genai(names: Sequence[str]) -> bool:
    return {"gmt_create", "checkpoint_model_version_id"} <= set(names)


def read_llm(path: Path, cut_s: float) -> Trace:
    names = header(path)
    sent = column(path, names, "TIMESTAMP")
    sizes = {name: column(path, names, name) for name in LLM_SIZES}
    builder = InstantsBuilder(path, LLM, shift=True, cut_s=cut_s)
    for row in rows(path):
        builder.add(
            path.stem,
            _seconds(row, sent, "TIMESTAMP"),
            sizes={name: row.number(index, name, minimum=0) for name, index in sizes.items()},
        )
    return builder.build()


def read_genai(path: Path, cut_s: float) -> Trace:
    names = header(path)
    created = column(path, names, "gmt_create")
    model = column(path, names, "checkpoint_model_version_id")
    lasted = column(path, names, "exec_time_seconds")
    sizes = {name: names.index(name) for name in GENAI_SIZES if name in names}
    builder = InstantsBuilder(path, GENAI, shift=True, cut_s=cut_s)
    for row in rows(path):
        duration_s = row.optional_number(lasted, "exec_time_seconds")
        builder.add(
            row.fields[model].strip() or UNNAMED_MODEL,
            _seconds(row, created, "gmt_create"),
            duration_ms=float("nan") if duration_s is None else duration_s * 1000,
            sizes={name: row.optional_number(at, name) or 0.0 for name, at in sizes.items()},
        )
    return builder.build()


def _seconds(row: Row, index: int, name: str) -> float:
    text = row.fields[index].strip()
    whole, _, fraction = text.partition(".")
    try:
        # The fraction has seven digits, one more than a datetime holds.
        moment = datetime.fromisoformat(whole)
        part = float(f"0.{fraction}") if fraction else 0.0
    except ValueError:
        raise row.error(
            f"{name} is {text!r}; expected a time such as 2023-11-16 18:17:03.979."
        ) from None
    return moment.replace(tzinfo=UTC).timestamp() + part
