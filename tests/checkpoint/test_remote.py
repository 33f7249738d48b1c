"""Models at a URL: the bytes of a merge of local copies, and no byte read that it has no use for."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

import triune as api
from triune.checkpoint import remote
from triune.checkpoint.ref import resolve_reference
from triune.engine.plan import make_plan
from triune.errors import CheckpointError
from triune.testing.chat import toy_chat

if TYPE_CHECKING:
    from conftest import Models, Run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory(models: Models) -> Iterator[Any]:
    """The toy in fsspec's memory, which keeps a list of the ranges that are read."""
    store = fsspec.filesystem("memory")
    store.put(str(models.root), "/toy", recursive=True)
    yield store
    store.rm("/toy", recursive=True)


def recipe(models: Models, root: str, method: str = "task_arithmetic", *settings: str) -> api.Recipe:
    experts = [f"{name}={root}/{name}" for name in models.names]
    return api.recipe_from_flags(base=f"{root}/base", experts=experts, method=method, settings=list(settings))


def weights(folder: Path, contents: Any) -> dict[str, str]:
    """All that a merge writes but for the files that name its inputs."""
    told = ("README.md", "triune.lock.json", "mergekit_config.yml")
    return {name: digest for name, digest in contents(folder).items() if name not in told}


@pytest.mark.parametrize(
    ("method", "settings"), [("ties", ("density=0.3",)), ("tsvm", ()), ("task_arithmetic", ("weight=0.5",))]
)
def test_the_same_bytes(
    method: str, settings: tuple[str, ...], models: Models, memory: Any, contents: Any, tmp_path: Path
) -> None:
    for name, root in (("local", str(models.root)), ("remote", "memory://toy")):
        api.merge(recipe(models, root, method, *settings), tmp_path / name, threads=2)
    assert weights(tmp_path / "remote", contents) == weights(tmp_path / "local", contents)
    assert "model.safetensors" in weights(tmp_path / "remote", contents)


def test_each_byte_once(
    models: Models, memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    """Requests are small here, so that there are many; all together they are what the plan says."""
    plan = make_plan(recipe(models, "memory://toy", "task_arithmetic", "weight=0.5"))
    asked: list[int] = []
    real = type(memory).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **how: Any) -> bytes:
        found: bytes = real(self, path, start=start, end=end, **how)
        if start is not None:
            asked.append(len(found))
        return found

    monkeypatch.setattr(type(memory), "cat_file", counted)
    monkeypatch.setattr(remote, "AHEAD", 3000)
    api.merge(plan.recipe, tmp_path / "out", gate=False, threads=2)
    assert sum(asked) == plan.read_bytes
    assert len(asked) > len(plan.jobs)
    assert not list(cache.rglob("*.safetensors"))


def test_what_is_read_ahead_counts_as_memory(models: Models, memory: Any) -> None:
    """Of the base and of three full experts, 8 MB each."""
    here, there = (make_plan(recipe(models, root)).jobs for root in (str(models.root), "memory://toy"))
    merged = [(a, b) for a, b in zip(here, there, strict=True) if a.route == "blocks"]
    assert merged
    assert all(b.nbytes - a.nbytes == 4 * remote.AHEAD for a, b in merged)


def test_a_change_there_is_another_model(models: Models, memory: Any) -> None:
    """Of the folder in the cache, and of the fingerprint by which a merge continues."""
    wanted = recipe(models, "memory://toy")
    before = make_plan(wanted)
    assert make_plan(wanted).fingerprint == before.fingerprint
    memory.pipe_file("/toy/honest/model.safetensors", memory.cat_file("/toy/honest/model.safetensors"))
    assert make_plan(wanted).fingerprint != before.fingerprint
    config = json.loads(memory.cat_file("/toy/base/config.json")) | {"note": "new"}
    memory.pipe_file("/toy/base/config.json", json.dumps(config).encode())
    after = make_plan(wanted)
    assert after.template.checkpoint.config["note"] == "new"
    assert after.template.checkpoint.folder != before.template.checkpoint.folder


def test_an_adapter_there(models: Models, memory: Any, write_adapter: Any, contents: Any, tmp_path: Path) -> None:
    shapes = {n: tuple(t.shape) for n, t in models.tensors["base"].items() if "proj" in n}
    write_adapter(tmp_path / "lora", shapes, seed=1)
    memory.put(str(tmp_path / "lora"), "/toy/lora", recursive=True)
    ref = resolve_reference("memory://toy/base+memory://toy/lora")
    assert ref.adapter is not None
    assert ref.url == "memory://toy/base"
    for name, base, lora in (
        ("local", str(models.root / "base"), str(tmp_path / "lora")),
        ("remote", "memory://toy/base", "memory://toy/lora"),
    ):
        wanted = api.recipe_from_flags(base=base, experts=[f"a={lora}"], method="linear", settings=[])
        api.merge(wanted, tmp_path / name)
    assert weights(tmp_path / "remote", contents) == weights(tmp_path / "local", contents)


def test_fetched_for_other_commands(models: Models, memory: Any, load: Any) -> None:
    """What loads whole models gets whole files, and from then on they are read here."""
    ref = resolve_reference("memory://toy/base")
    assert ref.folder is not None
    assert not list(ref.folder.glob("*.safetensors"))
    ref.fetch()
    assert load(ref.folder).keys() == models.tensors["base"].keys()
    assert {t.file for t in ref.checkpoint().tensors.values()} == {str(ref.folder / "model.safetensors")}


