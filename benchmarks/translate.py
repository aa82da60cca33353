"""Translating a test set: one sentence at a time through `generate`, as the scripts did, and Vigil's way.

    python -m benchmarks.translate [--quick]

Vigil translates each distinct English text once (the test file holds it once for every Spanish one), sorted, in batches, Marian by
CTranslate2 where it says the same as Transformers. The Marian has opus-mt-en-es's shape and random weights, shaped so that it says
different words and stops after some forty; --quick: a tiny one. The scripts' way is measured on a few sentences, since each costs
the same, ours on many. CPU seconds of translating, without loading; the rounds alternate; medians. Every text that both ways
translated must be equal. On random weights int8's check compares two scores near zero, so how near its texts come to
float32's is told instead. Gemma: the demo's tiny one in NF4. Exit 0: every demand met.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from benchmarks.bible_texts import context
from benchmarks.row import Row, tell
from stages import quick_marian
from stages.runtime import StageContext
from stages.scoring import Pair, Sentence, digest, group
from stages.tiny import make_gemma, make_marian, sample_pairs, seeded
from stages.translation import Backend, Decoding, Gemma, Kept, Located, Marian, translate

BEAMS, MOST_TOKENS, BATCH = 4, 96, 32
VOCABULARY = 65_001
SHAPE = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
Pace = NDArray[np.float64]
"""Generated tokens a second: of CPU time, by the wall clock."""
SPANISH_TEXTS = 2
"""Of each verse in the test file."""


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory(prefix="vigil-translate-") as folder:
        rows = [*marian_rows(Path(folder), quick=quick, rounds=rounds), gemma_row(Path(folder), quick=quick, rounds=rounds)]
    return tell(rows)


# -- Marian


def marian_rows(folder: Path, *, quick: bool, rounds: int) -> list[Row]:
    """float32 against one at a time, the same with each source once, and int8."""
    ctx, path = context(folder), folder / "marian"
    path.mkdir()
    make(path, quick=quick)
    model, decoding = Located(str(path), None, "benchmark"), Decoding(BEAMS, MOST_TOKENS)
    slow = Marian(model, decoding)
    sentences = chosen(240 if quick else 96)
    few = [sentence.source for sentence in sentences[:: len(sentences) // 6]]
    quicks = {}
    for name in ("float32", "int8"):
        slow.decoding = Decoding(BEAMS, MOST_TOKENS, name == "int8")
        quicks[name] = quick_marian.quicken(ctx, slow, model, "benchmark", sentences, lambda: None)
    slow.decoding = decoding
    sources = [sentence.source for sentence in sentences]
    measured: dict[str, list[Pace]] = {"original": [], "float32": [], "int8": []}
    texts: dict[str, dict[str, str]] = {}
    for _round in range(rounds):
        pace, texts["original"] = one_by_one(slow, few)
        measured["original"].append(pace)
        for name, backend in quicks.items():
            pace, texts[name] = in_batches(ctx, backend, sources)
            measured[name].append(pace)
    original, whole, small = (np.median(measured[name], axis=0) for name in measured)
    equal = sum(texts["float32"][source] == text for source, text in texts["original"].items())
    agreement = CHRF().corpus_score([texts["int8"][one] for one in sources], [[texts["float32"][one] for one in sources]]).score
    same, engine = f"{equal} of {len(few)} texts equal", quicks["float32"].engine
    shape = "a tiny Marian" if quick else "a Marian of opus-mt's shape"
    return [
        row(f"translating by {shape}, float32", original, whole, 4.0, "tokens/CPU s", f"{engine}; {same}", good=equal == len(few)),
        row(
            "the same, each source once",
            original,
            whole * SPANISH_TEXTS,
            8.0,
            "tokens/CPU s",
            f"{SPANISH_TEXTS} Spanish texts a verse",
            good=equal == len(few),
        ),
        row(
            "the same, each source once, int8 (a goal)",
            original,
            small * SPANISH_TEXTS,
            12.0,
            "tokens/CPU s",
            f"{quicks['int8'].engine}; chrF {agreement:.0f} against float32's texts",
        ),
    ]


def make(folder: Path, *, quick: bool) -> None:
    """A Marian with random weights of which each word depends on its place and on what was said, and that comes to an end.

    With plain random weights a tied model repeats one word for ever: attention drowns the place. So the decoder's sub-layers are
    turned down, the last norm's signs are shuffled (else a word's own embedding is its best successor), and the end mark's
    embedding grows with the place by way of the slow waves of the position embedding.
    """
    pairs = sample_pairs()
    make_marian(folder, pairs, pieces=8000, d_model=64, layers=2)
    if quick:
        return
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary.pop("<pad>")
    vocabulary |= {f"▁unused{number}": number for number in range(len(vocabulary), VOCABULARY - 1)}
    vocabulary["<pad>"] = pad = VOCABULARY - 1
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    config = MarianConfig.from_pretrained(folder)
    marks = {"pad_token_id": pad, "decoder_start_token_id": pad}
    sizes = {"vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY, "init_std": 0.06, **marks}
    for name, value in {**SHAPE, **HEADS, **sizes}.items():
        setattr(config, name, value)
    with seeded():
        model = MarianMTModel(config)
        shape_output(model, pad)
    model.generation_config = GenerationConfig(
        **marks, eos_token_id=0, bos_token_id=0, forced_eos_token_id=0, bad_words_ids=[[pad]], max_length=512, num_beams=BEAMS
    )
    model.save_pretrained(folder)
    names = ("source.spm", "target.spm", "vocab.json")
    MarianTokenizer(*(str(folder / name) for name in names), source_lang="en", target_lang="es").save_pretrained(folder)


@torch.no_grad()
def shape_output(model: Any, pad: int) -> None:
    """Make the words vary and the sentence end, as `make` says."""
    slow_waves = slice(85, 125)
    signs = torch.where(torch.rand(model.config.d_model) < 0.5, -1.0, 1.0)
    embeddings = model.get_input_embeddings().weight
    embeddings.mul_(1 / 3)
    embeddings[:, slow_waves] *= 0.3
    embeddings[0] = 0
    embeddings[0, slow_waves] = 0.14 * signs[slow_waves]
    embeddings[pad] = 0
    for layer in model.get_decoder().layers:
        for part in (layer.fc2, layer.self_attn.out_proj, layer.encoder_attn.out_proj):
            part.weight.mul_(0.05)
            part.bias.zero_()
    model.get_decoder().layers[-1].final_layer_norm.weight.copy_(25 * signs)


# -- Gemma


def gemma_row(folder: Path, *, quick: bool, rounds: int) -> Row:
    """Gemma in batches against one at a time."""
    path = folder / "gemma"
    path.mkdir()
    make_gemma(path, sample_pairs(), "a")
    gemma = Gemma(Located(str(path), None, "benchmark"), None, Decoding(1, 32))
    ctx, sources = context(folder / "gemma-run"), [sentence.source for sentence in chosen(64 if quick else 128)]
    few = sources[:: len(sources) // 8]
    original: list[Pace] = []
    ours: list[Pace] = []
    equal = 0
    for _round in range(rounds):
        pace, alone = one_by_one(gemma, few)
        original.append(pace)
        pace, together = in_batches(ctx, gemma, sources)
        ours.append(pace)
        equal = sum(together[source] == text for source, text in alone.items())
    note = f"{gemma.engine}; {equal} of {len(few)} texts equal"
    paces = np.median(original, axis=0), np.median(ours, axis=0)
    return row("translating by a small Gemma, in batches", *paces, 4.0, "tokens/CPU s", note, good=equal == len(few))


# -- both


def chosen(count: int) -> list[Sentence]:
    """Distinct sentences of the sample, in a fixed order that is not that of their lengths."""
    pairs = [Pair(en, es, "Sample", 1, number, "sample", "E", "S") for number, (en, es) in enumerate(sample_pairs())]
    distinct = list({sentence.source: sentence for sentence in group(pairs)}.values())
    random.Random(1).shuffle(distinct)
    return distinct[:count]


def one_by_one(backend: Backend, sources: Sequence[str]) -> tuple[Pace, dict[str, str]]:
    """The pace of the scripts' way, and the texts."""
    return timed(lambda: {source: backend.translate([source], lambda: None)[0] for source in sources})


