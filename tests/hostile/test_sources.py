"""What no source file may do with what strangers send: looked for in all of them."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("app", "worker") for path in (ROOT / folder).rglob("*.py"))

# Loaders that run what they load, and evaluation.
_FORBIDDEN_CALLS = {
    "eval", "exec", "torch.load", "numpy.load", "np.load", "joblib.load", "yaml.load", "os.system", "os.popen",
    "pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "cloudpickle.load",
}  # fmt: skip
_FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
_EVALUATES = {"worker/graders/sandbox_child.py"}  # inside the sandbox, which is there for it

# Who may open connections, and why no client chooses where they lead.
_SPEAKS = {
    "app/outgoing.py": "the one door to addresses that clients chose, which checks them",
    "app/storage/s3.py": "the operator's bucket",
    "app/queue/redis.py": "the operator's Redis",
    "app/db/engine.py": "the operator's database",
    "app/db/drivers.py": "the operator's database",
    "app/db/outage.py": "knows the driver's errors",
    "worker/main.py": "asks for this machine's name",
    "app/server.py": "listens, and calls nobody",
    "worker/data/hub.py": "repositories that the operator registers, on the hub that the operator chose",
    "worker/trackers/weights_and_biases.py": "the server of HONE_WANDB_BASE_URL; clients name projects and runs",
    "worker/trackers/mlflow_server.py": "the server of HONE_MLFLOW_TRACKING_URI; clients name experiments and runs",
    "worker/graders/sandbox_child.py": "no module of it: a filter that shuts sockets",
    "worker/graders/sandbox.py": "tries that there is no network",
}
_NETWORK = {
    "aiohttp", "asyncpg", "boto3", "botocore", "ftplib", "http", "httpcore", "httpx", "huggingface_hub", "mlflow",
    "redis", "requests", "smtplib", "socket", "telnetlib", "urllib3", "wandb", "websockets",
}  # fmt: skip


@functools.cache
def _trees() -> list[tuple[str, ast.Module]]:
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


@functools.cache
def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_are_sources() -> None:
    assert len(SOURCES) > 150


def test_no_model_brings_code_along() -> None:
    """`trust_remote_code` is False wherever it could be said, and nothing but safetensors is loaded."""
    loads = 0
    for name, tree in _trees():
        for called, call in _calls(tree):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("trust_remote_code", "False") == "False", name
            if called.startswith("Auto") and called.endswith(".from_pretrained"):
                loads += 1
                assert given.get("trust_remote_code") == "False", f"{name}: {called}"
                assert given.get("local_files_only") == "True", f"{name}: {called}"
                if called.startswith("AutoModel"):
                    assert given.get("use_safetensors") == "True", f"{name}: {called}"
    assert loads >= 4  # or else this test looks for the wrong thing


def test_nothing_is_evaluated_or_unpickled() -> None:
    for name, tree in _trees():
        called = {called for called, _ in _calls(tree)} & _FORBIDDEN_CALLS
        assert not called or name in _EVALUATES, f"{name} calls {called}"
        imported = {module.partition(".")[0] for module in _imports(tree)} & _FORBIDDEN_IMPORTS
        assert not imported, f"{name} imports {imported}"


def test_no_child_has_a_shell() -> None:
    for name, tree in _trees():
        for called, call in _calls(tree):
            shell = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get("shell", "False")
            assert shell == "False", f"{name}: {called}"
            assert not called.endswith("create_subprocess_shell"), name


def test_who_opens_connections_has_a_reason() -> None:
    found = set()
    for name, tree in _trees():
        for module in _imports(tree):
            if module.partition(".")[0] in _NETWORK or module.startswith("urllib.request"):
                found.add(name)
    assert found <= set(_SPEAKS), f"no reason is given for {sorted(found - set(_SPEAKS))}"


@pytest.mark.parametrize("name", ["from_string", "Environment", "ImmutableSandboxedEnvironment", "Template"])
def test_templates_are_compiled_in_one_place(name: str) -> None:
    places = {where for where, tree in _trees() for called, _ in _calls(tree) if called.rpartition(".")[2] == name}
    assert places <= {"worker/data/template.py"}
