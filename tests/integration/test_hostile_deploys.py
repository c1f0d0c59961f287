"""Deploys of broken, hostile and hopeless functions on the real platform.

Each is tried over a function that serves: it is refused with its cause and a remedy, and the
former revision goes on serving.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import tarfile
import textwrap
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.platform import Answer, Platform, eventually, multipart, pack, refused

STEADY = "def handle(event, context):\n    return 'steady'\n"
OURS = ("functions/runtime", "_faasd_runtime", "importlib")
SECRET = "not-for-the-eyes-of-functions"

_numbers = itertools.count(1)


@dataclass
class Index:
    """A package index on this machine with one package, `tinyfish`; counts what is asked of it."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    found = Index()
    wheel = "tinyfish-1.0-py3-none-any.whl"
    pages = {"/simple/tinyfish/": f'<a href="/{wheel}">{wheel}</a>'.encode(), f"/{wheel}": _wheel()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked[self.path] += 1
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html" if page else "text/plain")
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_arguments: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}/simple/"
        yield found
        server.shutdown()
        thread.join()


def _wheel() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("tinyfish.py", "def swim():\n    return 'splash'\n")
        info = "tinyfish-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyfish\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return packed.getvalue()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, index: Index) -> Iterator[Platform]:
    settings = {
        "FAASD_CODE_MAX_MB": "16",
        "FAASD_WORKER_MEMORY_BUDGET_MB": "4000",
        "FAASD_CLUSTER_SECRET": SECRET,
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": index.url,
        "PIP_NO_CACHE_DIR": "1",
    }
    with Platform(tmp_path_factory.mktemp("hostile-deploys"), env=settings) as platform:
        platform.must_deploy("steady", STEADY)
        yield platform


@pytest.fixture(autouse=True)
def _the_former_revision_serves(platform: Platform) -> Iterator[None]:
    seen = len(platform.log)
    before = platform.get("/v1/functions/steady").json()["revision"]
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    answer = platform.post("/invoke/steady")
    assert (answer.body, answer.headers["faasd-revision"]) == (b"steady", before)
    assert [entry for entry in platform.log[seen:] if entry.get("level") == "error"] == []


def try_deploy(
    platform: Platform, code: str | dict[str, str | bytes] | bytes, **spec: Any
) -> Answer:
    """The answer to this as a revision of the function that serves."""
    return platform.deploy(
        "steady", textwrap.dedent(code) if isinstance(code, str) else code, **spec
    )


def put(platform: Platform, **parts: tuple[str, bytes]) -> Answer:
    """The answer to a form of these parts; a good spec and good code where none are given."""
    good = {
        "spec": ("application/json", b'{"name": "steady"}'),
        "code": ("application/gzip", pack({"handler.py": STEADY})),
    }
    form, kind = multipart(**{**good, **parts})
    return platform.request("PUT", "/v1/functions/steady", form, {"Content-Type": kind})


