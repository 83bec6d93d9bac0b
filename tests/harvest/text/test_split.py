"""Which documents are held out: by their bytes and a seed alone."""

import xxhash

from harvest.text.split import document_hash, is_held_out

DOCUMENTS = [f"document {n}".encode() for n in range(4000)]


def test_a_document_is_held_out_by_its_hash_alone():
    for document in DOCUMENTS[:50]:
        by_hand = xxhash.xxh3_64_intdigest(document, seed=3) % 2**32 < 0.25 * 2**32
        assert is_held_out(document, fraction=0.25, seed=3) == by_hand
    assert document_hash(b"a") == xxhash.xxh3_64_intdigest(b"a", seed=0)


def test_the_share_is_the_fraction():
    share = sum(is_held_out(document, fraction=0.1, seed=0) for document in DOCUMENTS) / len(DOCUMENTS)
    # Five standard deviations of a binomial share.
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / len(DOCUMENTS)) ** 0.5
    assert not any(is_held_out(document, fraction=0.0, seed=0) for document in DOCUMENTS)
