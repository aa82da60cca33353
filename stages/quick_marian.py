"""Marian decoded by CTranslate2 in the place of Transformers: several times as fast, and used only where it says the same.

The model is taken from the `ct2` folder that its training delivered, or converted into the stage's scratch folder. Both engines
then translate a sample, and if one text of it differs Transformers goes on alone, and says so. int8 weights are a setting of their
own: they give other texts, so a larger sample must score as well as float32's.

CTranslate2's patience of 2 goes with Transformers' `early_stopping=False`: it searches on after the first finished beams.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from stages import cuda_libraries, marian_ct2
from stages.loading import is_folder, loading
from stages.runtime import StageContext
from stages.scoring import Sentence, corpus_score, statistics
from stages.translation import Backend, Decoding, Located, Marian, Tick
from state.durable import publish_folder

WORTH_IT = 200
"""Fewer distinct sources are translated before a conversion and two samples are done."""
SAMPLE = 24
"""Sources that both engines translate, spread over all lengths."""
SAMPLE_INT8 = 200
TOLERANCE = 0.2
"""BLEU and chrF++ points that int8 may lose on its sample."""
ROWS = 32
"""Sources between two heartbeats on a CPU."""
CONVERT_QUIET_S = 900.0
TRIAL_S = 300.0


class QuickMarian:
    """A converted Marian with the tokenizer of the model that it was made from."""

    def __init__(self, folder: Path, tokenizer: Any, device: str, decoding: Decoding, precision: str, most: int) -> None:
        import ctranslate2  # after cuda_libraries.preload: it looks for them when it is first used

        threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        self.model = ctranslate2.Translator(str(folder), device=device, compute_type=precision, intra_threads=threads)
        self.engine = f"CTranslate2 {ctranslate2.__version__}, {precision}"
        self.tokenizer, self.device, self.decoding, self._most = tokenizer, device, decoding, most

    @property
    def max_source_tokens(self) -> int:
        return self._most

    def lengths(self, sources: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(sources), verbose=False)["input_ids"]]

    def translate(self, sources: Sequence[str], tick: Tick) -> list[tuple[str, int]]:
        step = ROWS if self.device == "cpu" else max(1, len(sources))
        found: list[tuple[str, int]] = []
        for start in range(0, len(sources), step):
            tick()
            found += self._some(sources[start : start + step])
        tick()
        return found

    def _some(self, sources: Sequence[str]) -> list[tuple[str, int]]:
        rows = self.tokenizer(list(sources), truncation=True, max_length=self._most)["input_ids"]
        pieces = [self.tokenizer.convert_ids_to_tokens(ids) for ids in rows]
        longest = self.decoding.max_new_tokens - 1  # at the limit Transformers puts the end mark in the place of the last word
        said = self.model.translate_batch(
            pieces, beam_size=self.decoding.num_beams, patience=2, max_decoding_length=max(1, longest)
        )
        ids = [self.tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in said]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text.strip(), len(one) + 1) for text, one in zip(texts, ids, strict=True)]  # + 1: the end mark


def quicken(
    ctx: StageContext, slow: Marian, model: Located, name: str, sentences: Sequence[Sentence], beat: Callable[[], None]
) -> Backend:
    """CTranslate2's backend where it says what `slow` says, else `slow`; the owner is told why. `name`: the model's identity."""
    device = usable_device(slow.device)
    if device is None:
        ctx.note("CTranslate2 finds no CUDA 12 libraries that work beside PyTorch; transformers translates", level="warning")
        return slow
    folder = converted(ctx, model, name)

    def engine(precision: str) -> QuickMarian:
        return QuickMarian(folder, slow.tokenizer, device, slow.decoding, precision, slow.max_source_tokens)

    quick = engine("float32")
    ordered = sorted({one.source: one for one in sentences}.values(), key=lambda one: (len(one.source), one.source))
    sources = [one.source for one in spread(ordered, SAMPLE)]
    different = sum(one != two for one, two in zip(texts(slow, sources, beat), texts(quick, sources, beat), strict=True))
    if different:
        ctx.note(
            f"CTranslate2 translates {different} of {len(sources)} sample sentences otherwise; transformers translates",
            level="warning",
        )
        return slow
    if not slow.decoding.int8:
        return quick
    chosen, small = spread(ordered, SAMPLE_INT8), engine("int8")
    why = loses(chosen, *(texts(one, [sentence.source for sentence in chosen], beat) for one in (quick, small)))
    if why:
        ctx.note(f"int8 is not as good as float32 on {len(chosen)} sentences ({why}); float32 translates", level="warning")
    return quick if why else small


def texts(backend: Backend, sources: Sequence[str], beat: Callable[[], None]) -> list[str]:
    """What a backend makes of the sample."""
    return [
        text for start in range(0, len(sources), ROWS) for text, _tokens in backend.translate(sources[start : start + ROWS], beat)
    ]


def spread(ordered: Sequence[Sentence], most: int) -> list[Sentence]:
    """At most `most` of them at even distances, the first and the last included."""
    if len(ordered) <= most:
        return list(ordered)
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def loses(sentences: Sequence[Sentence], whole: Sequence[str], small: Sequence[str]) -> str:
    """By how much int8 falls behind float32, where that is more than TOLERANCE; empty: it does not."""
    sides = [statistics(sentences, hypotheses) for hypotheses in (whole, small)]
    behind = {name: (corpus_score(name, sides[0]) or 0.0) - (corpus_score(name, sides[1]) or 0.0) for name in ("bleu", "chrf")}
    return ", ".join(f"{name} {-points:+.2f}" for name, points in behind.items() if points > TOLERANCE)


def converted(ctx: StageContext, model: Located, name: str) -> Path:
    """The folder of the converted model: delivered with it, kept from an earlier attempt, or made now."""
    source = (
        Path(model.path)
        if is_folder(model.path)
        else Path(str(cached_file(model.path, "config.json", revision=model.revision))).parent
    )
    delivered = source / marian_ct2.FOLDER
    if (delivered / "model.bin").is_file():
        return delivered
    folder = ctx.scratch() / "ct2" / name[:16]
    if not folder.is_dir():
        ctx.quiet(CONVERT_QUIET_S, "converting the model for CTranslate2")
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with loading(model.path):
            marian_ct2.convert(source, temporary)
        publish_folder(temporary, folder)
    return folder


def forget(ctx: StageContext) -> None:
    """Remove what was converted: the translations are kept, the model is not needed again."""
    shutil.rmtree(ctx.scratch() / "ct2", ignore_errors=True)


def usable_device(torch_device: str) -> str | None:
    """CTranslate2's device beside a PyTorch that uses `torch_device`; None: there is a GPU and CTranslate2 cannot use it."""
    if torch_device != "cuda":
        return "cpu"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    try:
        subprocess.run([sys.executable, "-c", TRIAL], env=environment, capture_output=True, timeout=TRIAL_S, check=True)
    except subprocess.SubprocessError:
        return None
    cuda_libraries.preload()
    return "cuda"


TRIAL = """
import torch
from stages import cuda_libraries
torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
cuda_libraries.preload()
import ctranslate2, numpy
view = ctranslate2.StorageView.from_array(numpy.ones((8, 8), dtype=numpy.float32)).to_device(ctranslate2.Device.cuda)
raise SystemExit(0 if ctranslate2.get_cuda_device_count() and cuda_libraries.loads(cuda_libraries.CUBLAS) else 1)
"""
"""Both beside each other in a process of its own first: a clash of two CUDA versions ends a process without a word."""
