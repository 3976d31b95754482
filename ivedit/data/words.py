"""Which text goes where for each pair of a batch: target, gate and source text, dropout, null edits, shuffled gates.

All texts of a split become numbers once (0 is the empty text), so that a batch's choices are a few array look-ups
and each different text is encoded and kept once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivedit.config import TextConfig
from ivedit.data import order
from ivedit.data.images import names_a_side
from ivedit.data.record import PairReader
from ivedit.data.table import some
from ivedit.errors import ConfigError

__all__ = ["Picked", "Words"]

Ints = NDArray[np.int64]
EMPTY = 0


@dataclass(frozen=True)
class Picked:
    """Choices for B pairs.

    Attributes:
        target, gate, source: (B,) numbers of texts in `Words.unique`.
        null: (B,) bool, null edits: the source image is its own target, and target and gate text are empty.
        mirrored: (B,) bool.
    """

    target: Ints
    gate: Ints
    source: Ints
    null: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]


class Words:
    """The texts of one split and the rules of `text.*` and `data.null_edits`.

    Args:
        reader: Gives the texts; its seed decides every draw.
        text: What goes where.
        null_edits: Share of null edits.
        training: Without it (validation) there is no dropout, no null edit and no mirroring.

    Raises:
        ConfigError: captions are wanted that the pairs do not have, or all pairs have one instruction and
            text.gate=shuffled.
    """

    def __init__(self, reader: PairReader, text: TextConfig, null_edits: float, *, training: bool) -> None:
        self.text = text
        self.reader = reader
        self.seed = reader.seed
        self.dropout = text.dropout if training else 0.0
        self.null_edits = null_edits if training else 0.0
        self.unique: list[str] = [""]
        self._numbers: dict[str, int] = {"": EMPTY}
        records = reader.texts(range(len(reader)))
        self.ids = [record.id for record in records]
        # A row without any instruction is a bad record and never trained on; it still needs one number here.
        instructions = [record.instructions or ("",) for record in records]
        self.counts = np.array([len(several) for several in instructions], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])[:-1]
        self.instructions = self._number([one for several in instructions for one in several])
        self.captions: Ints | None = None
        if text.target == "target_caption":
            missing = [record.id for record in records if not record.target_caption]
            if missing:
                raise ConfigError(
                    f"text.target=target_caption, but {len(missing)} pairs have no target caption ({some(missing)}); "
                    "for a folder, name its column in data.columns.target_caption"
                )
            self.captions = self._number([record.target_caption or "" for record in records])
        self.sided = (
            np.array([names_a_side(record) for record in records]) if training and reader.flip > 0 else None
        )
        if text.gate == "shuffled" and len({one for several in instructions for one in several if one}) < 2:
            raise ConfigError("text.gate=shuffled needs pairs with different instructions; these all say the same")
        self._partners: tuple[int, Ints] | None = None

    def _number(self, texts: Sequence[str]) -> Ints:
        for text in texts:
            if text not in self._numbers:
                self._numbers[text] = len(self.unique)
                self.unique.append(text)
        return np.array([self._numbers[text] for text in texts], dtype=np.int64)

    def _instruction(self, epoch: int, indices: Ints, keys: Ints | None = None) -> Ints:
        choice = order.choose(
            self.seed, "instruction", epoch, indices if keys is None else keys, self.counts[indices]
        )
        return self.instructions[self.starts[indices] + choice]

    def _partner(self, epoch: int) -> Ints:
        """(n,) for every pair the pair whose instruction its gate reads (text.gate=shuffled)."""
        if self._partners is None or self._partners[0] != epoch:
            everything = np.arange(len(self.ids), dtype=np.int64)
            permutation = order.epoch_permutation(self.seed, epoch, len(everything))
            try:
                partner = order.other_text(permutation, self._instruction(epoch, everything), EMPTY)
            except ValueError:
                raise ConfigError("text.gate=shuffled needs pairs with different instructions") from None
            self._partners = (epoch, partner)
        return self._partners[1]

    def pick(self, epoch: int, indices: Ints, keys: Ints | None = None) -> Picked:
        """The choices for the pairs `indices` (B,) in an epoch: the same whatever batch they stand in.

        Args:
            epoch: Of training.
            indices: The pairs.
            keys: (B,) what the draws hang on where that is not the pairs' indices: their places in a stream.
        """
        keys = indices if keys is None else keys
        instruction = self._instruction(epoch, indices, keys)
        target = instruction if self.captions is None else self.captions[indices]
        gate = instruction
        if self.text.gate == "shuffled":
            gate = self._instruction(epoch, self._partner(epoch)[indices])
        source = instruction if self.text.source == "instruction" else np.full_like(instruction, EMPTY)
        null = order.uniform(self.seed, "null edit", epoch, keys) < self.null_edits
        # The source text stays where texts are dropped: guidance compares two branches with the same source features.
        dropped = null | (order.uniform(self.seed, "text dropout", epoch, keys) < self.dropout)
        mirrored = np.zeros(len(indices), dtype=bool)
        if self.sided is not None:
            mirrored = self.reader.mirrored(keys, epoch) & ~self.sided[indices]
        return Picked(
            np.where(dropped, EMPTY, target), np.where(dropped, EMPTY, gate), source, null, mirrored
        )