def put_spec(platform: Platform, text: str | bytes, kind: str = "application/json") -> Answer:
    return put(platform, spec=(kind, text if isinstance(text, bytes) else text.encode()))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"memory": 5}, ["Unknown key memory", "resources"]),
        ({"limits": {"timeout": 5}}, ["Unknown key limits.timeout", "timeout_s"]),
        ({"resources": "much"}, ["resources = 'much'"]),
        ({"resources": {"memory_mb": "much"}}, ["resources.memory_mb = 'much'"]),
        ({"resources": {"memory_mb": 10**30}}, ["resources.memory_mb"]),
        ({"resources": {"memory_mb": -1}}, ["resources.memory_mb = -1", "16"]),
        ({"resources": {"cpus": float("nan")}}, ["resources.cpus"]),
        ({"resources": {"cpus": float("inf")}}, ["resources.cpus"]),
        ({"limits": {"timeout_s": 1e308}}, ["limits.timeout_s", "86400"]),
        ({"limits": {"max_instances": 0}}, ["limits.max_instances = 0"]),
        ({"limits": {"concurrency": 2.5}}, ["limits.concurrency = 2.5"]),
        ({"handler": "os.system"}, ["handler = 'os.system'"]),
        ({"handler": "../handler:handle"}, ["handler = '../handler:handle'"]),
        ({"requirements": "../secret"}, ["requirements", "inside"]),
        ({"requirements": "/etc/passwd"}, ["requirements", "inside"]),
        ({"env": {"FAASD_NODE_DIR": "x"}}, ["FAASD_NODE_DIR", "belong to the platform"]),
        ({"env": {"LD PRELOAD": "x"}}, ["LD PRELOAD"]),
        ({"env": {"A": "b\0c"}}, ["NUL"]),
        ({"env": {"A": "\ud800"}}, ["env.A"]),
        ({"batching": {"max_size": 2}, "limits": {"concurrency": 2}}, ["batching.max_size"]),
        ({"name": ["steady"]}, ["name = ['steady']"]),
        ({"name": "Steady!"}, ["name = 'Steady!'"]),
        ({"contract": "cobol"}, ["contract = 'cobol'", "'faasd'"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_spec_with_a_bad_key_is_refused_by_that_key(
    platform: Platform, spec: dict[str, Any], words: list[str]
) -> None:
    answer = put_spec(platform, json.dumps({"name": "steady", **spec}))

    problem = refused(answer, 422, "invalid_spec", *words)
    assert "function.toml" in problem["remedy"]
    assert len(problem["detail"]) < 2000


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", "application/json", "not JSON"),
        ("", "application/json", "not JSON"),
        ("[]", "application/json", "table of keys"),
        ("null", "application/json", "table of keys"),
        ("name = ", "application/toml", "not TOML"),
        ("", "application/toml", "name is missing"),
        ('name = "steady"\nname = "steady"', "application/toml", "not TOML"),
        (b"\xff\xfe", "application/toml", "not TOML"),
        ('{"name": ' + "[" * 900 + "]" * 900 + "}", "application/json", "name"),
        ("[" * 100_000, "application/json", "not JSON"),
        ('{"name": ' + "9" * 5000 + "}", "application/json", "not JSON"),
        ("name = " + "[" * 100_000, "application/toml", "not TOML"),
        ("name" + ".a" * 1500 + " = 1", "application/toml", "nest"),
        ("name" + ".a" * 20 + " = 1", "application/toml", "name = {'a': {'a'"),
        ("name" + ".a" * 100_000 + " = 1", "application/toml", "nest"),
        ('name."a"' + '."a"' * 60_000 + " = 1", "application/toml", "nest"),
        ("[name" + ".a" * 100_000 + "]", "application/toml", "nest"),
        ("name = {a" + ".a" * 100_000 + " = 1}", "application/toml", "nest"),
    ],
    ids=[
        "unfinished JSON",
        "no JSON",
        "a list",
        "null",
        "unfinished TOML",
        "empty",
        "a key twice",
        "no text",
        "nested lists",
        "endless lists",
        "an endless number",
        "endless TOML lists",
        "nested tables",
        "some nested tables",
        "endless dotted key",
        "endless quoted key",
        "endless header",
        "endless inline key",
    ],
)
def test_a_spec_that_cannot_be_read_is_refused(
    platform: Platform, text: str | bytes, kind: str, words: str
) -> None:
    refused(put_spec(platform, text, kind), 422, "invalid_spec", words)


@pytest.mark.parametrize("kind", ["application/json", "application/toml"])
def test_a_spec_of_ten_megabytes_is_refused_unread(platform: Platform, kind: str) -> None:
    problem = refused(put_spec(platform, b" " * (10 << 20), kind), 413, "body_too_large", "spec")

    assert "artifacts" in problem["remedy"]


def test_a_spec_of_another_name_than_the_address_is_refused(platform: Platform) -> None:
    answer = put_spec(platform, '{"name": "other"}')

    problem = refused(answer, 400, "bad_request", "'other'", "'steady'")
    assert "same name" in problem["remedy"]


