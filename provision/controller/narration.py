"""What a long job says while it works. The library only calls; the command line decides where it is shown."""

import contextlib
from collections.abc import Iterator


class Narration:
    """Says nothing: for callers that do not watch."""

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Enclose a step that takes time."""
        del title
        yield

    def note(self, text: str) -> None:
        """Tell something that a user should know."""
        del text
