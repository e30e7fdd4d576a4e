"""`GroupAttention`: attention of a step that several instances compute together, layer by layer.

    1. queries go to the members that keep keys of their rows; meanwhile attention to own keys
    2. queries of others are answered from own keys: (output, log-sum-exp) in float32 goes back
    3. striped rows: the keys and values that each member has just computed, its chunk, pass all members in
       a ring, and each copies into its pool those tokens that it is to keep; attention to the chunk in hand
       while it is on its way to the next member
    4. the parts are merged by their log-sum-exp

A chunk lies in the form of the pool, in one buffer for all layers: the ring buffer. It is sent and received
in place, piece by piece, so that one chunk is all that a member ever holds beside its share.

Legend: T own tokens, S those of them that are of striped rows (they come first), Q queries on their way,
R rows, P pages, J tokens that are kept; others as in `plait.kernels.attention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plait.kernels import attention as kernels
from plait.kernels import transfer
from plait.model.dialogue import Dialogue, Script

Parts = list[tuple[Tensor, Tensor]]
"""Outputs [T, H, D] float32 with their log-sum-exps [T, H]."""


class Peers(Protocol):
    """The way to the other members."""

    room: int
    """Bytes that are sent without waiting for the reader."""
    layer: int
    """What is computed just now, for errors."""

    def push(self, member: int, x: Tensor) -> None:
        """Send a dense tensor, which stays as it is until the next `settle` returns."""

    def settle(self, receives: Sequence[tuple[int, Tensor]] = ()) -> None:
        """Return when all is on its way, and dense tensors are filled with what members sent."""

    def near(self, told: Sequence[int], heard: Sequence[int]) -> bool:
        """Whether there can be a dialogue in which some members are told something and others heard."""

    def dialogue(self, script: Script) -> Dialogue:
        """A step with members that are near, laid out."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one member computes of the striped rows, as it lies in the ring buffer."""

    blocks: int
    """Of the pool's form."""
    lens_R: Tensor
    """int32 tokens of each row."""
    tables_RP: Tensor
    """int32 blocks of each row."""
    from_J: Tensor
    """int32 slots of the chunk whose tokens this member keeps."""
    to_J: Tensor
    """int32 slots of its pool for them."""


@dataclass(frozen=True, slots=True)
class Stripes:
    """The striped rows: token i of a row's new ones is computed by member i modulo their number."""

    index: int
    """This member's place in the ring."""
    chunks: tuple[Chunk, ...]
    """Of each member, in ring order."""
    starts_R: Tensor
    """int32, R + 1 entries: own tokens of each row."""
    rows_R: Tensor
    """int32 0 .. R - 1."""
    places_S: Tensor
    """int64 which of its row's new tokens each own one is."""

    @property
    def tokens(self) -> int:
        """S."""
        return len(self.places_S)


@dataclass(frozen=True, slots=True)
class Question:
    """Own queries that another member answers from its keys."""

    member: int
    tokens_Q: Tensor
    """int64 indices of own tokens."""


@dataclass(frozen=True, slots=True)
class Service:
    """Queries of other members that this one answers, member after member."""

    counts: tuple[tuple[int, int], ...]
    """(member, queries)."""
    starts_R: Tensor
    """int32, R + 1 entries: queries of each row."""
    rows_R: Tensor
    """int32 rows of the step's tables."""
    lens_R: Tensor
    """int32 keys here of each row."""
    places_Q: Tensor
    """int64: each query sees keys up to this one."""


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """What a member does in a step besides computing its tokens. In its `StepInputs` rows and lengths speak
    of own keys only, slots of striped tokens are those of its chunk."""

    places_T: Tensor
    """int64: each own token sees own keys up to this one."""
    attends: bool
    """There are own keys that own tokens see."""
    stripes: Stripes | None = None
    questions: tuple[Question, ...] = ()
    service: Service | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """What one layer's attention is like; found out when it first runs."""

    heads: int
    scale: float
    window: int
    softcap: float
    dtype: torch.dtype
    """Of queries."""


