"""The one error of the corpus: an input or an option is wrong and no retry can mend it."""

from __future__ import annotations


class CorpusError(ValueError):
    """The corpus cannot be built from what was given; the text names the file, the value seen and the next step."""
