"""The corpus: readers, cleaning, versification, split and glossary, and the small tables that ship with them.

`bible_data.build.build` is the facade, `bible_data.manifest.explain` tells what it did, `CorpusError` is what it raises.
Imports the standard library only.
"""

from bible_data.errors import CorpusError

__all__ = ["CorpusError"]