def test_a_name_in_the_address_that_cannot_be_one_is_refused(platform: Platform) -> None:
    form, kind = multipart(spec=("application/json", b"{}"))

    answer = platform.request("PUT", "/v1/functions/..%2Fsteady", form, {"Content-Type": kind})

    refused(answer, 400, "bad_request", "is not a name")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=x"),
        (b"no boundary", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nno colon\r\n\r\nspec\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (
            b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n1\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="spec"\r\nContent-Length: many\r\n\r\n{}\r\n--x--',
            "multipart/form-data; boundary=x",
        ),
        (
            b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n\r\n--y--\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
        (b"--x--\r\n", "multipart/form-data; boundary=" + "x" * 1000),
    ],
    ids=[
        "no form",
        "no boundary named",
        "empty",
        "no boundary",
        "cut short",
        "header without colon",
        "endless header",
        "part cut short",
        "length in words",
        "form in a form",
        "endless boundary",
    ],
)
def test_a_malformed_form_is_refused(platform: Platform, body: bytes, kind: str) -> None:
    answer = platform.request("PUT", "/v1/functions/steady", body, {"Content-Type": kind})

    assert answer.status in (400, 422)
    refused(answer, answer.status, answer.json()["code"])


def test_a_form_without_code_or_with_an_unknown_part_is_refused(platform: Platform) -> None:
    form, kind = multipart(spec=("application/json", b'{"name": "steady"}'))

    answer = platform.request("PUT", "/v1/functions/steady", form, {"Content-Type": kind})

    refused(answer, 400, "bad_request", "spec and code")
    refused(put(platform, extra=("text/plain", b"")), 400, "bad_request", "'extra'", "artifacts")


@pytest.mark.parametrize(
    "digests",
    [b"{", b"[]", b'{"a": 5}', b'{"a": "abc"}', b'{"a": "../../etc/passwd"}', b"[" * 100_000],
    ids=["unfinished", "a list", "a number", "too short", "a path", "deep"],
)
def test_digests_that_are_none_are_refused(platform: Platform, digests: bytes) -> None:
    refused(put(platform, artifacts=("application/json", digests)), 400, "bad_request")


def test_an_artifact_that_was_not_uploaded_is_named(platform: Platform) -> None:
    digest = hashlib.sha256(b"never sent").hexdigest()
    answer = put(
        platform,
        spec=("application/json", b'{"name": "steady", "artifacts": {"weights": "w.bin"}}'),
        artifacts=("application/json", json.dumps({"weights": digest}).encode()),
    )

    problem = refused(answer, 409, "conflict", "'weights'", digest[:12], "not been uploaded")
    assert f"/v1/artifacts/{digest}" in problem["remedy"]


def test_artifacts_of_the_spec_and_of_the_form_must_be_the_same(platform: Platform) -> None:
    answer = put_spec(platform, '{"name": "steady", "artifacts": {"weights": "w.bin"}}')

    refused(answer, 422, "invalid_spec", "['weights']", "[]")


def test_an_upload_under_another_digest_is_refused_and_not_kept(platform: Platform) -> None:
    claimed = hashlib.sha256(b"claimed").hexdigest()

    answer = platform.request("PUT", f"/v1/artifacts/{claimed}", b"something else")

    actual = hashlib.sha256(b"something else").hexdigest()
    refused(answer, 422, "digest_mismatch", claimed, actual)
    assert platform.request("HEAD", f"/v1/artifacts/{claimed}").status == 404
    assert platform.request("HEAD", f"/v1/artifacts/{actual}").status == 404


