"""The metadata of a file."""

from dataclasses import replace

from transcoder.formats.about import About, words_in


def test_hooks_and_names(about: About) -> None:
    assert about.model_name == "gpt2"
    assert replace(about, model="models/gpt2-stdlib/").model_name == "gpt2-stdlib"
    assert (about.source_hook, about.target_hook) == ("blocks.8.mlp.hook_in", "blocks.8.hook_mlp_out")
    assert not about.is_autoencoder


def test_our_metadata_is_read_back_from_a_mapping_and_from_a_header(about: About) -> None:
    assert words_in(about.words()) == words_in(about.header()) == about.record
    for stored in (None, {}, {"nestcoder": "{"}, {"nestcoder": 7}, "text"):
        assert words_in(stored) == {}