class GroupAttention:
    """Of one model; all its layers share the ring buffer."""

    def __init__(self, page: int, threads: int) -> None:
        self._page, self._threads = page, threads
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @property
    def ring_bytes(self) -> int:
        """Memory of the ring buffer."""
        return self._buffer.nbytes

    def chunk(self, kv_BKXE: Tensor, stripes: Stripes) -> Tensor:
        """The ring buffer as a pool like this layer's, large enough for every member's chunk."""
        blocks = max(chunk.blocks for chunk in stripes.chunks)
        need = blocks * kv_BKXE[:1].nbytes
        if self._buffer.nbytes < need:
            self._buffer = torch.empty(need, dtype=torch.uint8)
        return self._buffer[:need].view(kv_BKXE.dtype).view(blocks, *kv_BKXE.shape[1:])

    def __call__(
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        form: Form,
        own: tuple[Tensor, ...] | None,
        together: "Together",
    ) -> tuple[Tensor, Tensor]:
        """Attention of own tokens, whose keys and values are stored already.

        Args:
            own: tables, rows, starts and lengths of own keys that own tokens may see, as `paged_partial`
                takes them; None where this member has no tokens of its own.

        Returns:
            (output [T, H, D] in the queries' type, log-sum-exp [T, H]).
        """
        group, peers = together.inputs, together.peers
        sent = [q_THD[question.tokens_Q] for question in group.questions]
        for question, queries_QHD in zip(group.questions, sent, strict=True):
            peers.push(question.member, queries_QHD)
        parts: Parts = []
        if group.attends:
            assert own is not None, "own keys are for own tokens"
            parts.append(self.partial(q_THD, kv_BKXE, form, (*own, group.places_T)))
        self._serve(q_THD.shape[2], kv_BKXE, form, group.service, peers, together.tables_RP)
        parts += self._answers(q_THD, group.questions, peers)
        if group.stripes is not None:
            parts += self._ring(q_THD, kv_BKXE, form, group.stripes, peers)
        if not len(q_THD):
            return q_THD, q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
        out_THD, lse_TH = parts[0] if len(parts) == 1 else _merged(parts)
        return out_THD.to(q_THD.dtype), lse_TH

    def partial(
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        form: Form,
        step: tuple[Tensor, ...],
        page: int | None = None,
        mask: tuple[int, int] = (0, 1),
    ) -> tuple[Tensor, Tensor]:
        """Attention to some keys: output [T, H, D] float32 and log-sum-exp [T, H].

        Args:
            step: tables, rows, starts, lengths and places, as `paged_partial` takes them.
            page: of the tables; None: the pool's.
            mask: position of the first key, and positions between two.
        """
        page = self._page if page is None else page
        return kernels.paged_partial(
            q_THD, kv_BKXE, *step, page, *mask, form.scale, form.softcap, self._threads
        )

    def _serve(
        self,
        size: int,
        kv_BKXE: Tensor,
        form: Form,
        service: Service | None,
        peers: Peers,
        tables_RP: Tensor,
    ) -> None:
        """Answer the queries of other members."""
        if service is None:
            peers.settle()
            return
        counts = [count for _, count in service.counts]
        q_QHD = torch.empty(sum(counts), form.heads, size, dtype=form.dtype)
        queries = [
            (member, part) for (member, _), part in zip(service.counts, q_QHD.split(counts), strict=True)
        ]
        peers.settle(queries)
        step = (tables_RP, service.rows_R, service.starts_R, service.lens_R, service.places_Q)
        out_QHD, lse_QH = self.partial(q_QHD, kv_BKXE, form, step)
        answers = zip(service.counts, out_QHD.split(counts), lse_QH.split(counts), strict=True)
        for (member, _), out, lse in answers:
            peers.push(member, out)
            peers.push(member, lse)

    def _answers(self, q_THD: Tensor, questions: Sequence[Question], peers: Peers) -> Parts:
        """What others say to own queries; own answers to them are under way after this."""
        receives, answers = [], []
        for question in questions:
            out = torch.empty(len(question.tokens_Q), *q_THD.shape[1:])
            lse = torch.empty(out.shape[:2])
            receives += [(question.member, out), (question.member, lse)]
            answers.append((question.tokens_Q, out, lse))
        peers.settle(receives)
        return [_spread(len(q_THD), *answer) for answer in answers]

    def _ring(self, q_THD: Tensor, kv_BKXE: Tensor, form: Form, stripes: Stripes, peers: Peers) -> Parts:
        """Attention of striped tokens to each chunk, as the chunks pass."""
        members, own = len(stripes.chunks), self.chunk(kv_BKXE, stripes)
        data, block_bytes = own.view(-1).view(torch.uint8), own[:1].nbytes
        q_SHD = q_THD[: stripes.tokens]
        following, previous = (stripes.index + 1) % members, (stripes.index - 1) % members
        total: tuple[Tensor, Tensor] | None = None
        for hop in range(members):
            at = (stripes.index - hop) % members
            chunk, last = stripes.chunks[at], hop + 1 == members
            here = data[: chunk.blocks * block_bytes]
            if not last:
                peers.push(following, here[: peers.room])
            transfer.carry_slots(own, chunk.from_J, kv_BKXE, chunk.to_J, q_THD.shape[2])
            if stripes.tokens and chunk.blocks:
                lanes = kernels.lanes_of(kv_BKXE, q_THD.shape[2])
                step = (chunk.tables_RP, stripes.rows_R, stripes.starts_R, chunk.lens_R, stripes.places_S)
                part = self.partial(q_SHD, own, form, step, lanes, (at, members))
                total = part if total is None else _merged([total, part])
            if not last:
                there = data[: stripes.chunks[(at - 1) % members].blocks * block_bytes]
                _shift(here, there, following, previous, peers)
        if total is None:
            return []
        if stripes.tokens == len(q_THD):
            return [total]
        return [_spread(len(q_THD), slice(0, stripes.tokens), *total)]


def _shift(here: Tensor, there: Tensor, following: int, previous: int, peers: Peers) -> None:
    """Send a chunk, whose first piece was pushed, and receive another one in its place.

    A piece fits the room of a link, so it can be sent as soon as the reader has taken the one before, which
    he does whatever happens here: nobody waits in a circle.
    """
    for begin in range(0, max(len(here), len(there)), peers.room):
        past = begin + peers.room
        if begin:
            peers.push(following, here[begin:past])
        peers.settle()
        peers.settle([(previous, there[begin:past])])


def _merged(parts: Parts) -> tuple[Tensor, Tensor]:
    return kernels.merge_attention([out for out, _ in parts], [lse for _, lse in parts])


def _spread(tokens: int, tokens_Q: Tensor | slice, out_QHD: Tensor, lse_QH: Tensor) -> tuple[Tensor, Tensor]:
    """A part that only some of the tokens have; the others see nothing in it."""
    if len(out_QHD) == tokens:
        return out_QHD, lse_QH  # indices ascend
    out_THD = torch.zeros(tokens, *out_QHD.shape[1:])
    lse_TH = torch.full((tokens, lse_QH.shape[1]), -torch.inf)
    out_THD[tokens_Q], lse_TH[tokens_Q] = out_QHD, lse_QH
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True)
class Together:
    """A step of a group, for the layers of one member."""

    inputs: GroupInputs
    peers: Peers
    tables_RP: Tensor
    """int32 pages of own keys of all rows that this member knows."""
    attention: GroupAttention
