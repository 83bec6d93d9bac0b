"""A transcoder: what it computes, and its gradients, against the definition in five lines of float64."""

import copy
import subprocess

import pytest
import torch
from torch import Tensor

from common.errors import UsageError
from transcoder import prefilter
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def small(*, skip: bool = False) -> Transcoder:
    arrays = random_arrays(6, 5, dict_size=32, skip=skip, seed=3, dtype=torch.float64)
    return Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32))


def test_every_prefix_is_the_bias_plus_its_own_features() -> None:
    dictionary, source = small(), torch.randn(7, 6, dtype=torch.float64)
    dictionary.b_dec.add_(0.3)
    selection = dictionary.sparse_code(source)
    pre = source @ dictionary.W_enc.T + dictionary.b_enc
    kept = torch.zeros_like(pre).scatter_(1, pre.topk(4).indices, 1.0)
    code = pre.relu() * kept
    for index, prefix in enumerate(dictionary.prefixes):
        expected = dictionary.b_dec + code[:, :prefix] @ dictionary.W_dec[:prefix]
        torch.testing.assert_close(dictionary.reconstruct(selection, source)[:, index], expected)


def test_a_skip_is_part_of_every_prefix() -> None:
    dictionary, source = small(skip=True), torch.randn(7, 6, dtype=torch.float64)
    before = dictionary.reconstruct(dictionary.sparse_code(source), source)
    assert dictionary.W_skip is not None
    dictionary.W_skip.fill_(0.5)
    after = dictionary.reconstruct(dictionary.sparse_code(source), source)
    torch.testing.assert_close(after - before, (source.sum(1, keepdim=True) * 0.5)[:, None].expand_as(after))


def test_groups_are_what_each_prefix_adds() -> None:
    assert small().groups == (range(8), range(8, 32))


def test_another_top_k_selects_as_many() -> None:
    selection = small().at_top_k(2).sparse_code(torch.randn(7, 6, dtype=torch.float64))
    assert selection.offsets.diff().tolist() == [2] * 7


PREFIXES = (8, 20, 48)


def make(*, skip: bool = False, threshold: float | None = None) -> Transcoder:
    weights = Transcoder(**random_arrays(10, 7, dict_size=48, skip=skip, seed=2), rule=TopK(5))
    weights.b_dec.add_(torch.linspace(-1, 1, 7))
    weights.b_enc.add_(0.1)
    if weights.W_skip is not None:
        weights.W_skip.add_(0.3)
    rule = TopK(5) if threshold is None else BatchTopK(5, threshold)
    return weights.replaced(rule=rule, prefixes=PREFIXES)


def sources(rows: int = 30) -> Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))


