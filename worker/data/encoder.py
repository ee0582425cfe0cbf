"""The tokenizer of a base model directory: text to token ids with the characters each token stands for.

No special token is ever added by the tokenizer itself: chat templates write their own, and the rows
without a template get theirs by id.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Encoding, Tokenizer

from worker.contract.formats import FormatError
from worker.data import special_strings
from worker.data.template import Span, special_tokens

FIRST_ALIAS = 0x100000  # the last private-use plane of Unicode, 65,534 characters
PROBE = "a"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text and, as int64[n, 2], the half-open span of characters of each token."""

    ids: list[int]
    offsets: npt.NDArray[np.int64]

    def overlapping(self, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
        """Which tokens hold a character of a span, bool[n]."""
        starts = self.offsets[:, 0]
        ends = np.maximum(self.offsets[:, 1], starts + 1)  # a token without characters belongs where it stands
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for start, end in spans:
            found |= (starts < end) & (ends > start)
        return found


class Encoder:
    """Encodes for one base model. `special` matches its special-token strings."""

    def __init__(self, directory: str | Path) -> None:
        """Read tokenizer.json; OSError or ValueError if the directory has none that can be used."""
        self._directory = Path(directory)
        self._tokenizer = _load(self._directory)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_tokens = {id_: token for id_, token in sorted(added.items()) if token.special}
        self.special = special_strings.pattern(token.content for token in self._special_tokens.values())
        named = special_tokens(self._directory)
        self.eos_id = self._id(named.get("eos_token"))
        self.bos_id = self._id(named.get("bos_token")) if _adds_bos(self._directory, self._tokenizer, named) else None
        # Post-processing adds special tokens, and in ByteLevel tokenizers it cuts spaces off the offsets,
        # so that a space before an answer would seem to stand where the answer begins.
        self._tokenizer.post_processor = None
        self._with_aliases: Tokenizer | None = None
        self._aliases: dict[str, str] = {}
        self._real_ids: dict[int, int] = {}

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode a batch; special-token strings in the texts become special tokens."""
        return [_encoded(encoding) for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode_apart(self, text: str, user_spans: Sequence[Span]) -> Encoded:
        """Encode one text whose special-token strings within `user_spans` are ordinary text.

        FormatError if that cannot be done: a tokenizer may know the string as an ordinary token too.
        """
        tokenizer = self._alias_tokenizer()
        if any(alias in text for alias in self._aliases.values()):
            raise FormatError("has a special-token string beside private-use characters, so they cannot be told apart")
        pieces: list[str] = []
        origins: list[int] = []  # where each character of the aliased text comes from
        for start, end, is_users in _split(len(text), user_spans):
            place = start
            if not is_users:
                for found in self.special.finditer(text, start, end):
                    pieces += [text[place : found.start()], self._aliases[found[0]]]
                    origins += [*range(place, found.start()), found.start()]
                    place = found.end()
            pieces.append(text[place:end])
            origins += range(place, end)
        origins.append(len(text))
        encoded = _encoded(tokenizer.encode("".join(pieces), add_special_tokens=False))
        users = {text[start:end] for start, end in user_spans}
        if any(token.content in users and id_ in encoded.ids for id_, token in self._special_tokens.items()):
            raise FormatError("has a special-token string which the base model's tokenizer cannot encode as text")
        ids = [self._real_ids.get(id_, id_) for id_ in encoded.ids]
        return Encoded(ids, np.array(origins, dtype=np.int64)[encoded.offsets])

    def _alias_tokenizer(self) -> Tokenizer:
        """A second tokenizer, to which special tokens are text and a character of its own is each special token."""
        if self._with_aliases is None:
            tokenizer = _load(self._directory)
            tokenizer.post_processor = None
            for number, (id_, token) in enumerate(self._special_tokens.items()):
                alias = chr(FIRST_ALIAS + number)
                flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
                tokenizer.add_tokens([AddedToken(alias, normalized=False, special=False, **flags)])
                self._aliases[token.content] = alias
                alias_id = tokenizer.token_to_id(alias)
                assert alias_id is not None
                self._real_ids[alias_id] = id_
            tokenizer.encode_special_tokens = True
            self._with_aliases = tokenizer
        return self._with_aliases

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)


def _encoded(encoding: Encoding) -> Encoded:
    return Encoded(encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))


def _split(length: int, spans: Sequence[Span]) -> list[tuple[int, int, bool]]:
    """All of a text of `length` characters in pieces: start, end, and whether it is one of the spans."""
    pieces: list[tuple[int, int, bool]] = []
    place = 0
    for start, end in spans:
        pieces += [(place, start, False), (start, end, True)]
        place = end
    return [*pieces, (place, length, False)]


def _load(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # transformers treats the named special tokens as such even where tokenizer.json forgot to.
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = [token for token in special_tokens(directory).values() if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([token for token in named if token not in known])
    return tokenizer


def _adds_bos(directory: Path, tokenizer: Tokenizer, named: dict[str, str]) -> bool:
    """Whether plain text gets the begin-of-sequence token: the configuration says so, else the tokenizer does."""
    setting: Any = None
    config = directory / "tokenizer_config.json"
    if config.is_file():
        setting = json.loads(config.read_bytes()).get("add_bos_token")
    if isinstance(setting, bool):
        return setting
    return tokenizer.encode(PROBE, add_special_tokens=True).tokens[:1] == [named.get("bos_token")]
