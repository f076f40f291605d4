"""Memories with clustered vectors in numbers, made from a seed and loaded by binary COPY in a few seconds.

Vectors of a real embedding model lie in clusters; noise in 1,536 dimensions has no neighbours worth finding.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from operator import add
from uuid import UUID

import psycopg

DIMENSIONS = 1536
TOPICS = 100
NOISE = 20_000  # numbers of noise of one strength; a vector takes 1,536 of them from any place


def clustered(count: int, seed: int, draw: int = 0) -> Iterator[list[float]]:
    """Yield vectors, each a topic, a share of a second one and some noise: there are near ones and nearer ones.

    Noise is cut from long rows: fast, and no two alike. Another `draw` yields others of the same topics.
    """
    generator = random.Random(seed)
    noises = [[generator.gauss(0, strength / 20) for _ in range(NOISE)] for strength in range(1, 9)]
    topics = [[generator.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(TOPICS)]
    shares = [[number * tenths / 10 for number in topic] for topic in topics for tenths in range(1, 8)]
    generator.seed(seed + draw)
    for _ in range(count):
        start = generator.randrange(NOISE - DIMENSIONS)
        mixed = map(add, generator.choice(topics), generator.choice(shares))
        yield list(map(add, mixed, generator.choice(noises)[start : start + DIMENSIONS]))


def text(vector: list[float]) -> str:
    """Write a vector as pgvector reads it."""
    return "[" + ",".join(map(str, vector)) + "]"


def copy_memories(
    connection: psycopg.Connection[tuple[object, ...]], agents: list[UUID], vectors: Iterator[list[float]]
) -> None:
    """Load one memory for each agent in the list (in this order), each with the next vector."""
    layout = struct.Struct(f">hh{DIMENSIONS}f")
    with connection.cursor().copy("COPY memories (agent_id, content, embedding) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["uuid", "text", "bytea"])  # an embedding's binary form is sent as the bytes that it is
        for agent, vector in zip(agents, vectors, strict=True):
            copy.write_row((agent, "a fact", layout.pack(DIMENSIONS, 0, *vector)))
