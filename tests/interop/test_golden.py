"""Our writers give the bytes that other tools have loaded, and we compute from them what the tools computed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from transcoder.formats.foreign import FORMATS, Wanted

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("golden", HERE / "golden.py")
assert _spec is not None
assert _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
KNOWN = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, object, Path]]:
    return golden.write(tmp_path_factory.mktemp("golden"))


def test_every_format_and_rule_was_loaded_by_its_tool(written: dict[str, tuple[str, object, Path]]) -> None:
    assert set(KNOWN["outputs"]) == set(written)
    for name, output in KNOWN["outputs"].items():
        assert output["tool"].split()[0].lower().replace("_", "-") in ("saelens", "sparsify", "dictionary-learning",
                                                                       "circuit-tracer"), name  # fmt: skip


def test_the_bytes_are_those_that_the_tools_loaded(written: dict[str, tuple[str, object, Path]]) -> None:
    name, (_, _, folder) = next(iter(written.items()))
    top = folder.parents[len(Path(name).parts) - 1]
    assert golden.digests(top) == KNOWN["files"]


@pytest.mark.parametrize("name", KNOWN["outputs"])
def test_we_compute_what_the_tool_computed(written: dict[str, tuple[str, object, Path]], name: str) -> None:
    form, rule, folder = written[name]
    known = KNOWN["outputs"][name]
    features, output = torch.tensor(known["features"]), torch.tensor(known["output"])
    layout = FORMATS[form]
    wanted = Wanted(layer=1, d_source=golden.WIDTH, d_target=golden.WIDTH)
    for ours in (golden.transcoder(rule), layout.read(layout.find(folder, wanted), wanted)):
        torch.testing.assert_close(ours.encode(golden.source()), features, atol=2e-5, rtol=0)
        torch.testing.assert_close(ours(golden.source()), output, atol=2e-5, rtol=0)
