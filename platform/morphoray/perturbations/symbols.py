"""Gene symbols as people write them, matched with the tokens of a vocabulary; every substitution is told."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from morphoray.errors import DataError
from morphoray.perturbations.base import read_csv
from morphoray.storage import Storage

MATCHES = ("exact", "case", "alias")
_MAX_CANDIDATES = 5000  # tokens compared when guessing what an unknown symbol meant


@dataclass(frozen=True)
class Match:
    """A symbol as it was written, and the vocabulary's token for it or the reason why there is none."""

    symbol: str
    token: str | None
    how: str
    """One of MATCHES, or without a token the reason."""


def read_aliases(uri: str, storage: Storage) -> dict[str, str]:
    """Alias to symbol, from a CSV with the columns alias and symbol.

    Raises DataError naming the column that is missing, or the row that is empty or contradicts another.
    """
    aliases: dict[str, str] = {}
    for number, row in enumerate(read_csv(uri, storage), start=1):
        if "alias" not in row or "symbol" not in row:
            raise DataError(f"{uri}: found columns {sorted(row)}, expected 'alias' and 'symbol'")
        alias, symbol = row["alias"], row["symbol"]
        if not alias or not symbol:
            raise DataError(
                f"{uri} row {number}: an alias and a symbol expected, found {alias!r}, {symbol!r}"
            )
        if aliases.setdefault(alias, symbol) != symbol:
            raise DataError(
                f"{uri} row {number}: alias {alias!r} stands for {aliases[alias]!r} and for {symbol!r}"
            )
    return aliases


def match_symbols(
    symbols: Sequence[str], tokens: Iterable[str], aliases: Mapping[str, str] | None = None
) -> list[Match]:
    """One match a symbol: the same token, else the only one that differs in case alone, else by its alias.

    Tokens like <pad> are no genes.
    """
    lookup = _Lookup(tokens)
    return [lookup.match(symbol, aliases or {}) for symbol in symbols]


class _Lookup:
    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = {token for token in tokens if not (token.startswith("<") and token.endswith(">"))}
        self._folded: dict[str, list[str]] = {}
        for token in sorted(self._tokens):
            self._folded.setdefault(token.casefold(), []).append(token)

    def match(self, symbol: str, aliases: Mapping[str, str]) -> Match:
        found = self._find(symbol)
        if len(found) == 1:
            return Match(symbol, found[0], "exact" if found[0] == symbol else "case")
        if symbol in aliases:
            meant = aliases[symbol]
            found = self._find(meant)
            if len(found) == 1:
                return Match(symbol, found[0], "alias")
            label = f"gene {symbol!r}, an alias of {meant!r},"
        else:
            meant, label = symbol, f"gene {symbol!r}"
        if found:
            return Match(symbol, None, f"{label} differs in case alone from several tokens: {found}")
        return Match(symbol, None, f"{label} is not in the vocabulary; nearest: {self._nearest(meant)}")

    def _find(self, symbol: str) -> list[str]:
        return [symbol] if symbol in self._tokens else self._folded.get(symbol.casefold(), [])

    def _nearest(self, symbol: str) -> str:
        folded = symbol.casefold()
        near = [name for name in self._folded if name[:1] == folded[:1] and abs(len(name) - len(folded)) <= 2]
        close = difflib.get_close_matches(folded, near[:_MAX_CANDIDATES], 3, 0.6)
        return ", ".join(self._folded[name][0] for name in close) or "none"
