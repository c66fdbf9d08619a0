"""Training rows: one picture and several questions in a single sequence, behind a block mask.

    [prefix with 49 image tokens | question 1 | answer 1a | answer 1b | question 2 | answer 2 | ...]

Every question sees the prefix, every answer sees the prefix and its question, and positions start anew after the
picture: each answer is computed as if it stood alone, and the picture is computed once. numpy only.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from grit_lite.answer import GRIT_PROMPT
from grit_lite.tiny.build import GRID
from grit_lite.tiny.questions import Asked, Pieces, box_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKENS = GRID * GRID
PREFIX = 0  # the segment that everyone sees
IGNORE = -100
TURN, NEXT_TURN = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"

# Shares of the ways to answer under the GRIT prompt. They decide the model's habits before GRPO-GR:
# greedy answers are direct, one sample in ten is a full chain, the rest are the wrong forms a model would produce.
STYLES = {
    "direct": 0.45,
    "answer_tag_only": 0.05,
    "boxes_only": 0.12,
    "think_only": 0.22,
    "no_boxes": 0.03,
    "no_rethink": 0.02,
    "full": 0.11,
}
# Loss weights by role. Style answers weigh all tokens alike, so that the shares above are learned undistorted; chains
# weigh nothing that decides the form, so that they teach what comes after a form without making it more frequent.
STYLE_WEIGHTS = {"style": 0.5, "filler": 0.5, "content": 0.5, "coordinate": 0.5, "verdict": 0.5}
CHAIN_WEIGHTS = {"style": 0.0, "filler": 0.2, "content": 1.0, "coordinate": 1.0, "verdict": 2.0}
DIRECT_WEIGHTS = {"style": 0.2, "filler": 0.2, "content": 0.5, "coordinate": 1.0, "verdict": 2.0}
READING_WEIGHTS = {"style": 0.0, "filler": 0.0, "content": 0.3, "coordinate": 0.0, "verdict": 2.0}


def full_chain(asked: Asked) -> Pieces:
    """The full GRIT answer to a question."""
    return (
        *(("<think>", "style"), *asked.sought, *asked.found, (" </think> <rethink>", "style"), *asked.concluded),
        *((" </rethink> <answer>", "style"), (f" {asked.answer}", "verdict")),
    )


def styled(asked: Asked, style: str) -> Pieces:
    """An answer in one of the forms of STYLES."""
    answer: Pieces = ((f" {asked.answer}", "verdict"),)
    if style == "direct":
        return ((asked.answer, "verdict"),)
    if style == "answer_tag_only":
        return (("<answer>", "style"), *answer)
    if style == "boxes_only":
        listed = [
            piece
            for box, label in zip(asked.boxes, asked.labels, strict=True)
            for piece in (*box_pieces(box, label), (", ", "filler"))
        ]
        return (*listed[:-1], *answer) if listed else ((asked.answer, "verdict"),)
    think = (("<think>", "style"), *asked.sought)
    if style == "think_only":
        return (*think, (" </think>", "style"), *answer)
    if style == "no_boxes":
        middle: Pieces = (*((" </think> <rethink>", "style"), *asked.concluded), (" </rethink> <answer>", "style"))
        return (*think, *middle, *answer)
    if style == "no_rethink":
        return (*think, *asked.found, (" </think> <answer>", "style"), *answer)
    return full_chain(asked)


def direct_answer(asked: Asked) -> Pieces:
    """The answer without a chain: a word, a number, or for where-questions the boxes."""
    if asked.kind != "where":
        return ((asked.answer, "verdict"),)
    pieces: list = []
    for box, label in zip(asked.boxes, asked.labels, strict=True):
        pieces += [*box_pieces(box, label), (", ", "content")]  # whether another box follows is content
    return tuple(pieces[:-1])


@dataclass
class Row:
    """One sequence. `labels[i]` is what position i has to predict; -100 for nothing."""

    ids: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    coordinates: list[bool] = field(default_factory=list)
    marks: list[tuple[str, int, int]] = field(default_factory=list)  # what [start, end) of the row is, for validation
    next_position: int = 0

    def add(self, ids: Sequence[int], parent: int, start: int, labels: list[int], weights: list[float]) -> int:
        """Append a segment whose positions begin at `start`; returns its number."""
        number = max(self.segments, default=-1) + 1
        size = len(ids)
        self.ids += ids
        self.positions.append(np.broadcast_to(np.arange(start, start + size), (3, size)))
        self.segments += [number] * size
        self.parents += [parent] * size
        self.labels += labels
        self.weights += weights
        self.coordinates += [False] * size
        return number


class Packer:
    """Turns asked questions into rows with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self.encode = functools.lru_cache(maxsize=50_000)(self._encode)
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.turn = self._encode(TURN)
        opening = self._encode("<|im_start|>user\n<|vision_start|>")
        self.image_start = len(opening)
        image, close = (tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|vision_end|>"))
        self.image_prefix = [*opening, *[image] * IMAGE_TOKENS, close]
        self.text_prefix = self._encode("<|im_start|>user\n")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def image_row(self) -> Row:
        """A row that holds the picture; positions follow Qwen3-VL: the picture counts as GRID steps, in two axes."""
        row, start = Row(), self.image_start
        size = len(self.image_prefix)
        row.add(self.image_prefix, PREFIX, 0, [IGNORE] * size, [0.0] * size)
        cell = np.arange(IMAGE_TOKENS)
        image = np.stack([np.zeros(IMAGE_TOKENS, int), cell // GRID, cell % GRID]) + start
        before, after = np.arange(start), np.array([start + GRID])
        row.positions = [np.concatenate([np.stack([before] * 3), image, np.stack([after] * 3)], axis=1)]
        row.next_position = start + GRID + 1
        return row

    def text_row(self) -> Row:
        row, size = Row(), len(self.text_prefix)
        row.add(self.text_prefix, PREFIX, 0, [IGNORE] * size, [0.0] * size)
        row.next_position = size
        return row

    def ask(self, row: Row, question: str, answers: Sequence[tuple[str, Pieces, dict[str, float]]]) -> None:
        """Append a rendered question and its answers (mark, pieces, weights by role), each answer alone behind it."""
        prompt = [*self.encode(question), *self.turn]
        size = len(prompt)
        node = row.add(prompt, PREFIX, row.next_position, [IGNORE] * size, [0.0] * size)
        at = len(row.ids) - 1
        for mark, pieces, weights in answers:
            ids, role_weights, coordinates = self._answer(pieces, weights)
            # The question's last position predicts every answer's first token, but it has one label: the answer that
            # gives it a weight of its own gets it. Chains give none.
            if role_weights[0] > row.weights[at]:
                row.labels[at], row.weights[at] = ids[0], role_weights[0]
                row.coordinates[at] = coordinates[0]
            first = len(row.ids)
            row.add(ids[:-1], node, row.next_position + size, ids[1:], role_weights[1:])
            row.coordinates[first:] = coordinates[1:]
            row.marks.append((mark, first, len(row.ids)))

    def _answer(self, pieces: Pieces, weights: dict[str, float]) -> tuple[list[int], list[float], list[bool]]:
        """Token ids with the closing token, loss weights, and which of them are coordinates."""
        text = "".join(piece for piece, _ in pieces)
        roles = [role for piece, role in pieces for _ in piece]
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        token_roles = [*(roles[start] for start, _ in encoding.offsets), "filler"]
        ids = [*encoding.ids, self.end]
        return ids, [weights[role] for role in token_roles], [role == "coordinate" for role in token_roles]

    def ask_directly(self, row: Row, asked: Asked) -> None:
        question = GRIT_PROMPT.render(asked.question, style="direct")
        # A direct relation answer stays a guess at this size: its noise gets a small weight.
        weights = STYLE_WEIGHTS if asked.kind == "relation" else DIRECT_WEIGHTS
        self.ask(row, question, [(asked.kind, direct_answer(asked), weights)])

    def ask_grounded(self, row: Row, asked: Asked, rng: np.random.Generator) -> None:
        """The GRIT prompt with one answer in a drawn style, one full chain, and for relations boxes then answer."""
        style = str(rng.choice(list(STYLES), p=list(STYLES.values())))
        answers = [
            ("style", styled(asked, style), STYLE_WEIGHTS),
            (f"chain_{asked.kind}", full_chain(asked), CHAIN_WEIGHTS),
        ]
        if asked.kind == "relation":  # two bare boxes have to be enough to answer from
            answers.append(("chain_boxes", styled(asked, "boxes_only"), CHAIN_WEIGHTS))
        self.ask(row, GRIT_PROMPT.render(asked.question), answers)

    def ask_to_read(self, row: Row, asked: Asked, style: Literal["grounded", "direct"], filler: float = 0.0) -> None:
        """A chain about boxes that nobody drew, behind either prompt: what is read from the coordinates counts.

        `filler` is the loss weight of what follows from the form.
        """
        question = GRIT_PROMPT.render(asked.question, style=style)
        self.ask(row, question, [("reading", full_chain(asked), {**READING_WEIGHTS, "filler": filler})])

    def ask_to_compare(self, row: Row, asked: Asked) -> None:
        """A question that tells the boxes itself; the answer is a bare yes or no."""
        told = "".join(text for text, _ in asked.found).strip()
        question = GRIT_PROMPT.render(f"{told} {asked.question}", style="direct")
        self.ask(row, question, [("told", direct_answer(asked), READING_WEIGHTS)])

    def ask_in_turns(self, row: Row, earlier: Sequence[Asked], asked: Asked) -> None:
        """A conversation: the earlier questions stand there with their answers, and one more; only that one counts."""
        questions = [GRIT_PROMPT.render(one.question, style="direct") for one in (*earlier, asked)]
        answered = (f"{q}{TURN}{one.answer}{NEXT_TURN}" for q, one in zip(questions, earlier, strict=False))
        self.ask(row, "".join(answered) + questions[-1], [("turns", direct_answer(asked), READING_WEIGHTS)])

    def ask_to_match(self, row: Row, asked: Asked) -> None:
        """A chain without boxes: only whether what it states is what was asked counts."""
        question = GRIT_PROMPT.render(asked.question, style="direct")
        pieces = styled(asked, "no_boxes")
        stated: Pieces = tuple((text, "filler" if role == "verdict" else role) for text, role in pieces[:-1])
        self.ask(row, question, [("matching", (*stated, pieces[-1]), READING_WEIGHTS)])


@dataclass
class Blocks:
    """Questions of about one length, with their answers: what attention computes in one call.

    index: (n, S) places in the flat sequence, padded with 0; real: (n, S) bool; row: (n,) whose prefix it sees;
    mask: (n, 1, S, P + S) bool, the prefix first.
    """

    index: np.ndarray
    real: np.ndarray
    row: np.ndarray
    mask: np.ndarray


@dataclass
class Batch:
    """Rows laid end to end, N tokens without padding, and who sees whom.

    ids, labels, weights, coordinates: (N,); positions: (3, 1, N); prefix: (B, P) places of the rows' prefixes.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    coordinates: np.ndarray
    prefix: np.ndarray
    blocks: list[Blocks]


_BUCKETS = (24, 36, 64, 112, 10_000)  # block lengths that are padded to one length together


def lay_out(rows: Sequence[Row]) -> Batch:
    """The rows as one flat batch; all of them have to have a picture, or all none."""
    prefix_size = rows[0].segments.count(0)
    starts = np.cumsum([0, *(len(row.ids) for row in rows[:-1])])
    buckets: dict[int, list[tuple[int, int, int]]] = {}
    for k, row in enumerate(rows):
        for first, end in _blocks_of(row):
            size = next(limit for limit in _BUCKETS if end - first <= limit)
            buckets.setdefault(size, []).append((k, first, end))
    return Batch(
        ids=np.array([token for row in rows for token in row.ids]),
        positions=np.concatenate([part for row in rows for part in row.positions], axis=1)[:, None],
        labels=np.array([label for row in rows for label in row.labels]),
        weights=np.array([weight for row in rows for weight in row.weights], np.float32),
        coordinates=np.array([is_one for row in rows for is_one in row.coordinates]),
        prefix=starts[:, None] + np.arange(prefix_size),
        blocks=[_bucket(rows, starts, members, prefix_size) for members in buckets.values()],
    )


def _blocks_of(row: Row) -> Iterator[tuple[int, int]]:
    """[first, end) of every question with its answers."""
    is_question = np.array(row.parents) == PREFIX
    number = np.array(row.segments)
    firsts = np.flatnonzero(is_question & (number != PREFIX) & (np.diff(number, prepend=-1) != 0))
    yield from itertools.pairwise([*firsts.tolist(), len(row.ids)])


def _bucket(rows: Sequence[Row], starts: np.ndarray, members: list[tuple[int, int, int]], prefix_size: int) -> Blocks:
    longest = max(end - first for _, first, end in members)
    index, real = np.zeros((len(members), longest), np.int64), np.zeros((len(members), longest), bool)
    mask = np.zeros((len(members), 1, longest, prefix_size + longest), bool)
    mask[..., :prefix_size] = True
    for n, (k, first, end) in enumerate(members):
        size = end - first
        index[n, :size], real[n, :size] = starts[k] + np.arange(first, end), True
        seen = block_mask(np.array(rows[k].segments[first:end]), np.array(rows[k].parents[first:end]))
        mask[n, 0, :size, prefix_size : prefix_size + size] = seen
    return Blocks(index, real, np.array([k for k, _, _ in members]), mask)


def block_mask(segments: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(L, L) bool: a token sees, up to itself, the prefix, its own segment and its segment's parent."""
    query, key = segments[:, None], segments[None, :]
    sees = (key == PREFIX) | (key == query) | (key == parents[:, None])
    return sees & np.tri(len(segments), dtype=bool)
