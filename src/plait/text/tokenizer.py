"""A model folder's tokenizer, on the `tokenizers` library alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from plait.spec.errors import NotFound, Unsupported, UserError
from plait.text.chat_template import ChatTemplate
from plait.text.pieces import read_pieces


class Tokenizer:
    """Text to token ids and back, special tokens and the chat template. Safe to share by threads."""

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> None:
        """`special_tokens`: name (`eos_token`, ...) to text.

        Raises:
            Unsupported: the decoder cannot be carried.
        """
        self._raw = raw
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._template = None if chat_template is None else ChatTemplate(chat_template, self.special_tokens)
        added = raw.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)
        vocabulary = raw.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """One more than the largest token id."""
        pieces = read_pieces(json.loads(raw.to_str())["decoder"])
        self._trim_start = pieces.trim_start
        self._pieces = [b""] * self.vocab_size
        for token, id in vocabulary.items():
            self._pieces[id] = pieces.to_bytes(token)
        self.eos_ids = self._with_own_eos(eos_ids)
        """Tokens that end the model's text, in order of mention."""

    @classmethod
    def load(cls, folder: str | Path, chat_template: Path | None = None) -> "Tokenizer":
        """Read tokenizer.json and what stands beside it, and another chat template if one is given.

        Raises:
            NotFound: the folder has no tokenizer.json, or there is no such template.
            UserError: a file cannot be read.
            Unsupported: the decoder cannot be carried.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise NotFound(
                f"{folder} has no tokenizer.json; save one there with "
                "transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
            )
        try:
            raw = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} cannot be read as a tokenizer: {error}") from error
        raw.no_truncation()
        raw.no_padding()
        config = _read(folder / "tokenizer_config.json")
        names = _read(folder / "special_tokens_map.json") | config
        source, template = _chat_template(folder, config, chat_template)
        try:
            return cls(
                raw,
                special_tokens=_special_tokens(names),
                eos_ids=_eos_ids(folder / "generation_config.json", folder / "config.json"),
                chat_template=template,
            )
        except Unsupported:
            raise
        except UserError as error:  # only a template can be at fault
            raise UserError(f"{source}: {error}") from error

    def serialised(self) -> str:
        """What tokenizer.json has, without truncation and padding."""
        return self._raw.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Releases the interpreter lock while it works."""
        return self._raw.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of a whole row of tokens. Unknown ids add nothing, bytes outside UTF-8 become U+FFFD."""
        shown = [id for id in ids if self.piece(id) and not (skip_special_tokens and id in self._special)]
        pieces = [self.piece(id) for id in shown]
        pieces[:1] = [self.first_piece(id) for id in shown[:1]]
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, id: int) -> bytes:
        """Bytes that a token adds to a text; part of a character is possible."""
        return self._pieces[id] if 0 <= id < self.vocab_size else b""

    def first_piece(self, id: int) -> bytes:
        """The same at the start of a text, where some tokenizers drop a leading space."""
        return self._trim_start(self.piece(id))

    def token_text(self, id: int) -> str:
        """One token as text, to show beside its log-probability."""
        return self.piece(id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """Id of a token as spelled in the vocabulary."""
        return self._raw.token_to_id(token)

    def token(self, id: int) -> str:
        """A token as spelled in the vocabulary; empty if there is none of this id."""
        return self._raw.id_to_token(id) or ""

    def is_special(self, id: int) -> bool:
        """Special tokens may be left out of the text."""
        return id in self._special

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt for a conversation; options of `ChatTemplate.render`.

        Raises:
            UserError: the model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise UserError(
                "this model has no chat template, so it cannot chat: use /v1/completions, "
                "or put a chat_template.jinja into its folder",
                "messages",
            )
        return self._template.render(messages, **options)

    def _with_own_eos(self, eos_ids: Sequence[int]) -> tuple[int, ...]:
        own = self.token_id(self.special_tokens.get("eos_token", ""))
        return tuple(dict.fromkeys([*eos_ids, *([] if own is None else [own])]))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _special_tokens(names: Mapping[str, Any]) -> dict[str, str]:
    """`eos_token` and the like, given as text or as an object with its text in `content`."""
    found = {}
    for name, value in names.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _eos_ids(*files: Path) -> tuple[int, ...]:
    """Of the first file that says anything of them."""
    for path in files:
        told = _read(path)
        if "eos_token_id" not in told:
            continue
        value = told["eos_token_id"]
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(id) is int for id in ids):
            raise UserError(f"{path}: eos_token_id is {value!r:.100}: write a token id, or a list of them")
        return tuple(ids)
    return ()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise NotFound(f"the chat template {path} cannot be read: {error}", "chat_template") from error


def _chat_template(folder: Path, config: Mapping[str, Any], given: Path | None) -> tuple[Path, str | None]:
    """Where it stands, and the template. A given one wins over the file, that over tokenizer_config.json,
    where a list of named templates has a `default`."""
    if given is not None:
        return given, _text(given)
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            return path, path.read_text("utf-8")
        path = folder / "tokenizer_config.json"
        value: str | list[dict[str, str]] | None = config.get("chat_template")
        if isinstance(value, list):
            value = {entry["name"]: entry["template"] for entry in value}.get("default")
    except (UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} has a chat template that cannot be read: {error!r}") from error
    if not isinstance(value, str | None):
        raise UserError(f"{path}: chat_template is no text: write one, or put it into chat_template.jinja")
    return path, value
