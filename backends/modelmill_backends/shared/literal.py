"""Reads the texts of callers as texts: a control token that is spelled out in one stays text.

``<|im_end|>`` or ``[SEP]`` in a message would otherwise become the token of that name, and a message could
forge turns of other roles. A tokenizer that ``read_literally`` has prepared takes every text as text. Where a
text of ours holds control tokens on purpose, such as a chat template's, ``Marks`` protects the caller's part.

This works for models whose control tokens are tokens. Some older models mark turns by plain words, such as
``USER:``; a text can imitate those.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

FORGEABLE = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
"""Control tokens of chats. Some tokenizers do not list theirs as special ones."""
SPACE = "▁"
"""How SentencePiece writes a space."""


def read_literally(tokenizer: Any) -> Any:
    """Makes a tokenizer of ``transformers`` take all of a text as text, unless a call asks for tokens.

    A call asks for them by ``split_special_tokens=False``.

    Returns:
        The tokenizer.
    """
    tokenizer.split_special_tokens = True
    if getattr(tokenizer, "is_fast", False):
        _seal(tokenizer)
    return tokenizer


@contextmanager
def control_tokens(tokenizer: Any) -> Iterator[None]:
    """In this block, texts may spell out control tokens. For code that calls the tokenizer itself."""
    tokenizer.split_special_tokens = False
    try:
        yield
    finally:
        tokenizer.split_special_tokens = True


def _seal(tokenizer: Any) -> None:
    """Divides the spelling of a special token before the tokenizer's model sees it.

    The vocabulary of some models holds its special tokens as words: a Unigram model finds ``</s>`` by itself.
    """
    backend = tokenizer.backend_tokenizer
    special = {
        number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    found = []
    for spelling in special.values():
        if len(spelling) > 1 and not special.keys().isdisjoint(
            tokenizer(spelling, add_special_tokens=False, verbose=False)["input_ids"]
        ):
            found.append(spelling)
    if not found:
        return
    from tokenizers import Regex, pre_tokenizers

    if backend.normalizer is not None:
        found += [backend.normalizer.normalize_str(spelling) for spelling in found]
    spellings = {spelling.replace(" ", SPACE).strip(SPACE) for spelling in found}
    pattern = "|".join(f"{re.escape(one[0])}(?={re.escape(one[1:])})" for one in spellings if len(one) > 1)
    divide = pre_tokenizers.Split(Regex(pattern), "isolated")
    before = backend.pre_tokenizer
    backend.pre_tokenizer = divide if before is None else pre_tokenizers.Sequence([before, divide])


class Spacer:
    """Puts a space into each spelling of a special token, for tokenizers that know no other way."""

    def __init__(self, tokenizers: Iterable[Any]) -> None:
        spellings = {spelling for one in tokenizers for spelling in one.all_special_tokens}
        longest_first = sorted((one for one in spellings if len(one.strip()) > 1), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def __call__(self, text: str) -> str:
        return self._spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


class Marks:
    """Protects callers' texts inside of a text whose control tokens count.

    ``broken`` puts a mark, which is a token of its own, inside of each spelling of a control token. So the
    tokenizer does not recognise it. ``without`` removes the marks from the token ids. A text without such a
    spelling stays as it is.
    """

    def __init__(self, tokenizer: Any, template: Any = None, *, free: Collection[str] = ()) -> None:
        """Adds the mark to the tokenizer.

        Args:
            tokenizer: The tokenizer.
            template: The chat template. Added tokens that it writes are control tokens, too.
            free: Spellings that callers may use.
        """
        from tokenizers import AddedToken

        written = "\n".join(map(str, template.values() if isinstance(template, dict) else [template or ""]))
        strong, weak = set(), set()
        normalized = False
        for token in tokenizer.added_tokens_decoder.values():
            spelling = str(token)
            if len(spelling.strip()) < 2 or spelling in free:
                continue
            if token.special or FORGEABLE.fullmatch(spelling):
                strong.add(spelling)
                normalized = normalized or token.normalized
            elif spelling in written:
                weak.add(spelling)
        self._strong, self._any = _pattern(strong), _pattern(strong | weak)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer: Any = getattr(backend, "normalizer", None) if normalized else None
        self._tokenizer = tokenizer
        # A caller cannot guess it: U+FDD0 and U+FDD1 are never characters, and the number is new each time.
        self._mark = f"\ufdd0{secrets.randbits(64)}\ufdd1"
        tokenizer.add_tokens([AddedToken(self._mark, special=True, normalized=False)], special_tokens=True)
        self._id: int = tokenizer.convert_tokens_to_ids(self._mark)
        ids = tokenizer(f"a{self._mark}b", add_special_tokens=False, split_special_tokens=False)["input_ids"]
        after = ids[ids.index(self._id) + 1 :]
        names = tokenizer.convert_ids_to_tokens(after)
        self._adds_space = bool(names) and str(names[0]).startswith(SPACE)

    def broken(self, texts: Sequence[str], lenient: Collection[int] = ()) -> list[str]:
        """The texts, with a mark in each spelling of a control token, also in one that begins in one text and
        ends in the next.

        Args:
            texts: Texts of callers, in the order in which they appear.
            lenient: Positions of texts in which tokens that are not special count as text of the template's
                own, such as ``</think>`` in an earlier answer of the model.
        """
        if self._normalizer is not None:
            texts = [self._plain(text) for text in texts]
        joined = "".join(texts)
        starts = []
        match = self._any.search(joined)
        while match:
            starts.append(match.start())
            match = self._any.search(joined, match.start() + 1)
        if not starts:
            return list(texts)
        found, begin = [], 0
        for place, text in enumerate(texts):
            end = begin + len(text)
            own = [start - begin for start in starts if begin <= start < end]
            if place in lenient:
                own = [start for start in own if self._strong.match(joined, begin + start)]
            edges = [0, *(start + 1 for start in own), len(text)]
            found.append(self._mark.join(text[one:other] for one, other in pairwise(edges)))
            begin = end
        return found

    def cleaned(self, text: str) -> str:
        """The text without marks."""
        return text.replace(self._mark, "")

    def without(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids without marks, and for each of them its position in ``ids``."""
        if self._id not in ids:
            return list(ids), list(range(len(ids)))
        kept, places = [], []
        for place, number in enumerate(ids):
            if number == self._id:
                continue
            if self._adds_space and place and ids[place - 1] == self._id:
                bare = self._without_space(number)
                if bare is None:
                    continue
                number = bare
            kept.append(number)
            places.append(place)
        return kept, places

    def _without_space(self, number: int) -> int | None:
        """The token without the space that the tokenizer has put before what follows the mark."""
        name = str(self._tokenizer.convert_ids_to_tokens(number))
        if name == SPACE:
            return None
        if not name.startswith(SPACE):
            return number
        found = self._tokenizer.convert_tokens_to_ids(name[len(SPACE) :])
        return number if found in (None, self._tokenizer.unk_token_id) else int(found)

    def _plain(self, text: str) -> str:
        """The text as the tokenizer's normalizer writes it, if a control token is spelled in that form."""
        normal: str = self._normalizer.normalize_str(text)
        return normal if self._any.search(normal) else text


def _pattern(spellings: Collection[str]) -> re.Pattern[str]:
    """Matches the beginning of any spelling up to where it is clear. Its time is linear for each position."""
    tree: dict[str, Any] = {}
    for spelling in spellings:
        node = tree
        for letter in spelling:
            node = node.setdefault(letter, {})
        node[""] = {}

    def written(node: dict[str, Any]) -> str:
        if "" in node:
            return ""
        branches = [re.escape(letter) + written(below) for letter, below in sorted(node.items())]
        return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"

    return re.compile(written(tree) if tree else "(?!)")
