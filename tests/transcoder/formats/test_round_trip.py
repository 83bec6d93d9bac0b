"""What is exported and read back is the same transcoder: every bit of it where the format is exact."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transcoder.formats.about import About
from transcoder.formats.foreign import FORMATS, WRITERS, Wanted
from transcoder.formats.native import WEIGHTS_FILE, save_transcoder
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Drawn:
    """Any widths, prefixes, rule, and numbers of any size, among them zeros and subnormal ones."""

    width: int
    prefixes: tuple[int, ...]
    seed: int
    scale: float
    skip: bool
    top_k: int

    def transcoder(self, rule: str) -> Transcoder:
        # Not made while hypothesis draws: the checker of shapes draws random numbers of its own.
        dict_size = self.prefixes[-1]
        generator = torch.Generator().manual_seed(self.seed)

        def array(*shape: int) -> torch.Tensor:
            drawn = torch.randn(shape, generator=generator) * self.scale
            return torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, drawn)

        made: dict[str, Rule] = {
            "topk": TopK(min(self.top_k, dict_size)),
            "jumprelu": JumpReLU(array(dict_size).abs()),
            "relu": ReLU(),
        }
        skip = array(self.width, self.width) if self.skip else None
        arrays = (array(dict_size, self.width), array(dict_size), array(dict_size, self.width), array(self.width))
        return Transcoder(*arrays, skip, rule=made[rule], prefixes=self.prefixes)


DRAWN = st.builds(
    Drawn,
    width=st.integers(1, 7),
    prefixes=st.sets(st.integers(1, 20), min_size=1, max_size=4).map(lambda ends: tuple(sorted(ends))),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-42, 1e-3, 1.0, 1e4]),
    skip=st.booleans(),
    top_k=st.integers(1, 20),
)


EXACT = {
    "saelens": ("topk", "jumprelu", "relu"),
    "saelens-jumprelu": ("jumprelu", "relu"),
    "sparsify": ("topk",),
    "dictionary-learning": ("jumprelu",),
    "circuit-tracer": ("jumprelu",),
    "gemma-scope": ("jumprelu",),
}


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, rules in EXACT.items() for rule in rules])
@settings(max_examples=15)
@given(drawn=DRAWN)
def test_export_then_import_gives_the_same_bytes(name: str, rule: str, drawn: Drawn) -> None:
    writer = WRITERS[name]
    if not writer.skip or (name, rule) == ("saelens", "topk"):
        drawn = replace(drawn, skip=False)
    if name == "gemma-scope":
        drawn = replace(drawn, prefixes=drawn.prefixes[-1:])  # it has no place for prefixes
    site = "ln2_normalized" if writer.view == "ln2_normalized" else "mlp_in"
    trained = drawn.transcoder(rule).replaced(source_view=site)
    about = About(
        "gpt2", 3, site, "mlp_out", architecture="gpt2", record={"prefixes": list(trained.prefixes)}, layers_of_model=4
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / writer.place(about, trained.dict_size, 1.0)
        if writer.frame:
            writer.frame(folder, [about], trained)
        writer.write(folder, trained, about)
        layout = FORMATS[writer.format]
        wanted = Wanted(layer=3, d_source=trained.d_source, d_target=trained.d_target)
        read = layout.read(layout.find(folder, wanted), wanted)
        assert (read.prefixes, read.rule.name, read.source_view) == (trained.prefixes, trained.rule.name, site)
        for place, transcoder in (("before", trained), ("after", read)):
            save_transcoder(transcoder, Path(temporary) / place, config={})
        files = [Path(temporary) / place / WEIGHTS_FILE for place in ("before", "after")]
        assert files[0].read_bytes() == files[1].read_bytes()