def in_batches(ctx: StageContext, backend: Backend, sources: Sequence[str]) -> tuple[Pace, dict[str, str]]:
    """The pace of the evaluation's own way, keeping each batch on the disk, and the texts."""
    with tempfile.TemporaryDirectory() as folder:

        def work() -> dict[str, tuple[str, int]]:
            kept = Kept(Path(folder) / "kept.jsonl")
            translate(ctx, backend, sources, BATCH, kept, lambda _done: None)
            found = {source: kept.by_id[digest(source)] for source in sources}
            return {source: (one.text, one.tokens) for source, one in found.items()}

        return timed(work)


def timed(work: Callable[[], dict[str, tuple[str, int]]]) -> tuple[Pace, dict[str, str]]:
    """The pace, and the texts."""
    started = np.array([time.process_time(), time.perf_counter()])
    found = work()
    seconds = np.array([time.process_time(), time.perf_counter()]) - started
    return sum(tokens for _text, tokens in found.values()) / seconds, {source: text for source, (text, _tokens) in found.items()}


def row(item: str, original: Pace, ours: Pace, floor: float, unit: str, note: str, *, good: bool = True) -> Row:
    """The claim of one way."""
    ratio = float(ours[0] / original[0])
    return Row(
        item=item,
        unit=unit,
        original=original[0],
        ours=ours[0],
        ratio=ratio,
        demanded=f"{floor:g}",
        met=good and ratio >= floor,
        wall=f"{original[1]:,.0f} and {ours[1]:,.0f} a second",
        note=note,
    )


if __name__ == "__main__":
    sys.exit(main())