@pytest.mark.parametrize("digest", ["abc", "A" * 64, "..%2f" * 16, "0" * 65, "%00" * 64])
def test_a_digest_that_is_none_is_refused(platform: Platform, digest: str) -> None:
    answer = platform.request("PUT", f"/v1/artifacts/{digest}", b"x")

    problem = refused(answer, 400, "bad_request", "not a SHA-256")
    assert "64" in problem["remedy"]


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A code archive of a good handler and these."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as out:
        for info, content in (member("handler.py", STEADY.encode()), *members):
            out.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("../evil.py")], "'../evil.py' points outside"),
        ([member("a/../../evil.py")], "points outside"),
        ([member("/etc/cron.d/evil")], "points outside"),
        ([member("a\\..\\evil.py")], "points outside"),
        ([member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "'link' is a link"),
        ([member("link", type=tarfile.SYMTYPE, linkname="handler.py")], "'link' is a link"),
        ([member("link", type=tarfile.LNKTYPE, linkname="handler.py")], "'link' is a link"),
        ([member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "'null' is a device"),
        ([member("disk", type=tarfile.BLKTYPE, devmajor=8)], "'disk' is a device"),
        ([member("pipe", type=tarfile.FIFOTYPE)], "'pipe' is a device or pipe"),
        ([member("handler.py", b"evil")], "'handler.py' twice"),
        ([member("./handler.py", b"evil")], "twice"),
        ([member("a"), member("a", type=tarfile.DIRTYPE)], "'a' twice"),
        ([member("a"), member("a/b")], "'a/b'"),
        ([member("a/b"), member("a")], "'a'"),
        ([member("n" * 300)], "long"),
        ([member("/".join(["deep"] * 2000))], "long"),
        ([member(".", b"x")], "'.'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1][0].name[:30],
)
def test_an_archive_with_a_hostile_member_is_refused_by_its_name(
    platform: Platform, members: list[tuple[tarfile.TarInfo, bytes]], words: str
) -> None:
    answer = try_deploy(platform, archive(*members))

    problem = refused(answer, 422, "invalid_archive", words)
    assert "faasd deploy DIR" in problem["remedy"]
    assert not list(platform.folder.rglob("evil*"))


def test_a_bomb_of_four_gigabytes_is_refused_without_inflating_it(platform: Platform) -> None:
    info, _ = member("zeros", size=4 << 30)
    zeros = gzip.compress(bytes(64 << 20))
    bomb = gzip.compress(info.tobuf()) + zeros * 64

    answer = try_deploy(platform, bomb)

    problem = refused(answer, 422, "invalid_archive", "unpacks to more than 16 MB")
    assert "code_max_mb" in problem["remedy"]


def test_a_file_that_is_mostly_holes_is_a_bomb_too(platform: Platform) -> None:
    holes = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "zeros"}
    holes |= {"GNU.sparse.size": str(64 << 20), "GNU.sparse.map": "0,0"}

    answer = try_deploy(platform, archive(member("zeros", pax_headers=holes)))

    refused(answer, 422, "invalid_archive", "sparse")


def test_an_upload_past_the_limit_is_refused_while_it_comes(platform: Platform) -> None:
    answer = put(platform, code=("application/gzip", bytes(17 << 20)))

    problem = refused(answer, 413, "body_too_large", "16 MB")
    assert "code_max_mb" in problem["remedy"]


def test_an_archive_of_too_many_files_is_refused(platform: Platform) -> None:
    crowd = [member(f"f{number}") for number in range(20_001)]

    refused(try_deploy(platform, archive(*crowd)), 422, "invalid_archive", "more than 20000 files")


def _zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("handler.py", STEADY)
    return packed.getvalue()


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"not an archive at all",
        _zipped(),
        gzip.compress(b"not a tar " * 1000),
        gzip.decompress(archive()),
        archive()[:-20],
        archive()[:30],
        archive()[:60] + bytes(10) + archive()[70:],
        gzip.compress(gzip.decompress(archive(member("x", bytes(2000))))[:1800]),
    ],
    ids=[
        "empty",
        "text",
        "zip",
        "gzip of text",
        "tar without gzip",
        "cut at the end",
        "cut at the front",
        "overwritten in the middle",
        "tar cut short",
    ],
)
def test_what_is_not_a_whole_tar_gz_is_refused(platform: Platform, code: bytes) -> None:
    refused(try_deploy(platform, code), 422, "invalid_archive", "not a tar.gz archive")


