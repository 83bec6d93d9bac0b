"""An exported transcoder is read back as the same one: bit for bit if the format is exact."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.norm import NormAffine
from transcoder.formats.about import About
from transcoder.formats.foreign import FORMATS, WRITERS, Wanted
from transcoder.formats.native import WEIGHTS_FILE, save_transcoder
from transcoder.norm import fold_gain, unfold_gain
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import SourceView, Transcoder


@dataclass(frozen=True)
class Drawn:
    """Any widths, prefixes, rule, and numbers of any size, including zeros and subnormal ones."""

    width: int
    d_target: int
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
            "batchtopk": BatchTopK(min(self.top_k, dict_size), abs(self.scale) / 3),
        }
        skip = array(self.width, self.d_target) if self.skip else None
        arrays = (array(dict_size, self.width), array(dict_size), array(dict_size, self.d_target), array(self.d_target))
        return Transcoder(*arrays, skip, rule=made[rule], prefixes=self.prefixes)

    def fitting(self, name: str, rule: str, *, autoencoder: bool) -> "Drawn":
        """The same without what the format cannot express."""
        writer = WRITERS[name]
        topk_of_saelens = (name, rule) == ("saelens", "topk")
        return replace(
            self,
            skip=self.skip and writer.skip and not topk_of_saelens and not autoencoder,
            d_target=self.d_target if writer.two_widths and not topk_of_saelens and not autoencoder else self.width,
            prefixes=self.prefixes[-1:] if name == "gemma-scope" else self.prefixes,
        )


DRAWN = st.builds(
    Drawn,
    width=st.integers(1, 7),
    d_target=st.integers(1, 7),
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


ROUNDED = (
    ("dictionary-learning", "topk", False),
    ("dictionary-learning", "batchtopk", False),
    ("sparsify", "topk", True),
)
SOURCE_ROWS = 20


def about_of(name: str, *, autoencoder: bool, prefixes: tuple[int, ...]) -> About:
    writer = WRITERS[name]
    site = "mlp_out" if autoencoder else "ln2_normalized" if writer.view == "ln2_normalized" else "mlp_in"
    record = {"prefixes": list(prefixes)}
    return About("gpt2", 3, site, "mlp_out", architecture="gpt2", record=record, layers_of_model=4)


def written_and_read(name: str, trained: Transcoder, about: About, top: Path) -> Transcoder:
    writer = WRITERS[name]
    folder = top / writer.folder(about, trained.dict_size, 1.0)
    if writer.frame:
        writer.frame(folder, [about], trained)
    writer.write(folder, trained, about)
    layout = FORMATS[writer.format]
    wanted = Wanted(layer=3, d_source=trained.d_source, d_target=trained.d_target)
    found = layout.find(folder, wanted)
    assert found is not None
    return layout.read(found, wanted)


CASES = [
    (name, rule, autoencoder)
    for name, rules in EXACT.items()
    for rule in rules
    for autoencoder in (False, True)
    # sparsify subtracts a bias from what an autoencoder reads: it is folded, so exact up to rounding.
    if not autoencoder or (WRITERS[name].autoencoders and name != "sparsify")
]


@pytest.mark.parametrize(("name", "rule", "autoencoder"), CASES)
@settings(max_examples=10)
@given(drawn=DRAWN)
def test_export_then_import_gives_the_same_bytes(name: str, rule: str, drawn: Drawn, *, autoencoder: bool) -> None:
    drawn = drawn.fitting(name, rule, autoencoder=autoencoder)
    about = about_of(name, autoencoder=autoencoder, prefixes=drawn.prefixes)
    view: SourceView = "ln2_normalized" if about.source_site == "ln2_normalized" else "mlp_in"
    trained = drawn.transcoder(rule).replaced(source_view=view)
    with tempfile.TemporaryDirectory() as temporary:
        read = written_and_read(name, trained, about, Path(temporary))
        assert (read.prefixes, read.rule.name, read.source_view) == (trained.prefixes, trained.rule.name, view)
        assert (read.config["source_site"], read.config["target_site"]) == (about.source_site, about.target_site)
        for moment, transcoder in (("before", trained), ("after", read)):
            save_transcoder(transcoder, Path(temporary) / moment, config={})
        files = [Path(temporary) / moment / WEIGHTS_FILE for moment in ("before", "after")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(("name", "rule", "autoencoder"), ROUNDED)
@settings(max_examples=10)
@given(drawn=DRAWN)
def test_a_folded_bias_comes_back_up_to_rounding(name: str, rule: str, drawn: Drawn, *, autoencoder: bool) -> None:
    drawn = replace(drawn.fitting(name, rule, autoencoder=autoencoder), scale=1.0)
    about = about_of(name, autoencoder=autoencoder, prefixes=drawn.prefixes)
    trained = drawn.transcoder(rule)
    with tempfile.TemporaryDirectory() as temporary:
        read = written_and_read(name, trained, about, Path(temporary))
    assert (read.prefixes, read.rule.name) == (trained.prefixes, rule)
    for array in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(read, array), getattr(trained, array)), array
    torch.testing.assert_close(read.b_enc, trained.b_enc, atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(drawn=DRAWN)
def test_a_folded_norm_comes_back_up_to_rounding(drawn: Drawn) -> None:
    drawn = replace(drawn.fitting("saelens", "jumprelu", autoencoder=False), scale=1.0)
    trained = drawn.transcoder("jumprelu")
    generator = torch.Generator().manual_seed(drawn.seed)
    gain = torch.rand(drawn.width, generator=generator) + 0.5
    norm = NormAffine(gain, torch.randn(drawn.width, generator=generator))
    normalised = unfold_gain(trained, norm)
    about = replace(about_of("saelens", autoencoder=False, prefixes=drawn.prefixes), source_site="ln2_normalized")
    with tempfile.TemporaryDirectory() as temporary:
        read = fold_gain(written_and_read("saelens", normalised, about, Path(temporary)), norm)
    rows = torch.randn(SOURCE_ROWS, drawn.width, generator=generator)
    torch.testing.assert_close(read.W_enc, trained.W_enc, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read.pre_activations(rows), trained.pre_activations(rows), atol=1e-4, rtol=1e-4)
