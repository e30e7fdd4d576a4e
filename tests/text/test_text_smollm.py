"""The default model's own tokenizer, against the libraries that it comes from."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.spec.errors import UserError
from plait.text.detokenizer import Detokenizer
from plait.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model
TALK = [
    {"role": "user", "content": "Hallo, wie geht's? 你好 🙂"},
    {"role": "assistant", "content": "Gut."},
    {"role": "user", "content": "And in Greek: καλά?"},
]


@pytest.fixture(scope="module")
def folder():
    from plait.model.hub import resolve

    try:
        return resolve("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the default model cannot be had: {error}")


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_what_the_library_decodes(tokenizer, data, skip):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    detokenizer = Detokenizer(tokenizer, skip)
    text = "".join(detokenizer.push([id]) for id in ids) + detokenizer.flush()
    assert text == tokenizer._raw.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text=st.text())
def test_text_comes_back_as_from_the_library(tokenizer, text):
    # Not always as it went in: this vocabulary lacks a few bytes of rare planes.
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == tokenizer._raw.decode(ids, skip_special_tokens=False)


def test_chat_and_end_tokens_are_those_of_transformers(tokenizer, folder):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = peer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render_chat(TALK) == expected
    assert tokenizer.encode(expected, add_special_tokens=False) == peer.encode(
        expected, add_special_tokens=False
    )
    assert peer.eos_token_id in tokenizer.eos_ids
