"""The real Hub client against a server on this machine: one commit, read back by address, checked by hash."""

import base64
import hashlib
import json
import shutil
from collections.abc import Generator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch

import nestcoder
from common.errors import DamagedError, DiskError, MismatchError, UsageError
from common.progress import Silent
from common.run_layout import RunFolders
from evaluate.publish.upload import PublishRequest, prepare, push
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

NAME, COMMIT = "somebody/nested", "c" * 40
# The Hub's own client hands its LFS bytes to httpx in a way that httpx has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub for making a repository, committing to it and fetching from it; large files go by LFS."""

    files: ClassVar[dict[str, bytes]] = {}
    large: ClassVar[dict[str, bytes]] = {}
    made: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers.get("Authorization"))
        answers = {
            "/api/repos/create": self._make,
            "/api/validate-yaml": lambda _: {"errors": [], "warnings": []},
            f"/api/models/{NAME}/preupload/main": self._modes,
            f"/{NAME}.git/info/lfs/objects/batch": self._batch,
            f"/api/models/{NAME}/commit/main": self._commit,
        }
        self._json(answers[self.path.split("?")[0]](body))

    def _make(self, body: bytes) -> dict[str, Any]:
        self.made.append(json.loads(body))
        return {"url": f"{self._home}/{NAME}", "name": NAME}

    def _modes(self, body: bytes) -> dict[str, Any]:
        return {"files": [self._mode(file) for file in json.loads(body)["files"]]}

    def _batch(self, body: bytes) -> dict[str, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self._home}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
        return {"success": True, "commitUrl": f"{self._home}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == self.path.rsplit("/", 1)[1]
        self.large[self.path.rsplit("/", 1)[1]] = data
        self._json({})

    def do_HEAD(self) -> None:
        self._send()

    def do_GET(self) -> None:
        self._send()

    def _send(self) -> None:
        data = self.files.get(self.path.split("/resolve/")[-1].partition("/")[2])
        if data is None or "/resolve/" not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _json(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def _home(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[str]:
    Hub.files, Hub.large, Hub.made, Hub.tokens = {}, {}, [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The way by LFS, whose protocol is plain HTTP; the Hub's own newer one is not.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def metrics_of(config: dict[str, Any]) -> dict[str, Any]:
    """A report's fields that a card quotes."""
    return {
        "prefixes": [8, 32],
        "fvu_per_prefix": [0.4, 0.2],
        "fvu_interval_per_prefix": [[0.39, 0.41], [0.19, 0.21]],
        "l0_per_prefix": [2.0, 4.0],
        "dead_fraction_per_prefix": [0.0, None],
        "tokens_used": 12_345,
        "documents": 40,
        "concentration": {"warning": None},
        "language_model": {"per_prefix": [{"delta": 0.02}, {"delta": 0.01}]},
        "transcoder": {"top_k": 4, "activation": "topk", "weights": config["weights"]},
        "cache": {
            "model": "gpt2", "source_site": "mlp_in", "target_site": "mlp_out", "provenance": "unproved",
            "dataset": {"kind": "hub", "name": "somebody/text"},
        },
    }  # fmt: skip


@pytest.fixture
def request_to(tmp_path: Path, endpoint: str) -> PublishRequest:
    folders: dict[int, RunFolders] = {}
    for layer in (4, 8):
        folders[layer] = RunFolders(tmp_path / "runs" / "gpt2" / f"layer{layer:02d}")
        arrays = random_arrays(12, 12, dict_size=32, seed=layer)
        transcoder = Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32))
        about = {"layer": layer, "tokens_trained": 5000}
        config = save_transcoder(transcoder, folders[layer].transcoder("main"), config=about)
        report = folders[layer].report("main")
        report.mkdir(parents=True)
        (report / "metrics.json").write_text(json.dumps(metrics_of(config)))
    exported = tmp_path / "export"
    (exported / "saelens" / "full").mkdir(parents=True)
    (exported / "saelens" / "full" / "cfg.json").write_text("{}")
    record = {"exactness": "exact", "prefix": None, "held_out": {"after": {"fvu": 0.2, "l0": 4.0}}}
    document = {"format": "saelens", "layers": {"8": record}}
    (exported / "saelens" / "EXPORT.json").write_text(json.dumps(document))
    (exported / "delphi").mkdir()
    (exported / "delphi" / "config.json").write_text("{}")
    # Other files beside the export are not published.
    (exported / "rows.pt").write_bytes(b"private")
    (exported / "notes").mkdir()
    (exported / "notes" / "mine.txt").write_text("private")
    return PublishRequest(f"hf:{NAME}", folders, "main", "mit", "gpt2", exported, endpoint=endpoint)


def test_what_was_published_is_read_back_by_its_address(request_to: PublishRequest, capfd: Any) -> None:
    publication = prepare(request_to)
    assert not Hub.made, "a preparation asks nothing of the Hub"
    page = push(publication, request_to, Silent())
    assert page.endswith(f"/commit/{COMMIT}")
    assert Hub.made[0]["name"] == "nested"
    assert set(Hub.files) == set(publication.sizes)
    assert "saelens/full/cfg.json" in Hub.files
    assert "delphi/config.json" in Hub.files
    assert not any(b"private" in data for data in Hub.files.values())
    assert "| `saelens/` | saelens | all | exact | 0.2000 | 4.0 |" in publication.card
    for layer, folders in request_to.folders.items():
        found = nestcoder.load_transcoder(f"hf:{NAME}/layer{layer:02d}")
        own = load_transcoder(folders.transcoder("main"))
        assert torch.equal(found.W_dec, own.W_dec)
        assert found.config == own.config
    assert Hub.tokens == {"Bearer hf_secret"}
    assert not any(b"hf_secret" in data for data in Hub.files.values())


def test_other_bytes_are_refused_by_the_hash_in_config_json(request_to: PublishRequest) -> None:
    push(prepare(request_to), request_to, Silent())
    weights = bytearray(Hub.files["layer08/transcoder.safetensors"])
    weights[-1] ^= 1
    Hub.files["layer08/transcoder.safetensors"] = bytes(weights)
    with pytest.raises(DamagedError, match="does not match its hash"):
        nestcoder.load_transcoder(f"hf:{NAME}/layer08")
    with pytest.raises((UsageError, DiskError), match=r"layer09|nested"):
        nestcoder.load_transcoder(f"hf:{NAME}/layer09")
    for address in ("hf:nobody", "hf:a/b/../c", "hf:"):
        with pytest.raises(UsageError, match="not an address"):
            nestcoder.load_transcoder(address)


def joint_metrics(layers: tuple[int, ...], **weights: Any) -> dict[str, Any]:
    """A report on several layers, of the dictionaries whose seals are given."""
    fields = {
        "window": 1,
        "prefixes": [8, 32],
        "fvu_per_prefix": [0.4, 0.2],
        "fvu_per_layer_and_prefix": [[0.4, 0.2]] * len(layers),
        "l0_per_layer_and_prefix": [[2.0, 4.0]] * len(layers),
        "dead_per_layer": [0.0] * len(layers),
        "crossing_per_layer": [0.5] * len(layers),
        "tokens_used": 12_345,
        "language_model": None,
    }
    cache = {"model": "gpt2", "source_site": "mlp_in", "target_site": "mlp_out", "dataset": {"kind": "stdlib"}}
    dictionaries = {name: fields | {"weights": seal} for name, seal in weights.items()}
    return {"layers": list(layers), "documents": 40, "cache": cache, "dictionaries": dictionaries}


@pytest.fixture
def joint_request(request_to: PublishRequest, tmp_path: Path) -> PublishRequest:
    """A cross-layer transcoder ``clt`` of both layers, measured in the report of another."""
    joint = RunFolders(tmp_path / "runs" / "gpt2" / "layers04_08")
    pieces = [
        Transcoder(**random_arrays(12, width, dict_size=32, seed=width), rule=TopK(4), prefixes=(8, 32))
        for width in (24, 12)
    ]
    made = CrossLayerTranscoder(pieces, layers=(4, 8), window=1)
    config = save_cross_layer(made, joint.transcoder("clt"), config={"tokens_trained": 5000})
    report = joint.report("beside") / "metrics.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps(joint_metrics((4, 8), clt=config["weights"])))
    return replace(request_to, name="clt", joint=joint, exported=None)


def test_a_cross_layer_transcoder_is_read_back_by_its_address(joint_request: PublishRequest) -> None:
    publication = prepare(joint_request)
    push(publication, joint_request, Silent())
    assert set(Hub.files) == {
        "README.md", "layers04_08/config.json", "layers04_08/transcoder.safetensors", "layers04_08/metrics.json",
    }  # fmt: skip
    found = nestcoder.load_cross_layer(f"hf:{NAME}/layers04_08")
    assert joint_request.cross_layer is not None
    own = nestcoder.load_cross_layer(joint_request.cross_layer)
    assert found.config == own.config
    source = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.reconstructions([source, source]), own.reconstructions([source, source]))
    with pytest.raises(MismatchError, match="cross-layer transcoder, of several layers"):
        nestcoder.load_transcoder(f"hf:{NAME}/layers04_08")


def test_a_cross_layer_transcoder_of_other_bytes_is_refused_by_its_hash(joint_request: PublishRequest) -> None:
    push(prepare(joint_request), joint_request, Silent())
    weights = bytearray(Hub.files["layers04_08/transcoder.safetensors"])
    weights[-1] ^= 1
    Hub.files["layers04_08/transcoder.safetensors"] = bytes(weights)
    with pytest.raises(DamagedError, match="does not match its hash"):
        nestcoder.load_cross_layer(f"hf:{NAME}/layers04_08")


def test_a_cross_layer_transcoder_without_a_report_of_its_weights_is_refused(joint_request: PublishRequest) -> None:
    assert joint_request.joint is not None
    report = joint_request.joint.report("beside") / "metrics.json"
    for seal, reason in (({"bytes": 1}, "of other weights"), (None, "does not say of which weights")):
        report.write_text(json.dumps(joint_metrics((4, 8), clt=seal)))
        with pytest.raises(MismatchError, match=reason):
            prepare(joint_request)
    report.unlink()
    with pytest.raises(UsageError, match="no report of this transcoder") as refused:
        prepare(joint_request)
    assert "evaluate --layer 4 --layer 8 --name clt --lm" in (refused.value.remedy or "")
    assert not Hub.made


def test_a_set_has_what_was_measured_of_all_its_layers(
    request_to: PublishRequest, joint_request: PublishRequest
) -> None:
    request = replace(request_to, joint=joint_request.joint)
    assert "at once" not in prepare(request).card
    weights = {
        str(layer): load_transcoder(folders.transcoder("main")).config["weights"]
        for layer, folders in request.folders.items()
    }
    assert request.joint is not None
    report = request.joint.report("main") / "metrics.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps(joint_metrics((4, 8), main=weights)))
    publication = prepare(request)
    assert "## Layers 4 and 8 at once" in publication.card
    assert publication.files["layers04_08/metrics.json"] == report
    report.write_text(json.dumps(joint_metrics((4, 8), main=weights | {"8": None})))
    assert "at once" not in prepare(request).card, "a report of other weights is no report of these"


def test_an_export_whose_record_cannot_be_read_is_refused(request_to: PublishRequest) -> None:
    assert request_to.exported is not None
    for text in ("{", '{"layers": 3}', '{"format": "saelens", "layers": {"8": {}}}'):
        (request_to.exported / "saelens" / "EXPORT.json").write_text(text)
        with pytest.raises(DamagedError, match="record of an export does not read"):
            prepare(request_to)


def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    request_to: PublishRequest, tmp_path: Path
) -> None:
    report = request_to.folders[8].report("main") / "metrics.json"
    text = report.read_text()
    report.write_text(text.replace('"xxh3_128": "', '"xxh3_128": "0'))
    with pytest.raises(MismatchError, match="other weights"):
        prepare(request_to)
    report.unlink()
    with pytest.raises(UsageError, match="no report of this transcoder"):
        prepare(request_to)
    report.write_text(text)
    changes = {"to": "somebody/nested", "exported": tmp_path}
    for name, value in changes.items():
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
        with pytest.raises(UsageError, match=r"not an address|There is no export here"):
            prepare(PublishRequest(**vars(request_to) | {"exported": None} | {name: value}))
    assert not Hub.made
