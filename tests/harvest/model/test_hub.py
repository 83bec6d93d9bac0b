"""The real Hub clients against a server on this machine: revisions pinned and recorded, every refusal one sentence."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from cache.format.manifest import read_manifest
from common.errors import DiskError, UsageError
from harvest.config import HarvestSettings
from harvest.model.hub import download
from harvest.model.source import find_model
from harvest.text.documents import open_documents

ROOT = Path(__file__).parents[3]
OLD, NEW = "1" * 40, "2" * 40
BRANCHES = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub that finding and downloading need: files by kind, repository and commit."""

    files: ClassVar[dict[tuple[str, str], dict[str, dict[str, bytes]]]] = {}
    gated: ClassVar[set[str]] = set()
    _refuse_all: ClassVar[str] = ""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in {"models", "datasets"} else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        commits = self.files.get((kind, name))
        if commits is None:
            return self._refuse(404, "RepoNotFound")
        if self._refuse_all:
            return self._refuse(403, "", self._refuse_all)
        if name in self.gated:
            return self._refuse(403, "GatedRepo")
        commit = BRANCHES.get(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = commits[commit]
        if not api:
            data = files.get("/".join(rest[2:]))
            return self._refuse(404, "EntryNotFound") if data is None else self._send(data, commit, body=body)
        if rest and rest[0] in {"tree", "paths-info"}:
            listed = [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in files.items()]
            return self._send(json.dumps(listed).encode(), commit, body=body)
        described = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        return self._send(json.dumps(described).encode(), commit, body=body)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, commit: str, *, body: bool) -> None:
        start, stop = 0, len(data)
        if given := self.headers.get("Range"):
            start, _, last = given.removeprefix("bytes=").partition("-")
            start, stop = int(start), min(int(last or stop - 1) + 1, stop)
        self.send_response(206 if given else 200)
        self.send_header("ETag", f'"{hash(data) & (1 << 60) - 1:x}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(model_folders, monkeypatch, tmp_path) -> Generator[str]:
    model = {path.name: path.read_bytes() for path in model_folders["gpt2"].iterdir()}
    more = model | {"consolidated.safetensors": b"the weights again", "pytorch_model.bin": b"pickle", "run.py": b"code"}
    lines = "".join(json.dumps({"text": f"document {n} " + "fox " * (n % 9)}) + "\n" for n in range(90)).encode()
    Hub.gated = {"google/gemma-2-2b"}
    Hub.files = {
        ("models", "someone/tiny"): {OLD: model, NEW: more},
        ("models", "google/gemma-2-2b"): {NEW: {}},
        ("datasets", "someone/text"): {OLD: {"data.jsonl": lines}, NEW: {"data.jsonl": lines + lines}},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_at_the_commit_that_a_revision_means(endpoint):
    newest, older = find_model("someone/tiny"), find_model("someone/tiny", revision="v1")
    assert (newest.revision, older.revision) == (NEW, OLD)
    names = {path.name for path in newest.folder.iterdir()}
    assert "model.safetensors" in names
    assert not names & {"consolidated.safetensors", "pytorch_model.bin", "run.py"}


def test_a_gated_model_is_one_sentence_that_says_where_to_accept_its_licence(endpoint):
    with pytest.raises(UsageError) as raised:
        find_model("gemma-2-2b")
    page = "https://huggingface.co/google/gemma-2-2b"
    assert raised.value.what == (
        f"'google/gemma-2-2b' needs a licence: accept it at {page}, then run `hf auth login` or set HF_TOKEN."
    )


def test_an_unknown_name_and_an_unknown_revision_are_named(endpoint):
    with pytest.raises(UsageError, match="There is no model 'someone/else'"):
        download("someone/else", None)
    with pytest.raises(UsageError, match="'someone/tiny' has no revision 'v9'"):
        download("someone/tiny", "v9")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_refusal_of_the_hub_is_told_in_its_own_words(endpoint, monkeypatch, kind):
    monkeypatch.setattr(Hub, "_refuse_all", "Please enable access to public gated repositories")
    name = {"model": "someone/tiny", "dataset": "someone/text"}[kind]
    with pytest.raises(UsageError, match=f"refuses access to '{name}': .*Please enable access"):
        download(name, None) if kind == "model" else open_documents(HarvestSettings(dataset=name))


def test_datasets_that_cannot_be_read_have_a_sentence_each(endpoint):
    Hub.files[("datasets", "someone/script")] = {NEW: {"script.py": b"import datasets", "README.md": b"#"}}
    Hub.files[("datasets", "someone/empty")] = {NEW: {"README.md": b"#"}}
    for name, problem in (("script", "script of its own"), ("empty", "no data files"), ("nothing", "no dataset")):
        with pytest.raises(UsageError, match=problem):
            open_documents(HarvestSettings(dataset=f"someone/{name}"))
    with pytest.raises(UsageError, match="'someone/text' has no revision 'v9'"):
        open_documents(HarvestSettings(dataset="someone/text", dataset_revision="v9"))
    with pytest.raises(UsageError, match="cannot be opened"):
        open_documents(HarvestSettings(dataset="someone/text", dataset_split="nope"))


def test_a_full_disk_names_the_folder_and_hf_home(endpoint, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(DiskError, match="no room for 'someone/tiny'") as raised:
        download("someone/tiny", None)
    assert raised.value.where == str(tmp_path / "hub")
    assert "HF_HOME" in raised.value.remedy


def test_a_missing_connection_is_named(endpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DiskError, match="cannot be reached"):
        download("someone/tiny", None)


@pytest.mark.slow
def test_a_harvest_from_the_hub_records_both_commits(endpoint, tmp_path):
    """A whole process, as a user starts it: model and text by name, the text at a revision."""
    values = {
        "runs": tmp_path / "runs", "harvest.dataset": "someone/text", "harvest.dataset_revision": "v1",
        "harvest.context": 32, "harvest.train_tokens": 300, "harvest.held_out_tokens": 60,
        "cache.held_out_fraction": 0.3,
    }  # fmt: skip
    given = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "nestcoder", *given, "--model", "someone/tiny", "harvest", "--layer", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"),
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (manifest,) = (tmp_path / "runs").rglob("manifest.json")
    identity = read_manifest(manifest.parent).identity
    assert (identity["model"], identity["model_revision"]) == ("someone/tiny", NEW)
    assert identity["dataset"]["name"] == "someone/text"
    assert identity["dataset"]["revision"] == OLD
