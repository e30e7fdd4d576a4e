"""Block hashes: what the core knows of a prompt's content."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise


def block_hashes(tokens: Sequence[int], block: int, salt: str) -> tuple[int, ...]:
    """Hash of each full block of `block` tokens, each chained to all before it.

    Args:
        tokens: a prompt.
        block: tokens in a block.
        salt: everything else that KV depends on: model, adapter, weights version, KV format.

    Returns:
        63-bit integers, one for each full block.
    """
    chain = hashlib.blake2b(salt.encode(), digest_size=8).digest()
    hashes = []
    for begin, end in pairwise(range(0, len(tokens) + 1, block)):
        body = b"".join(token.to_bytes(4, "little") for token in tokens[begin:end])
        chain = hashlib.blake2b(chain + body, digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "little") >> 1)
    return tuple(hashes)
