"""Split an SQL file into statements, and find statements that migrations must not contain. Pure; one pass over bytes.

Not a parser. Like psql, it skips strings, quoted names, dollar quotes, nested comments, parentheses and the bodies of
SQL functions (BEGIN ATOMIC ... END), so that a `;` or ROLLBACK inside them does not count. Ambiguous text is not
reported: the server decides, and the runner checks the result afterwards.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

HEAD_WORDS = {"COPY": 16, "CREATE": 16, "ALTER": 16, "DROP": 16, "REINDEX": 16}
"""Words kept per statement, by first word: enough to reach FROM STDIN or CONCURRENTLY."""

OTHER_WORDS = 6
"""Words kept of every other statement: few, because a file of INSERTs may be long."""

OUTSIDE_TRANSACTIONS = [
    ("ALTER", "SYSTEM"), ("CREATE", "DATABASE"), ("DROP", "DATABASE"), ("CREATE", "TABLESPACE"), ("DROP", "TABLESPACE"),
]  # fmt: skip

UNSEEN = re.compile("[\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u2060\u3000\ufeff\u2018\u2019\u201c\u201d]")
"""Characters that look like a space, a quote or nothing, and that the server reads as parts of names."""

SHOWN = 100
"""Characters of a statement shown in a message."""

_INERT = (
    rb"--[^\n]*+"
    rb"|(?P<comment>/\*)"
    rb"|(?<![A-Za-z0-9_$\x80-\xff])[eE]'(?:[^'\\]++|\\.|'')*+'"
    rb"|'(?:[^']++|'')*+'"
    rb'|(?P<name>"[^"]*+")'
    rb"|(?<![A-Za-z0-9_$\x80-\xff])(?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$)"
    rb"|\((?:[^()'\"\\$/\-]++|'[^'\\]*+'|-(?!-))*+\)"  # a flat list of values in one match
    rb"|(?P<mark>[;()\\'\"])"
)
_TAIL = re.compile(_INERT, re.DOTALL)
_HEAD = re.compile(_INERT + rb"|(?P<word>[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)", re.DOTALL)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_GAP = rb"(?:\s|--[^\n]*\n|/\*.*?\*/)"
_ROLLBACK = re.compile(
    rb"\brollback\b(?:%b+and%b+(?:no%b+)?chain)?%b*;" % (_GAP, _GAP, _GAP, _GAP), re.IGNORECASE | re.DOTALL
)
_SECRET = re.compile(r"passw|secret|token|api_?key|credential|://[^\s/:@]*:[^\s@]+@", re.IGNORECASE)
_LITERAL = re.compile(r"[\"']|\$\w*\$")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: start and end (byte offsets), and its first words in upper case."""

    start: int
    end: int
    words: tuple[str, ...]
    backslash: bool = False

    def begins(self, *words: str) -> bool:
        """True if the statement starts with these words."""
        return self.words[: len(words)] == words

    @property
    def _verb(self) -> str:
        """The first word; empty for a statement such as `(SELECT 1)`."""
        return next(iter(self.words), "")

    @property
    def survives_rollback(self) -> bool:
        """True if the statement commits internally, so that a failure can leave partial changes."""
        return (
            ("CONCURRENTLY" in self.words and self._verb in ("CREATE", "DROP", "REINDEX", "ALTER"))
            or self._verb in ("VACUUM", "CLUSTER", "REINDEX", "CALL", "DO")
            or self.begins("CREATE", "DATABASE")
            or self.begins("DROP", "DATABASE")
        )

    @property
    def needs_a_message_of_its_own(self) -> bool:
        """True if the server refuses the statement in a transaction, and so beside others in one message."""
        return (
            ("CONCURRENTLY" in self.words and self._verb in ("CREATE", "DROP", "REINDEX", "ALTER"))
            or self._verb == "VACUUM"
            or self.words[:2] in OUTSIDE_TRANSACTIONS
        )


@dataclass(frozen=True, slots=True)
class Hazard:
    """A statement that interferes with the runner, and its replacement."""

    offset: int
    seen: str
    fix: str


def statements(body: bytes) -> Iterator[Statement]:
    """Yield the statements of a file without comments and empty statements."""
    start = -1
    words: list[str] = []
    limit = OTHER_WORDS
    depth = atomic = 0
    backslash = routine = False
    position = 0
    while match := (_HEAD if routine or (len(words) < limit and not depth) else _TAIL).search(body, position):
        position = match.end()
        kind = match.lastgroup
        if kind == "comment":
            position = _comment_end(body, position)
            continue
        if kind is None and body.startswith(b"--", match.start()):
            continue
        mark = match[0] if kind == "mark" else b""
        if mark == b";" and not depth and not atomic:
            if start >= 0:
                yield Statement(start, match.start(), tuple(words), backslash)
            start, words, limit, backslash, routine = -1, [], OTHER_WORDS, False, False
            continue
        start = match.start() if start < 0 else start
        if kind == "dollar":
            closing = body.find(match[0], position)
            position = len(body) if closing < 0 else closing + len(match[0])
        elif mark in (b"'", b'"'):  # unterminated: the rest is one literal, and the server reports it
            position = len(body)
        elif mark == b"\\":
            backslash = True
        elif mark in (b"(", b")"):
            depth = max(0, depth + (1 if mark == b"(" else -1))
        elif kind in ("word", "name") and not depth:
            word = match[0].decode("utf-8", "replace")
            word = word.upper() if kind == "word" else word
            if len(words) < limit:
                words.append(word)
                limit = HEAD_WORDS.get(words[0], OTHER_WORDS)
                routine = _defines_routine(words)
            if routine:
                atomic += (word == "ATOMIC") or (atomic > 0 and word in ("CASE", "BEGIN"))
                atomic -= atomic > 0 and word == "END"
    if start >= 0:
        yield Statement(start, len(body.rstrip()), tuple(words), backslash)


