"""The parallel corpus: Bible texts to verse pairs, a test set and glossary pairs in `bible_data/` of the workspace.

All the work is `bible_data.build`: a minute of it, and the same bytes every time. Its finished units are kept in the scratch
folder, so that an attempt that was killed costs the unit in flight.
"""

from __future__ import annotations

from pathlib import Path

from bible_data import sample
from bible_data.build import GLOSSARY, MANIFEST, TEST, TRAIN, Options, build
from bible_data.errors import CorpusError
from bible_data.manifest import Manifest, explain
from stages.runtime import Delivery, StageContext, run
from state.contract import MisconfiguredError
from state.settings import Corpus

SAMPLE = "sample"
STEP_S = 120.0
"""No single step of the build takes longer, on the slowest machine it was tried on."""


def main(ctx: StageContext) -> Delivery:
    """Build the corpus, tell what became of every verse, and deliver the folder's files.

    Raises:
        MisconfiguredError: a text is missing, damaged, not free, or not aligned; the sentence names the file.
    """
    settings = ctx.settings(Corpus)
    source = source_folder(ctx, settings.source)
    options = options_of(settings)
    out = ctx.workspace.corpus
    try:
        manifest = build(
            source,
            out,
            options,
            progress=lambda done, total, message: tell(ctx, done, total, message),
            check_stop=ctx.check_stop,
            keep=ctx.scratch() / "units",
        )
    except CorpusError as error:
        raise MisconfiguredError(str(error)) from error
    ctx.log.info("corpus.built", out=str(out))
    print(explain(manifest), flush=True)
    for text in manifest.texts:
        if text.licence_note:
            ctx.note(f"{text.name}: {text.licence_note}", licence=text.licence)
    return Delivery(
        outputs=[out / name for name in (TRAIN, TEST, GLOSSARY, MANIFEST)], metrics=metrics(manifest), summary=summary(manifest)
    )


def tell(ctx: StageContext, done: int, total: int, message: str) -> None:
    """One step of the build begins, or the last one is over."""
    ctx.progress(done, total, "steps", message=message, quiet_s=STEP_S if done < total else None)


def source_folder(ctx: StageContext, source: str) -> Path:
    """The folder to read from: the setting's, or the sample, written out anew where the stage keeps its work."""
    return sample.write_sample(ctx.scratch() / SAMPLE) if source == SAMPLE else ctx.resolve(source)


def options_of(settings: Corpus) -> Options:
    """The build's options; texts that are not named are the project's seven, or the sample's four."""
    usual = Options(sample.ENGLISH, sample.SPANISH) if settings.source == SAMPLE else Options()
    return Options(
        english=usual.english if settings.english is None else settings.english,
        spanish=usual.spanish if settings.spanish is None else settings.spanish,
        min_verses=settings.min_verses,
        test_share=settings.test_share,
    )


def metrics(manifest: Manifest) -> dict[str, float]:
    """The counts that the report shows."""
    return {
        "train_pairs": manifest.pairs.train,
        "test_pairs": manifest.pairs.test,
        "test_references": sum(manifest.split.test_references.values()),
        "duplicates_folded": manifest.pairs.train_folded + manifest.pairs.test_folded,
        "glossary_pairs": manifest.glossary_pairs,
    }


def summary(manifest: Manifest) -> str:
    """One line: what there is to train and to test on."""
    references = sum(manifest.split.test_references.values())
    return (
        f"{manifest.pairs.train:,} pairs to train, {manifest.pairs.test:,} to test on {references:,} references, "
        f"{manifest.glossary_pairs} glossary pairs"
    )


if __name__ == "__main__":
    run(main)
