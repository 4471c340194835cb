"""Text of the data, or of a file of anybody, on somebody's screen: what would steer the screen is shown as text.

Control characters and terminal escapes move the cursor, colour, retitle or answer; embeddings and overrides of the
direction of writing show letters in another order than they stand in. Marks that writing from right to left needs stay.
"""

import re
from collections.abc import Iterable
from typing import IO, Any

# C0 and C1 but for line ends and tabs, DEL, separators that end lines, embeddings, overrides and isolates; halves of
# surrogate pairs, which no screen has.
_STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)")


def shown(text: str) -> str:
    """`text` with "\\u001b" for what would steer a screen, which is what JSON writes for it, too."""
    return _STEERING.sub(_as_escape, text)


def as_markdown(text: object) -> str:
    """`text` on one line of Markdown, as text: no markup, no HTML, no links."""
    line = _MARKDOWN.sub(r"\\\g<0>", shown(" ".join(str(text).split())))
    return line.replace("&", "&amp;").replace("://", "\\://").replace("www.", "www\\.")


def _as_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class ShownStream:
    """A stream of text whose writing goes through `shown`. tqdm's own way back to a line above is let through."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text if text in ("\r", "\x1b[A") else "\r".join(map(shown, text.split("\r"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
