"""What a row must contain, and that no name from a file controls a terminal."""

import pytest

from harvest.text.rows import BadRowError, RowReader, check_text, is_chat, printable


def test_a_row_gives_its_column():
    assert RowReader("text").content({"text": "a", "other": 1}) == "a"
    assert RowReader("text").content({"text": None}) == ""
    assert RowReader("ids", "tokens").content({"ids": [1, 2]}) == [1, 2]
    assert RowReader("ids", "tokens").content({"ids": None}) == []


@pytest.mark.parametrize("row", [[1, 2], "text", 5, None])
def test_a_row_without_columns(row):
    with pytest.raises(BadRowError, match="not an object with columns"):
        RowReader("text").content(row)


def test_ids_must_be_numbers_of_32_bits_even_without_a_vocabulary():
    with pytest.raises(BadRowError, match="is not one of 0 to 2147483647"):
        RowReader("ids", "tokens").content({"ids": [1 << 31]})


@pytest.mark.parametrize(
    ("value", "setting"),
    [
        ([{"role": "user", "content": "a"}], "harvest.messages_column"),
        ([1, 2], "harvest.tokens_column"),
        (["a", "b"], "Join"),
        (7, "harvest.text_column"),
    ],
)
def test_a_row_that_is_no_text_is_refused_with_the_settings_that_would_read_it(value, setting):
    with pytest.raises(BadRowError) as raised:
        check_text(value, "text")
    assert setting in raised.value.remedy


def test_a_template_that_refuses_is_a_bad_row():
    def render(_):
        raise ValueError("roles must\x1b[31m alternate")

    with pytest.raises(BadRowError, match=r"roles must\\x1b\[31m alternate"):
        RowReader("talk", "messages", render=render).content({"talk": [{"role": "user", "content": "a"}]})


def test_a_chat_is_a_list_of_messages():
    assert is_chat([{"role": "user", "content": "a"}])
    assert not any(is_chat(value) for value in ([], [{"role": "user"}], ["a"], "a", None))
    assert printable("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