def test_a_handler_whose_module_is_missing_is_told_what_there_is(platform: Platform) -> None:
    files: dict[str, str | bytes] = {"main.py": STEADY, "notes.txt": "x"}

    answer = try_deploy(platform, files, handler="app.web:handle")

    refused(answer, 422, "invalid_spec", "handler = 'app.web:handle'", "app/web.py", "main.py")


def test_a_load_hook_whose_module_is_missing_is_told_by_its_key(platform: Platform) -> None:
    answer = try_deploy(platform, STEADY, load="models:load")

    refused(answer, 422, "invalid_spec", "load = 'models:load'", "models.py", "handler.py")


def test_a_requirements_file_that_is_missing_is_named(platform: Platform) -> None:
    answer = try_deploy(platform, STEADY, requirements="needs.txt")

    refused(answer, 422, "invalid_spec", "requirements = 'needs.txt'")


@pytest.mark.parametrize("key", ["handler", "load"])
def test_an_attribute_that_is_missing_is_told_what_there_is(platform: Platform, key: str) -> None:
    answer = try_deploy(platform, STEADY, **{key: "handler:hnadle"})

    refused(answer, 422, "deploy_failed", "handler:hnadle", "'hnadle'", "it has handle")


@pytest.mark.parametrize(
    ("code", "words", "trace"),
    [
        ("import no_such_library", "No module named 'no_such_library'", "import no_such_library"),
        ("def handle(:", "SyntaxError", "def handle(:"),
        ("1 / 0", "ZeroDivisionError", "1 / 0"),
        ("x = '\\ud800'\nraise ValueError(x)", "ValueError: ?", "raise ValueError(x)"),
        ("raise ValueError('\\U0001f41f' * 100_000)", "ValueError", "ValueError"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye", "sys.exit('bye')"),
        ("def load(context):\n    {}['pike']\n" + STEADY, "load() raised KeyError", "{}['pike']"),
        ("def load(context):\n    exit(3)\n" + STEADY, "SystemExit", "exit"),
        ("def attach(state, context):\n    1 / 0\n" + STEADY, "attach() raised", "1 / 0"),
    ],
    ids=[
        "import",
        "syntax",
        "raises",
        "half a character",
        "endless words",
        "sys.exit",
        "load raises",
        "load exits",
        "attach raises",
    ],
)
def test_code_that_does_not_start_is_refused_with_the_users_frames_only(
    platform: Platform, code: str, words: str, trace: str
) -> None:
    problem = refused(try_deploy(platform, code), 422, "deploy_failed", words)

    assert "former revision still serves" in problem["remedy"]
    assert trace in problem["traceback"]
    assert [own for own in OURS if own in problem["traceback"]] == []
    assert len(problem["traceback"]) < 64_000


@pytest.mark.parametrize(
    "last_words",
    [
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.closerange(0, 4096)",
        "[os.write(fd, b'garbage') for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}')]",
    ],
)
@pytest.mark.parametrize("where", ["import", "load"])
def test_a_process_that_ends_while_it_starts_is_refused(
    platform: Platform, last_words: str, where: str
) -> None:
    hook = "def load(context):\n    " if where == "load" else ""
    code = f"import os, signal\n{hook}{last_words}\n{STEADY}"

    problem = refused(try_deploy(platform, code), 422, "deploy_failed", "process ended")

    assert "See its output" in problem["remedy"]


def test_a_load_that_never_returns_is_ended_at_its_limit(platform: Platform) -> None:
    code = f"import time\ndef load(context):\n    while True: time.sleep(0.05)\n{STEADY}"

    answer = try_deploy(platform, code, limits={"load_timeout_s": 0.5})

    problem = refused(answer, 422, "deploy_failed", "load()", "within 0.5 s")
    assert "load_timeout_s" in problem["remedy"]


def test_a_load_that_needs_more_than_its_memory_is_told_the_limit(platform: Platform) -> None:
    code = f"def load(context):\n    return bytearray(256 << 20)\n{STEADY}"

    answer = try_deploy(platform, code, resources={"memory_mb": 32})

    problem = refused(answer, 422, "deploy_failed", "load()", "[resources] memory_mb = 32")
    assert "memory_mb" in problem["remedy"]


def test_a_refused_revision_leaves_no_process_behind(platform: Platform) -> None:
    before = set(platform.pids())
    code = f"import os, time\nif os.fork() == 0:\n    time.sleep(1000)\n1 / 0\n{STEADY}"

    refused(try_deploy(platform, code), 422, "deploy_failed", "ZeroDivisionError")

    assert eventually(lambda: set(platform.pids()) <= before)


def test_a_revision_that_failed_can_be_tried_again_at_once(platform: Platform) -> None:
    for _ in range(3):
        refused(try_deploy(platform, "1 / 0"), 422, "deploy_failed", "ZeroDivisionError")


def test_an_unknown_runtime_is_told_which_there_are(platform: Platform) -> None:
    answer = try_deploy(platform, STEADY, runtime="cobol")

    problem = refused(answer, 422, "deploy_failed", "'cobol'", "python", "python-torch")
    assert "runtime" in problem["remedy"]


def test_a_gpu_that_is_not_there_is_refused(platform: Platform) -> None:
    if platform.get("/v1/workers").json()["workers"][0]["gpus"]:
        pytest.skip("this machine has a GPU")

    problem = refused(
        try_deploy(platform, STEADY, resources={"gpus": 1}), 422, "deploy_failed", "1 GPU", "none"
    )

    assert "gpus = 0" in problem["remedy"]


def test_memory_that_the_node_does_not_have_is_refused(platform: Platform) -> None:
    answer = try_deploy(platform, STEADY, resources={"memory_mb": 4001})

    problem = refused(answer, 422, "deploy_failed", "memory_mb = 4001", "4000 MB")
    assert "FAASD_WORKER_MEMORY_BUDGET_MB" in problem["remedy"]


def try_requirements(platform: Platform, text: str) -> Answer:
    files: dict[str, str | bytes] = {"handler.py": STEADY, "requirements.txt": text}
    return try_deploy(platform, files, requirements="requirements.txt")


@pytest.mark.parametrize("wanted", ["no-such-fish-anywhere", "tinyfish==99"])
def test_requirements_that_do_not_resolve_come_with_the_build_log(
    platform: Platform, wanted: str
) -> None:
    problem = refused(try_requirements(platform, wanted), 422, "deploy_failed", wanted)

    assert "ERROR: " in problem["traceback"]
    assert wanted in problem["traceback"]
    assert "requirements.txt" in problem["remedy"]


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--editable .",
        "-r more.txt",
        "--index-url http://example.invalid/simple",
        "./evil",
        "../evil",
        "/tmp/evil",
        "evil/../evil",
        "evil.whl/",
        "file:///tmp/evil",
        "https://example.invalid/evil-1.0.tar.gz",
        "evil @ https://example.invalid/evil-1.0.tar.gz",
        "evil @ file:/tmp/evil",
        "evil@/tmp/evil",
        "git+ssh://example.invalid/evil",
        "tinyfish \\\n --index-url=x",
        "${HOME}",
        "tiny${FAASD_CLUSTER_SECRET}",
    ],
)
def test_requirements_that_reach_outside_are_refused_by_their_line(
    platform: Platform, line: str
) -> None:
    answer = try_requirements(platform, f"# packages\ntinyfish\n{line}\n")

    problem = refused(answer, 422, "deploy_failed", "is not accepted")
    assert "by name and version" in problem["remedy"]
    assert SECRET not in answer.body.decode()


