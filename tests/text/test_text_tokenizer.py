import json

import pytest

from plait.spec.errors import NotFound, Unsupported, UserError
from plait.text.chat_template import ChatTemplate
from plait.text.tokenizer import Tokenizer

TEMPLATE = """\
{% for message in messages %}
{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}
    {% if not loop.last %}
--
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}"""
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]


@pytest.fixture
def folder(tmp_path, byte_tokenizer: Tokenizer):
    byte_tokenizer._raw.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def test_a_folder_is_read(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == (7, tokenizer.token_id("<|end|>"))
    assert tokenizer.special_tokens == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    assert tokenizer.decode(tokenizer.encode("naïve 東京")) == "naïve 東京"


def test_generation_config_names_the_end_tokens(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert Tokenizer.load(folder).eos_ids[:2] == (3, 4)


def test_named_templates_have_a_default(folder):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.load(folder).render_chat(TALK) == "yes"


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match="save_pretrained"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(folder)


def test_an_unknown_decoder_is_refused(folder):
    value = json.loads((folder / "tokenizer.json").read_text())
    value["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(Unsupported, match="WordPiece"):
        Tokenizer.load(folder)


def test_without_a_template_there_is_no_chat(byte_tokenizer):
    with pytest.raises(UserError, match="/v1/completions"):
        byte_tokenizer.render_chat(TALK)


@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
)
def test_chat_is_rendered_as_transformers_does(folder, options):
    transformers = pytest.importorskip("transformers")
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|start|>"
    )
    expected = peer.apply_chat_template(TALK, chat_template=TEMPLATE, tokenize=False, **options)
    assert Tokenizer.load(folder).render_chat(TALK, **options) == expected


def test_template_tools_and_extra_variables():
    template = ChatTemplate("{{ tools | tojson }} {{ think }} {% generation %}x{% endgeneration %}", {})
    text = template.render(TALK, tools=[{"name": "é<b>"}], extra={"think": 1})
    assert text == '[{"name": "é<b>"}] 1 x'


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no system') }}", "{{ messages[9].x.y }}", "{{ 1 / 0 }}"]
)
def test_a_template_may_refuse(source):
    with pytest.raises(UserError, match="refused the messages"):
        ChatTemplate(source, {}).render(TALK)


def test_templates_have_no_hands():
    attack = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError):
        ChatTemplate(attack, {}).render(TALK)


def test_a_template_with_a_syntax_error_is_refused():
    with pytest.raises(UserError, match="compiled"):
        ChatTemplate("{% for %}", {})


def test_a_final_message_that_is_not_shown_cannot_be_continued():
    with pytest.raises(UserError, match="cannot be continued"):
        ChatTemplate("nothing", {}).render(TALK, add_generation_prompt=False, continue_final_message=True)
