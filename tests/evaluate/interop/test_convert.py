"""What is done to a transcoder before it is written, and what it costs."""

from typing import Any

import pytest
import torch

from common.errors import MismatchError, UsageError
from common.norm import NormAffine
from evaluate.interop.convert import Converted, Wish, about_of, convert, refusal
from transcoder.formats.about import About
from transcoder.formats.foreign import WRITERS
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

ABOUT = About("gpt2", 8, "mlp_in", "mlp_out", architecture="gpt2")
NORM = NormAffine(torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6))


def trained(rule: Rule | None = None, **options: Any) -> Transcoder:
    arrays = random_arrays(6, options.pop("d_target", 6), dict_size=24, seed=3, **options)
    arrays["b_enc"] += 0.3
    return Transcoder(**arrays, rule=rule or TopK(5), prefixes=(4, 10, 24))


def converted(name: str, transcoder: Transcoder, *, norm: NormAffine | None = NORM, **wish: Any) -> Converted:
    def thresholds() -> JumpReLU:
        return JumpReLU(torch.full((24,), 0.4))

    return convert(WRITERS[name], transcoder, ABOUT, wish=Wish(**wish), norm=norm, thresholds=thresholds)


@pytest.mark.parametrize(
    ("name", "rule", "exactness", "kept"),
    [
        ("saelens", TopK(5), "exact", "topk"),
        ("saelens", BatchTopK(5, 0.25), "exact", "jumprelu"),
        ("saelens", ReLU(), "exact", "relu"),
        ("saelens-jumprelu", TopK(5), "approximate", "jumprelu"),
        ("sparsify", TopK(5), "exact", "topk"),
        ("dictionary-learning", TopK(5), "exact up to rounding", "topk"),
        ("dictionary-learning", JumpReLU(torch.full((24,), 0.1)), "exact", "jumprelu"),
        ("dictionary-learning", BatchTopK(5, 0.25), "exact up to rounding", "batchtopk"),
        ("circuit-tracer", TopK(5), "approximate", "jumprelu"),
        ("circuit-tracer", BatchTopK(5, 0.25), "exact up to rounding", "jumprelu"),
        ("gemma-scope", JumpReLU(torch.full((24,), 0.1)), "exact up to rounding", "jumprelu"),
    ],
)
def test_a_conversion_says_whether_it_is_exact(name: str, rule: Rule, exactness: str, kept: str) -> None:
    found = converted(name, trained(rule))
    assert (found.exactness, found.transcoder.rule.name) == (exactness, kept)
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    if exactness != "approximate":
        seen = (source - NORM.bias) / NORM.gain if found.about.source_site == "ln2_normalized" else source
        torch.testing.assert_close(found.transcoder(seen), trained(rule)(source), atol=1e-5, rtol=1e-5)
        assert bool(found.steps) == (exactness != "exact" or kept != rule.name)


def test_the_input_is_that_of_the_tool_unless_the_user_names_one() -> None:
    assert converted("circuit-tracer", trained()).about.source_site == "ln2_normalized"
    of_the_user = converted("circuit-tracer", trained(), source_view="mlp_in")
    assert of_the_user.about.source_site == of_the_user.transcoder.source_view == "mlp_in"
    assert about_of(WRITERS["sparsify"], ABOUT, Wish()).source_site == "mlp_in"
    with pytest.raises(MismatchError, match="gain"):
        converted("circuit-tracer", trained(), norm=None)


def test_a_prefix_of_top_k_keeps_the_selection_and_zeroes_the_rest() -> None:
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    found = converted("saelens", trained(), prefix=10)
    assert found.prefix == {"of": 24, "size": 10, "made_by": found.prefix["made_by"]}
    assert "zero" in found.prefix["made_by"]
    assert found.transcoder.prefixes == (4, 10, 24)
    assert torch.equal(found.transcoder(source), trained()(source, prefix=10))
    assert torch.equal(trained().W_dec, converted("saelens", trained(), prefix=24).transcoder.W_dec)


def test_a_prefix_of_thresholds_is_cut() -> None:
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    rule = JumpReLU(torch.linspace(0, 0.5, 24))
    found = converted("saelens", trained(rule), prefix=10)
    assert (found.transcoder.dict_size, found.transcoder.prefixes) == (10, (4, 10))
    torch.testing.assert_close(found.transcoder(source), trained(rule)(source, prefix=10), atol=1e-6, rtol=1e-6)
    with pytest.raises(UsageError, match="not a prefix"):
        converted("saelens", trained(), prefix=11)


AUTOENCODER = About("gpt2", 8, "resid_post", "resid_post")


@pytest.mark.parametrize(
    ("name", "transcoder", "about", "problem", "remedy"),
    [
        ("saelens", trained(skip=True), ABOUT, "skip", "Export to saelens-jumprelu or sparsify or circuit-tracer."),
        ("dictionary-learning", trained(skip=True), ABOUT, "skip", "sparsify"),
        ("saelens", trained(d_target=5), ABOUT, "one width", "Export to saelens-jumprelu or gemma-scope."),
        ("sparsify", trained(d_target=5), ABOUT, "one width", "Export to saelens-jumprelu or gemma-scope."),
        ("sparsify", trained(ReLU()), ABOUT, "selects by topk", "Export to saelens or "),
        ("circuit-tracer", trained(), AUTOENCODER, "is an autoencoder", "dictionary-learning."),
        ("saelens", trained(), About("gpt2", 8, "resid_mid", "mlp_out"), "from resid_mid to mlp_out", ""),
    ],
)
def test_what_a_format_cannot_express_is_refused(
    name: str, transcoder: Transcoder, about: About, problem: str, remedy: str
) -> None:
    found = refusal(name, transcoder, about)
    assert found is not None
    assert problem in found.what
    assert remedy in found.remedy
    assert bool(found.remedy) == bool(remedy)
    assert name not in found.remedy.split("Export to ")[-1].rstrip(".").split(" or ")


def test_what_a_format_can_express_is_converted() -> None:
    for name in WRITERS:
        assert refusal(name, trained(), ABOUT) is None
    assert refusal("saelens-jumprelu", trained(skip=True, d_target=5), ABOUT) is None
