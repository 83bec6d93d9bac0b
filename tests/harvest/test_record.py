"""The record beside a cache: what an earlier run measured is kept, a record of another harvest is not."""

import json

from harvest.model.proof import SiteProof
from harvest.record import ProofFile

FIRST = {"layer": 1, "errors": {"a = b": 0.0}, "language_model_loss": None}


def proof(error):
    return SiteProof(1, {"a = b": error}, {"a = b": 1.0}, dtype="float32", attention="sdpa", modules="m", rows=5)


def content(folder):
    return json.loads((folder / "proof-00002.json").read_text())


def test_samples_are_kept_in_order_whichever_run_measured_them(tmp_path):
    ProofFile(tmp_path, rank=2, record=FIRST).add_sample(64, proof(0.5))
    again = ProofFile(tmp_path, rank=2, record=FIRST)
    again.add_sample(8, proof(0.25))
    again.add_sample(64, proof(0.5))
    again.write(3)
    expected = {"8": {"errors": {"a = b": 0.25}, "rows": 5}, "64": {"errors": {"a = b": 0.5}, "rows": 5}}
    assert content(tmp_path) == FIRST | {"samples": expected, "skipped_rows": 3}
    assert list(content(tmp_path)["samples"]) == ["8", "64"]


def test_a_damaged_record_and_one_of_another_proof_are_begun_again(tmp_path):
    ProofFile(tmp_path, rank=2, record=FIRST).add_sample(64, proof(0.5))
    ProofFile(tmp_path, rank=2, record=FIRST | {"layer": 2}).write(0)
    assert content(tmp_path)["samples"] == {}
    (tmp_path / "proof-00002.json").write_text('{"samples": ')
    ProofFile(tmp_path, rank=2, record=FIRST).write(0)
    assert content(tmp_path) == FIRST | {"samples": {}, "skipped_rows": 0}
