"""Texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fuse_search.errors import InputError
from fuse_search.spec import Count, Tokenizer

from .reader import Cells

WORD = re.compile(r"\w+|[^\w\s]")
UNKNOWN = 0  # the token of words that no training row has
HUGGING_FACE = "hf:"


class Text:
    """A text as tokens; those of words and characters are learned from the training rows."""

    files = False

    def __init__(
        self,
        *,
        tokenizer: Tokenizer = "words",
        vocabulary: Count = 20_000,
        length: Count | None = None,
        column: str | None = None,
    ) -> None:
        """tokenizer: words (lower case, and signs), characters, bytes, or `hf:` with a name or
        folder of Hugging Face. vocabulary: how many words or characters are learned at most, those
        that are most frequent. length: how many tokens of a text are read at most."""
        self.tokenizer, self.most, self.length = tokenizer, vocabulary, length
        self.columns: tuple[str, ...] = (column,) if column else ()
        self.learned: Mapping[str, Any] = {}

    @property
    def vocabulary(self) -> int:
        if self.tokenizer == "bytes":
            return 256
        if self.tokenizer.startswith(HUGGING_FACE):
            return self._pretrained.get_vocab_size()
        return 1 + len(self.learned["tokens"])

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Raises InputError where there is no tokenizer of that name."""
        if self.tokenizer.startswith(HUGGING_FACE):
            self.learned = {"tokenizer": load_tokenizer(self.tokenizer.removeprefix(HUGGING_FACE))}
        elif self.tokenizer != "bytes":
            counts = Counter(part for (cell,) in rows for part in self._parts(cell))
            frequent = sorted(counts, key=lambda part: (-counts[part], part))[: self.most]
            self.learned = {"tokens": {part: 1 + place for place, part in enumerate(frequent)}}

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """int32 [T]; 0 stands for words and characters that no training row has."""
        (cell,) = cells
        if cell is None:
            return None
        if self.tokenizer == "bytes":
            tokens = list(str(cell).encode())
        elif self.tokenizer.startswith(HUGGING_FACE):
            tokens = self._pretrained.encode(str(cell)).ids
        else:
            known = self.learned["tokens"]
            tokens = [known.get(part, UNKNOWN) for part in self._parts(cell)]
        return np.array(tokens[: self.length], np.int32)

    def cut(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """The first of these tokens; the special ones of Hugging Face that end a text stay."""
        over = len(tokens) - length
        if over <= 0 or not self.tokenizer.startswith(HUGGING_FACE):
            return tokens[:length]
        end = len(tokens) - self._ending
        return np.delete(tokens, slice(max(end - over, 0), end))[:length]

    @cached_property
    def _ending(self) -> int:
        """How many special tokens end a text."""
        special = self._pretrained.encode("a").special_tokens_mask
        return special[::-1].index(0) if 0 in special else 0

    def _parts(self, cell: Any) -> list[str]:
        if cell is None:
            return []
        return list(cell) if self.tokenizer == "characters" else WORD.findall(str(cell).lower())

    @cached_property
    def _pretrained(self) -> Any:
        from tokenizers import Tokenizer as Pretrained

        made = Pretrained.from_str(self.learned["tokenizer"])
        made.no_padding()
        if self.length:
            made.enable_truncation(self.length)  # its last token stays the last
        return made


def load_tokenizer(name: str) -> str:
    """A tokenizer of Hugging Face as JSON, by its folder or name, from local files first.

    It cuts texts to what its network reads at most. Raises InputError where there is none.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        rule = 'Hugging Face\'s tokenizers need `pip install "fuse-search[hf]"`'
        raise InputError(f"tokenizer: hf:{name}: {rule}") from None
    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        backend = found.backend_tokenizer
    except (OSError, ValueError, AttributeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"tokenizer: hf:{name}: can't be loaded: {reason}") from None
    if found.model_max_length < 1_000_000:  # else it isn't known
        backend.enable_truncation(found.model_max_length)
    return backend.to_str()