def test_requirements_that_are_no_text_are_refused(platform: Platform) -> None:
    files: dict[str, str | bytes] = {"handler.py": STEADY, "requirements.txt": b"\xff\xfe\x00"}

    answer = try_deploy(platform, files, requirements="requirements.txt")

    refused(answer, 422, "deploy_failed", "'requirements.txt' could not be read")


def test_functions_with_equal_requirements_deployed_at_once_share_one_layer(
    platform: Platform, index: Index
) -> None:
    def deploy(number: int) -> Answer:
        code = (
            f"import tinyfish\ndef handle(event, context):\n    return tinyfish.swim() * {number}\n"
        )
        files: dict[str, str | bytes] = {"handler.py": code, "requirements.txt": "tinyfish==1.0\n"}
        return platform.deploy(f"fish-{number}", files, requirements="requirements.txt")

    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(deploy, (1, 2, 3)))

    assert [answer.status for answer in answers] == [201, 201, 201]
    assert [platform.post(f"/invoke/fish-{n}").body for n in (1, 2)] == [b"splash", b"splash" * 2]
    built = [entry for entry in platform.log if entry.get("event") == "layer.built"]
    assert len(built) == 1
    # Once to see what it needs, once to install it.
    assert index.asked["/tinyfish-1.0-py3-none-any.whl"] <= 2


