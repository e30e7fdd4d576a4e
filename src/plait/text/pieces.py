"""What each token adds to the text, as bytes, read from the tokenizer's own decoder.

Every decoder that language models use is a map from tokens to bytes, applied token by token, and a
rule for the start of the text. Knowing that map makes incremental decoding exact and O(1) a token.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plait.spec.errors import Unsupported

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Pieces:
    """The decoder of a tokenizer."""

    to_bytes: Callable[[str], bytes]
    """Bytes that a token (as spelled in the vocabulary) adds to the text."""
    trim_start: Callable[[bytes], bytes]
    """Applied to the first piece of a text that continues nothing."""


def read_pieces(decoder: Mapping[str, Any] | None) -> Pieces:
    """Read the `decoder` entry of a tokenizer.json.

    Raises:
        Unsupported: the decoder is not a map from tokens to bytes.
    """
    if decoder is None:
        return Pieces(lambda token: b" " + token.encode(), lambda piece: piece.removeprefix(b" "))
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        table = _byte_level_table()
        return Pieces(lambda token: _byte_level(token, table), _same)
    if kinds == ["Metaspace"]:
        mark, never = parts[0]["replacement"], parts[0].get("prepend_scheme") == "never"
        return Pieces(lambda token: token.replace(mark, " ").encode(), _same if never else _no_spaces)
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return _sentencepiece(parts)
    raise Unsupported(
        f"the tokenizer's decoder ({', '.join(kinds)}) is not supported; "
        "byte-level, Metaspace and SentencePiece-style decoders are"
    )


def _sentencepiece(parts: list[Mapping[str, Any]]) -> Pieces:
    replaced = [(p["pattern"].get("String", ""), p["content"]) for p in parts if p["type"] == "Replace"]
    strips = [p for p in parts if p["type"] == "Strip"]
    if any(not old for old, _ in replaced) or any(p["stop"] for p in strips):
        raise Unsupported("the tokenizer's decoder replaces by pattern or strips the end of the text")
    fallback = any(p["type"] == "ByteFallback" for p in parts)

    def to_bytes(token: str) -> bytes:
        byte = _BYTE.fullmatch(token) if fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    def trim_start(piece: bytes) -> bytes:
        for strip in strips:
            for _ in range(strip["start"]):
                piece = piece.removeprefix(strip["content"].encode())
        return piece

    return Pieces(to_bytes, trim_start)


def _byte_level_table() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str, table: Mapping[str, int]) -> bytes:
    # A token with any other character (an added token) is its own spelling.
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()


def _same(piece: bytes) -> bytes:
    return piece


def _no_spaces(piece: bytes) -> bytes:
    return piece.replace(b" ", b"")
