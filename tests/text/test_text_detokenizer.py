import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.text.detokenizer import Detokenizer
from plait.text.tokenizer import Tokenizer

shared_tokenizer = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """`ids` in pieces of the given sizes, the rest one by one."""
    bounds = [0, *itertools.accumulate(sizes), *range(sum(sizes) + 1, len(ids) + 1)]
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


@shared_tokenizer
@given(data=st.data(), sizes=st.lists(st.integers(0, 4)), skip=st.booleans())
def test_pieces_join_to_the_full_decode(tokenizer: Tokenizer, data, sizes, skip):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2)))
    detokenizer = Detokenizer(tokenizer, skip, continues=False)
    texts = [detokenizer.push(part) for part in cut(ids, sizes)]
    assert "".join(texts) + detokenizer.flush() == tokenizer.decode(ids, skip)


@shared_tokenizer
@given(data=st.data(), skip=st.booleans())
def test_decode_equals_the_library(byte_tokenizer: Tokenizer, data, skip):
    ids = data.draw(st.lists(st.integers(0, byte_tokenizer.vocab_size - 1)))
    assert byte_tokenizer.decode(ids, skip) == byte_tokenizer._raw.decode(ids, skip_special_tokens=skip)


@shared_tokenizer
@given(data=st.data())
def test_decode_equals_the_library_for_every_kind_where_bytes_are_characters(tokenizer: Tokenizer, data):
    # Of a run of byte tokens that is no UTF-8 the library shows one U+FFFD a byte; we show what is readable.
    words = [id for id in range(tokenizer.vocab_size) if not tokenizer.token(id).startswith("<0x")]
    ids = data.draw(st.lists(st.sampled_from(words)))
    assert tokenizer.decode(ids) == tokenizer._raw.decode(ids, skip_special_tokens=False)


@shared_tokenizer
@given(text=st.text())
def test_text_survives_encode_and_push(byte_tokenizer: Tokenizer, text):
    detokenizer = Detokenizer(byte_tokenizer, skip_special_tokens=False)
    parts = [detokenizer.push([id]) for id in byte_tokenizer.encode(text)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts), "half a character was shown"
    assert "".join(parts) + detokenizer.flush() == text


@pytest.mark.parametrize("tokenizer", ["sentencepiece"], indirect=True)
def test_byte_fallback_spells_characters(tokenizer: Tokenizer):
    ids = tokenizer.encode("the 東 fox")
    assert tokenizer.decode(ids) == tokenizer._raw.decode(ids) == "the 東 fox"


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "metaspace"], indirect=True)
def test_a_continued_text_keeps_its_leading_space(tokenizer: Tokenizer):
    the = tokenizer.token_id("▁the")
    assert Detokenizer(tokenizer).push([the]) == " the"
    assert Detokenizer(tokenizer, continues=False).push([the]) == "the"


def test_an_unfinished_character_comes_out_at_the_end(byte_tokenizer: Tokenizer):
    ids = byte_tokenizer.encode("🚀")
    assert len(ids) > 1
    detokenizer = Detokenizer(byte_tokenizer)
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.flush() == "\ufffd"