def _comment_end(body: bytes, position: int) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(body, position)
        if edge is None:
            return len(body)
        depth += 1 if edge[0] == b"/*" else -1
        position = edge.end()
    return position


def _defines_routine(words: list[str]) -> bool:
    head = [word for word in words[:4] if word not in ("OR", "REPLACE")]
    return head[:1] == ["CREATE"] and head[1:2] in (["FUNCTION"], ["PROCEDURE"])


def hazards(body: bytes, *, separately: bool = False) -> list[Hazard]:
    """Find statements that interfere with the runner: transactions, roles, locks, and psql commands.

    `separately`: each statement is sent as a message of its own (x-multi-statement).
    """
    found: list[Hazard] = []
    alone: Statement | None = None
    count = 0
    opened: Statement | None = None
    role: Statement | None = None
    for statement in statements(body):
        words = statement.words
        count += 1
        alone = statement if alone is None and statement.needs_a_message_of_its_own else alone
        if statement.backslash:
            found.append(Hazard(statement.start, "a psql command (\\)", "use plain SQL"))
            break  # the rest may be data, not SQL
        if statement.begins("COPY") and ("STDIN" in words or "STDOUT" in words):
            found.append(Hazard(statement.start, "COPY FROM STDIN or TO STDOUT", "use INSERT ... VALUES"))
            break
        if statement.begins("BEGIN") or statement.begins("START", "TRANSACTION"):
            opened = statement
        elif words[:1] in (("COMMIT",), ("END",)):
            opened = statement if "CHAIN" in words and "NO" not in words else None
        elif words[:1] in (("ROLLBACK",), ("ABORT",)) and not {"TO", "PREPARED"} & set(words[:4]):
            opened = None
            found.append(Hazard(statement.start, f"{words[0]}, which reverts the file", "remove it"))
        elif statement.begins("PREPARE", "TRANSACTION"):
            opened = None
            found.append(Hazard(statement.start, "PREPARE TRANSACTION, which keeps its locks", "remove it"))
        elif statement.begins("DO") and _ROLLBACK.search(body, statement.start, statement.end):
            found.append(
                Hazard(statement.start, "DO with a ROLLBACK, which reverts the statements before it", "remove it")
            )
        elif statement.begins("DISCARD", "ALL"):
            found.append(Hazard(statement.start, "DISCARD ALL, which releases the migration lock", "remove it"))
        role = _role_left(statement, role)
    if alone and count > 1 and not separately:
        first, second = (*alone.words, "")[:2]
        name = f"{first} ... CONCURRENTLY" if "CONCURRENTLY" in alone.words else first
        name = f"{first} {second}" if (first, second) in OUTSIDE_TRANSACTIONS else name
        seen = f"{name}, which the server refuses together with other statements"
        found.append(Hazard(alone.start, seen, "move it to a file of its own"))
    if opened:
        found.append(Hazard(opened.start, "a transaction without COMMIT", "end it with COMMIT, or remove BEGIN"))
    if role:
        fix = "use SET LOCAL ROLE inside BEGIN and COMMIT, or end the file with RESET ROLE"
        found.append(Hazard(role.start, "a SET ROLE without RESET ROLE", fix))
    return sorted(found, key=lambda hazard: hazard.offset)


def _role_left(statement: Statement, role: Statement | None) -> Statement | None:
    words = tuple(word for word in statement.words if word != "SESSION")
    if words[:2] in (("SET", "ROLE"), ("SET", "AUTHORIZATION")):
        return None if words[2:3] in (("NONE",), ("DEFAULT",)) else statement
    if words[:2] in (("RESET", "ROLE"), ("RESET", "AUTHORIZATION")):
        return None
    return role


def place(body: bytes, offset: int) -> tuple[int, int]:
    """Convert a byte offset to line and column, both from 1; the column counts characters."""
    start = body.rfind(b"\n", 0, offset) + 1
    return body.count(b"\n", 0, offset) + 1, len(body[start:offset].decode("utf-8", "replace")) + 1


def offset_of(body: bytes, position: int) -> int:
    """Convert the server's position (characters, from 1) to a byte offset, decoding line by line."""
    left = position - 1
    start = 0
    while start < len(body):
        end = body.find(b"\n", start) + 1 or len(body)
        line = body[start:end].decode("utf-8", "replace")
        if left < len(line):
            return start + len(line[:left].encode())
        left -= len(line)
        start = end
    return len(body)


def holds_secret(text: str) -> bool:
    """True if a text may contain a password: it mentions one, or contains a URL with one."""
    return _SECRET.search(text) is not None


def masked(text: str) -> str:
    """Cut the text at the first quote: the end of a literal depends on its type and on settings."""
    quote = _LITERAL.search(text)
    return f"{text[: quote.start()]}'...'" if quote else text


def unseen(text: str) -> list[str]:
    """Name the invisible or misleading characters of a statement: U+00A0 NO-BREAK SPACE."""
    return [f"U+{ord(each):04X} {unicodedata.name(each, '')}" for each in dict.fromkeys(UNSEEN.findall(text))]


def first_line(body: bytes, start: int, end: int) -> str:
    """Return the first line of a statement, truncated, and without literals if it may contain a password."""
    stop = body.find(b"\n", start, end)
    line = body[start : end if stop < 0 else stop][: 4 * SHOWN].decode("utf-8", "replace").strip()
    if holds_secret(line):
        line = masked(line)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
