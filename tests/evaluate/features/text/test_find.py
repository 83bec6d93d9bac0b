"""Finding features by their tokens and labels."""

from dataclasses import replace

from evaluate.features.text.find import find_features


def test_features_that_fire_on_the_token_come_first(toy) -> None:
    token = int(toy.evidence.arrays["on_token"][20, 0])
    named = replace(toy.evidence, words={**toy.evidence.words, token: " Xyzzy"})
    hits = find_features(named, "xyzz")
    assert 20 in [hit.feature for hit in hits]
    for hit in hits:
        column = toy.evidence.arrays["on_token"][hit.feature] == token
        assert hit.share == float((toy.evidence.arrays["on_share"][hit.feature] * column).sum())
    assert [hit.share for hit in hits] == sorted((hit.share for hit in hits), reverse=True)
    assert not find_features(named, "nothing has this")