def test_a_package_that_lies_in_the_runtime_in_another_version_is_refused(
    platform: Platform,
) -> None:
    answer = try_requirements(platform, "msgpack==0.0.1")

    refused(answer, 422, "deploy_failed", "msgpack")


def test_deploys_of_one_function_at_once_end_in_one_consistent_state(platform: Platform) -> None:
    name = f"contended-{next(_numbers)}"

    def deploy(number: int) -> tuple[Answer, int]:
        code = f"def handle(event, context):\n    return {number % 2}\n"
        return platform.deploy(name, code), number % 2

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(deploy, range(6)))

    assert all(answer.status in (200, 201) for answer, _ in outcomes)
    returns = {answer.json()["revision"]: number for answer, number in outcomes}
    assert len(returns) == 2
    shown = platform.get(f"/v1/functions/{name}").json()
    assert [one["revision"] for one in shown["revisions"] if one["active"]] == [shown["revision"]]
    for _ in range(5):
        answer = platform.post(f"/invoke/{name}")
        assert answer.headers["faasd-revision"] == shown["revision"]
        assert answer.json() == returns[shown["revision"]]


def test_callers_of_a_function_notice_nothing_of_its_deploys(platform: Platform) -> None:
    name = f"moving-{next(_numbers)}"
    platform.must_deploy(name, "def handle(event, context):\n    return 0\n")

    def deploys() -> None:
        for number in range(1, 6):
            platform.must_deploy(name, f"def handle(event, context):\n    return {number}\n")

    seen = []
    with ThreadPoolExecutor(1) as threads:
        deploying = threads.submit(deploys)
        while not deploying.done():
            seen.append(platform.post(f"/invoke/{name}").json())
        deploying.result()

    assert seen == sorted(seen)
    assert platform.post(f"/invoke/{name}").json() == 5


def test_progress_of_a_deploy_that_fails_ends_with_one_error_event(platform: Platform) -> None:
    form, kind = multipart(
        spec=("application/json", b'{"name": "steady"}'),
        code=("application/gzip", pack({"handler.py": "1 / 0"})),
    )
    headers = {"Content-Type": kind, "Accept": "text/event-stream"}

    answer = platform.request("PUT", "/v1/functions/steady", form, headers)

    *before, last, rest = answer.body.decode().split("\n\n")
    event, _, data = last.partition("\n")
    problem = json.loads(data.removeprefix("data: "))
    assert (answer.status, event, rest) == (200, "event: error", "")
    assert all(one.startswith("event: progress\n") for one in before)
    assert (problem["code"], problem["status"]) == ("deploy_failed", 422)
    assert "1 / 0" in problem["traceback"]
    assert problem["request_id"] == answer.headers["faasd-request-id"]