def defined(transcoder: Transcoder, source: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Code and reconstruction in five lines of float64."""
    W_enc, b_enc, W_dec, b_dec = (getattr(transcoder, name).double() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = source.double() @ W_enc.T + b_enc
    threshold = transcoder.rule.as_config().get("threshold")
    kept = pre >= pre.topk(5, dim=1).values[:, -1:] if threshold is None else pre > threshold
    a = pre.relu() * kept
    y = b_dec + a[:, :prefix] @ W_dec[:prefix]
    return a, y if transcoder.W_skip is None else y + source.double() @ transcoder.W_skip.double()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_is_the_definition(skip: bool, threshold: float | None, prefix: int) -> None:
    transcoder, source = make(skip=skip, threshold=threshold), sources()
    code, reconstruction = defined(transcoder, source, prefix)
    torch.testing.assert_close(transcoder.encode(source).double(), code, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(transcoder(source, prefix=prefix).double(), reconstruction, rtol=1e-5, atol=1e-5)
    decoded = transcoder.decode(code.float(), prefix=prefix, source=source)
    torch.testing.assert_close(decoded.double(), reconstruction, rtol=1e-5, atol=1e-5)


def test_a_truncated_transcoder_keeps_the_selection() -> None:
    transcoder, source = make(), sources()
    small = transcoder.truncate(20)
    torch.testing.assert_close(small.encode(source), transcoder.encode(source)[:, :20])
    torch.testing.assert_close(small(source), transcoder(source, prefix=20))
    torch.testing.assert_close(small.decode(small.encode(source)), small(source), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(small(source, prefix=8), transcoder(source, prefix=8))


@pytest.mark.parametrize("prefix", [0, 7, 49, -1])
def test_another_prefix_is_refused_naming_those_there_are(prefix: int) -> None:
    with pytest.raises(UsageError, match=r"\[8, 20, 48\]"):
        make().truncate(prefix)
    with pytest.raises(UsageError, match=r"it has \[8\]"):
        make().truncate(8)(sources(), prefix=20)


def test_decoding_with_a_skip_needs_the_source() -> None:
    with pytest.raises(UsageError, match="decode needs the source"):
        make(skip=True).decode(torch.zeros(3, 48))


def test_the_bias_is_never_subtracted_from_the_source() -> None:
    transcoder, source = make(), sources()
    shifted = transcoder.replaced(b_dec=transcoder.b_dec + 5.0)
    torch.testing.assert_close(shifted.encode(source), transcoder.encode(source))
    torch.testing.assert_close(shifted(source), transcoder(source) + 5.0)


def test_bfloat16_sources_are_taken() -> None:
    source = sources().bfloat16()
    torch.testing.assert_close(make().encode(source), make().encode(source.float()))


RULES = {
    "topk": TopK(5),
    "batchtopk": BatchTopK(5),
    "calibrated": BatchTopK(5, threshold=0.6),
    "jumprelu": JumpReLU(torch.linspace(0.1, 0.9, 48)),
    "relu": ReLU(),
}


def dense_code(transcoder: Transcoder, source: Tensor) -> Tensor:
    """Which features are active is fixed; their values are differentiated through plain products."""
    pre = source @ transcoder.W_enc.T + transcoder.b_enc
    return pre * (transcoder.select(source).dense(48).detach() > 0)


def gradients(value: Tensor, transcoder: Transcoder, source: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(value, [source, *transcoder.arrays().values()], allow_unused=True))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("what", ["encode", "decode", "forward"])
def test_gradients_are_those_of_the_dense_definition(rule: Rule, what: str) -> None:
    transcoder = make(skip=True).double().replaced(rule=rule, prefixes=PREFIXES)
    transcoder.requires_grad_()
    source = sources().double().requires_grad_()
    code = dense_code(transcoder, source)
    assert transcoder.W_skip is not None
    dense = transcoder.b_dec + code[:, :20] @ transcoder.W_dec[:20] + source @ transcoder.W_skip
    generator = torch.Generator().manual_seed(4)
    if what == "encode":
        weight = torch.randn(code.shape, generator=generator, dtype=torch.float64)
        found, expected = transcoder.encode(source), code
    else:
        weight = torch.randn(dense.shape, generator=generator, dtype=torch.float64)
        expected = dense
        decoded = transcoder.decode(dense_code(transcoder, source), prefix=20, source=source)
        found = transcoder(source, prefix=20) if what == "forward" else decoded
    pairs = zip(
        gradients((found * weight).sum(), transcoder, source),
        gradients((expected * weight).sum(), transcoder, source),
        strict=True,
    )
    for computed, expected in pairs:
        assert (computed is None) == (expected is None)
        if computed is not None and expected is not None:
            torch.testing.assert_close(computed, expected, rtol=1e-9, atol=1e-11)


def test_no_array_requires_a_gradient_unless_asked_for() -> None:
    transcoder = make()
    assert not transcoder(sources()).requires_grad
    assert transcoder.requires_grad_()(sources()).requires_grad


def test_a_transcoder_is_a_module() -> None:
    transcoder = make(skip=True).replaced(rule=JumpReLU(torch.linspace(0.1, 0.9, 48)))
    seen: list[int] = []
    handle = transcoder.rule.register_forward_hook(lambda _module, _inputs, code: seen.append(code.row_count))
    before = transcoder(sources())
    handle.remove()
    assert seen == [30]
    assert set(transcoder.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "rule.threshold"}
    copied = copy.deepcopy(transcoder).double()
    assert copied.rule.state_dict()["threshold"].dtype == torch.float64
    assert transcoder.W_enc.dtype == torch.float32
    zeroed = copy.deepcopy(transcoder)
    for array in zeroed.arrays().values():
        array.zero_()
    zeroed.load_state_dict(transcoder.state_dict())
    assert torch.equal(zeroed(sources()), before)


COMPILED = """
import torch
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays
transcoder = Transcoder(**random_arrays(10, 7, dict_size=48), rule=TopK(5), prefixes=(8, 20, 48))
source = torch.randn(30, 10, generator=torch.Generator().manual_seed(1))
compiled = torch.compile(transcoder, backend="eager")
torch.testing.assert_close(compiled(source), transcoder(source))
"""


def test_a_compiled_transcoder_computes_the_same(warm_python: str) -> None:
    """torch.compile traces it (without the checks of types); "eager" runs the graph without building kernels."""
    subprocess.run([warm_python, "-c", COMPILED], check=True, timeout=280)


def test_on_another_device_it_is_a_copy() -> None:
    transcoder = make()
    there = transcoder.on("meta")
    assert there.W_enc.is_meta
    assert not transcoder.W_enc.is_meta
    assert transcoder.on("cpu").W_enc.data_ptr() == transcoder.W_enc.data_ptr()


def test_a_change_of_the_encoder_changes_the_code_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefilter is kept between calls, and made again after the arrays changed in place."""
    monkeypatch.setattr(prefilter, "_MIN_DICT_SIZE", 512)
    monkeypatch.setattr(prefilter, "_multiplies_bfloat16", lambda: True)
    transcoder = Transcoder(**random_arrays(24, 4, dict_size=512, seed=1), rule=TopK(8))
    source = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert prefilter.prefilter_of(transcoder.W_enc, transcoder.b_enc, transcoder.rule)
    for _ in range(2):
        expected = transcoder.select(source.float()).dense(512)
        torch.testing.assert_close(transcoder.sparse_code(source).dense(512), expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            transcoder.W_enc.copy_(transcoder.W_enc.flip(0))