def test_a_fetch_that_fails_leaves_nothing(models: Models, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = resolve_reference("memory://toy/base")
    assert ref.folder is not None
    before = sorted(ref.folder.iterdir())

    def half(self: Any, path: str, to: str, **how: Any) -> None:
        Path(to).write_bytes(b"half")
        raise ConnectionError("lost")

    monkeypatch.setattr(type(memory), "get_file", half)
    with pytest.raises(CheckpointError, match="cannot be read: lost"):
        ref.fetch()
    assert sorted(ref.folder.iterdir()) == before


def test_another_process_may_fetch_the_same(models: Models, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has made the folder while we read what goes into it."""
    real, theirs = type(memory).cat_file, []

    def meanwhile(self: Any, path: str, **how: Any) -> Any:
        monkeypatch.setattr(type(memory), "cat_file", real)
        theirs.append(resolve_reference("memory://toy/base"))
        return real(self, path, **how)

    monkeypatch.setattr(type(memory), "cat_file", meanwhile)
    assert [resolve_reference("memory://toy/base")] == theirs


def test_the_gate_needs_the_base_here(tmp_path: Path, contents: Any) -> None:
    """The checks of the norms are made; those that run both models are not, and say why."""
    toy_chat(tmp_path / "chat" / "base")
    shutil.copytree(tmp_path / "chat" / "base", tmp_path / "chat" / "other")
    root = f"file://{tmp_path / 'chat'}"
    wanted = api.recipe_from_flags(base=f"{root}/base", experts=[f"a={root}/other"], method="linear", settings=[])
    done = api.merge(wanted, tmp_path / "out")
    assert done.passed
    (loads,) = [c for c in done.checks if c.name == "loads"]
    assert loads.passed is None
    assert "the base's weights are not on this machine" in loads.sentence
    assert (tmp_path / "out" / "tokenizer.json").exists()


# --- a web server -------------------------------------------------------------------------------------------------


class Plain(SimpleHTTPRequestHandler):
    """Python's own server, which lists folders and knows no ranges."""

    def log_message(self, *_: object) -> None:
        pass


class Ranged(Plain):
    """The same with ranges."""

    def send_head(self) -> Any:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            return super().send_head()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        data = path.read_bytes()[int(first) : int(last or path.stat().st_size) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def served(own_models: Models, request: pytest.FixtureRequest) -> Iterator[str]:
    handler = functools.partial(request.param, directory=str(own_models.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("served", [Ranged], indirect=True)
def test_from_a_web_server(served: str, models: Models, triune: Run, contents: Any, tmp_path: Path) -> None:
    """By the command line, as a plan and as a merge."""
    for name, root in (("local", str(models.root)), ("remote", served)):
        flags = ["--base", f"{root}/base", *(part for n in models.names for part in ("-e", f"{n}={root}/{n}"))]
        flags += ["--method", "ties", "--set", "density=0.3"]
        assert triune("plan", *flags).code == 0
        told = triune("merge", *flags, tmp_path / name)
        assert told.code == 0, told.err
    assert weights(tmp_path / "remote", contents) == weights(tmp_path / "local", contents)


@pytest.mark.parametrize("served", [Ranged], indirect=True)
def test_a_change_on_a_web_server(served: str, own_models: Models) -> None:
    """Whose list of files says nothing but names."""
    before = resolve_reference(f"{served}/base")
    assert resolve_reference(f"{served}/base") == before
    config = own_models.root / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "new"}))
    after = resolve_reference(f"{served}/base")
    assert after.folder is not None
    assert after.folder != before.folder
    assert json.loads((after.folder / "config.json").read_text())["note"] == "new"


@pytest.mark.parametrize("served", [Plain], indirect=True)
def test_a_server_without_ranges(served: str, models: Models, triune: Run, tmp_path: Path) -> None:
    flags = ("--base", f"{served}/base", "-e", f"a={served}/honest", "--method", "task_arithmetic")
    told = triune("merge", *flags, tmp_path / "out")
    assert told.code == 2
    assert "byte range" in told.err
    assert not (tmp_path / "out").exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory://nowhere", "memory://nowhere: there is no such folder or file. Check the address."),
        ("s3://bucket/model", "reading s3:// needs a package that is not installed. Run: pip install s3fs"),
        ("gs://bucket/model", "reading gs:// needs a package that is not installed. Run: pip install gcsfs"),
        ("spam://bucket/model", "spam://bucket/model cannot be read: Protocol not known: spam. Check"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        resolve_reference(text)
    assert says in str(error.value)


def test_cut_off_meanwhile(models: Models, memory: Any, tmp_path: Path) -> None:
    whole = memory.cat_file("/toy/base/model.safetensors")
    memory.pipe_file("/toy/base/model.safetensors", whole[:-100])
    with pytest.raises(CheckpointError, match=r"memory://toy/base/model.safetensors: tensor .* but the file has"):
        make_plan(recipe(models, "memory://toy"))


@pytest.mark.parametrize("name", ["../../escaped.safetensors", "/tmp/escaped.safetensors", "a/b.safetensors"])
def test_weights_elsewhere_are_refused(name: str, models: Models, memory: Any) -> None:
    """What is fetched is written under the name that the index says."""
    index = {"weight_map": {"model.norm.weight": name}}
    memory.pipe_file("/toy/base/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError, match="which is not beside it"):
        resolve_reference("memory://toy/base").fetch()


def test_a_file_url(models: Models, contents: Any, tmp_path: Path) -> None:
    shutil.copytree(models.root, tmp_path / "models")
    api.merge(recipe(models, f"file://{tmp_path / 'models'}"), tmp_path / "remote")
    api.merge(recipe(models, str(models.root)), tmp_path / "local")
    assert weights(tmp_path / "remote", contents) == weights(tmp_path / "local", contents)
