"""The documentation against the code: its tables are complete, its names exist, its snippets work."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from controller.auth import ROLES
from controller.http.routes import ROUTES
from faasd.cli import failures
from faasd.cli.main import COMMANDS
from faasd.errors import BY_CODE
from faasd.settings import ControllerSettings, WorkerSettings
from faasd.spec import FunctionSpec, parse_spec
from faasd.telemetry import Metrics
from loadgen.traces.detect import FORMATS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SOURCES = [
    path
    for folder in ("faasd", "controller", "worker", "functions", "loadgen", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
OTHER_VARIABLES = {"FAASD_URL", "FAASD_API_KEY", "FAASD_ADMIN_KEY", "FAASD_NODE_DIR"}


def rows(page: str, section: str) -> dict[str, list[str]]:
    """The cells of a section's tables by the first one, without the code marks of short cells."""
    text = (ROOT / page).read_text().split(f"\n{section}\n", 1)[1]
    level = section.partition(" ")[0]
    text = re.split(rf"\n#{{1,{len(level)}}} ", text)[0]
    found = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            first, *rest = (cell.strip() for cell in line.strip("| \n").split(" | "))
            found[first.strip("`")] = rest
    return found


def shown(value: Any) -> str:
    """A default as the tables write it."""
    match value:
        case None:
            return "none"
        case "" | {}:
            return "empty"
        case float() | int():
            return f"`{value:g}`"
        case list():
            return "`" + str(value).replace("'", '"') + "`"
    return f"`{value}`"


def default_of(field: Any) -> Any:
    return field.get_default(call_default_factory=True)


def spec_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of function.toml with its default as the table writes it."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            yield from spec_keys(section, f"{prefix}{name}.")
        elif field.is_required():
            yield prefix + name, "required"
        else:
            value = default_of(field)
            text = f'`"{value}"`' if isinstance(value, str) and value else shown(value)
            yield prefix + name, text


def section_of(annotation: Any) -> type[BaseModel] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def test_every_key_of_function_toml_stands_in_the_table_with_its_default() -> None:
    described = {
        key: cells[1] for key, cells in rows("docs/functions.md", "## function.toml").items()
    }

    assert described.pop("key") == "default"
    assert described == dict(spec_keys(FunctionSpec))


def settings_of(cls: type[BaseSettings]) -> dict[str, str]:
    prefix = cls.model_config["env_prefix"]
    return {
        f"{prefix}{name}".upper(): shown(default_of(field))
        for name, field in cls.model_fields.items()
    }


@pytest.mark.parametrize(
    ("section", "cls"),
    [("### Controller", ControllerSettings), ("### Worker", WorkerSettings)],
)
def test_every_setting_stands_in_the_table_with_its_default(
    section: str, cls: type[BaseSettings]
) -> None:
    described = {name: cells[0] for name, cells in rows("docs/operations.md", section).items()}

    assert described.pop("variable") == "default"
    assert described == settings_of(cls)


def test_every_error_stands_in_the_table_with_status_and_remedy() -> None:
    described = rows("docs/operations.md", "## Errors")

    for code, error in BY_CODE.items():
        status, retryable, meaning, remedy = described[code]
        assert (status, retryable) == (str(error.status), "yes" if error.retryable else "no"), code
        assert meaning, code
        assert remedy == error.default_remedy or not error.default_remedy, code


def test_every_metric_stands_in_the_table_with_type_and_labels() -> None:
    described = rows("docs/operations.md", "## Metrics")
    described.pop("metric")

    metrics = Metrics()
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            found[metric._name] = [metric._type, listed(metric._labelnames)]
    for family in metrics.registry.collect():
        if isinstance(family, CounterMetricFamily | HistogramMetricFamily):
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = [family.type, listed(family._labelnames)]
    assert {name: cells[:2] for name, cells in described.items()} == found


def listed(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def logged(path: Path) -> Iterator[tuple[str, str]]:
    """Every event that a module logs, with its level; `told` is chosen where it is logged."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=func, args=[ast.Constant(value=str(event)), *_]):
                if not re.fullmatch(r"[a-z]+\.[a-z_]+", event):
                    continue
                match func:
                    case ast.Attribute(value=ast.Name(id="log"), attr=level):
                        yield event, "error" if level == "exception" else level
                    case ast.Name(id="told"):
                        yield event, "warning or debug"


def test_every_log_event_stands_in_the_table_with_its_level() -> None:
    described = {event: cells[0] for event, cells in rows("docs/operations.md", "## Log").items()}

    assert described.pop("event") == "level"
    assert described == {event: level for path in SOURCES for event, level in logged(path)}


def test_the_exit_codes_stand_in_the_table() -> None:
    described = set(rows("docs/operations.md", "## Exit codes")) - {"code"}

    ours = {0, 2, failures.FAILED, failures.UNREACHABLE, failures.INTERRUPTED}
    assert described == {str(code) for code in ours}


def test_the_roles_stand_in_the_table() -> None:
    assert tuple(rows("docs/operations.md", "## API keys"))[1:] == ROLES


def test_every_trace_format_stands_in_the_readme() -> None:
    assert set(rows("README.md", "### Replay a trace")) - {"format"} == set(FORMATS)


def test_every_route_stands_in_the_contract() -> None:
    contract = (ROOT / "docs/api.md").read_text().replace("/invoke/NAME", "/invoke/{endpoint}")

    missing = [route.path for route in ROUTES if route.path not in contract]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_variables_that_are_named_exist(page: Path) -> None:
    text = page.read_text()

    known = {*settings_of(ControllerSettings), *settings_of(WorkerSettings), *OTHER_VARIABLES}
    assert set(re.findall(r"FAASD_[A-Z_]+[A-Z]", text)) <= known
    named = re.findall(
        r"`((?:faasd|controller|worker|functions|loadgen|tests|bench)/[\w./-]+)`", text
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_classes_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    defined = {
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", text))
    assert named - defined <= {"MemoryError"}


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_told_to_users_exist(page: Path) -> None:
    text = page.read_text()
    told = re.findall(r"`faasd ([^`]+)`", text)
    if page.suffix == ".md":
        told += re.findall(r"^ {4}faasd (.+)$", text, re.MULTILINE)

    words = {command.words for command in COMMANDS}
    unknown = [
        line
        for line in told
        if not line.startswith(("-", "..."))
        and line.split()[0] not in words
        and " ".join(line.split()[:2]) not in words
        and line != "keys"
    ]
    assert unknown == []


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z -]+):", makefile, re.MULTILINE))
    known = {word for target in targets for word in target.split()}

    for page in PAGES:
        told = re.findall(
            r"(?:`|^ {4})make (?:[A-Z]+=\S+ )*([a-z-]+)", page.read_text(), re.MULTILINE
        )
        assert set(told) <= known, page


def snippets(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(
            re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
        )
    ]


@pytest.mark.parametrize("text", snippets("python"))
def test_python_snippets_are_python(text: str) -> None:
    compile(text, "snippet", "exec")


@pytest.mark.parametrize("text", snippets("toml"))
def test_specs_that_are_shown_are_accepted(text: str) -> None:
    tomllib.loads(text)
    parse_spec(text.encode())
