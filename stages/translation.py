"""Translating many sentences by one model: loading it, decoding in batches, and keeping every batch as it comes.

A backend holds a model and translates one batch. `translate` feeds it a fixed plan of batches, longest sentences first
(the first batch is then also the test of memory), halves the batch when memory runs out, and appends each finished batch
to a file before the next one starts: a killed attempt loses the batch in flight and nothing else.

Marian decodes by beam search, by way of `stages.quick_marian` where that says the same. TranslateGemma decodes greedily, as its
model card does, from the weights in 4-bit NF4 as in training, with an adapter on top where there is one. The tokens that count for
speed are those generated, without padding.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    MarianMTModel,
    MarianTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers import __version__ as transformers_version
from transformers.utils import cached_file

from stages.four_bit import keep_layout, nf4
from stages.gemma_template import END_OF_TURN, read_template
from stages.loading import claim_device, free_memory, is_folder, loading, resolve_model
from stages.runtime import StageContext, out_of_memory
from stages.scoring import digest
from state.contract import MisconfiguredError, OutOfMemoryError
from state.durable import append_durably, file_digest
from state.settings import TranslationModel

MARIAN_SOURCE_TOKENS = 512
BATCH_TOKENS = 4096
LOAD_QUIET_S = 1800.0
"""A model may come over the network first."""
FINGERPRINTED = {".safetensors", ".bin", ".json", ".jinja", ".model", ".spm", ".txt"}
NOT_THE_MODEL = {"made.json", "README.md"}

Tick = Callable[[], None]
"""Called after every generated token: beats the heart, and may raise StopRequested."""


class Hypothesis(msgspec.Struct, frozen=True):
    """One translation; `tokens` are those generated, the end mark included."""

    id: str
    """SHA-256 of the source text."""
    text: str
    tokens: int
    cut: bool = False
    """Only the beginning of the source fitted into the model."""


class Batch(msgspec.Struct, frozen=True):
    """One line of the file of kept translations."""

    seconds: float
    hypotheses: tuple[Hypothesis, ...]
    device: str = ""
    engine: str = ""


class Backend(Protocol):
    """A loaded model."""

    device: str
    engine: str
    """The library that decodes, with its version and precision."""

    def lengths(self, sources: Sequence[str]) -> list[int]:
        """Tokens of each source before any cut."""
        ...

    @property
    def max_source_tokens(self) -> int:
        """Longer sources are cut."""
        ...

    def translate(self, sources: Sequence[str], tick: Tick) -> list[tuple[str, int]]:
        """Translation and number of generated tokens of each source, in order."""
        ...


@dataclass(frozen=True)
class Decoding:
    """How translations are searched for: part of what makes two translations comparable."""

    num_beams: int
    max_new_tokens: int
    int8: bool = False
    """Marian on int8 weights where a sample scores as well."""

    def described(self, kind: str) -> str:
        """For the report, and for telling equal searches from different ones."""
        if kind == "marian":
            precision = "int8 if as good" if self.int8 else "float32"
            return f"beam search of {self.num_beams}, at most {self.max_new_tokens} tokens, {precision}"
        return f"greedy search, at most {self.max_new_tokens} tokens, NF4"


@dataclass(frozen=True)
class Located:
    """A model's or adapter's files: a folder, or a hub name pinned to one commit; `fingerprint` tells equal from different."""

    path: str
    revision: str | None
    fingerprint: str


# -- what a model is made of


def locate(ctx: StageContext, name: str, kind: Any) -> Located:
    """Find the files of `name` and digest them; of a hub model the commit stands for them.

    Raises:
        MisconfiguredError, TransientError: as `stages.loading` says.
    """
    path = resolve_model(ctx.workspace, name, kind)
    if is_folder(path):
        return Located(path, None, folder_fingerprint(Path(path), ctx))
    marker = "adapter_config.json" if kind == "adapter" else "config.json"
    with loading(name):
        found = cached_file(path, marker)
    commit = Path(str(found)).parent.name
    return Located(path, commit, digest(f"hub {path} {commit}"))


def folder_fingerprint(folder: Path, ctx: StageContext) -> str:
    """SHA-256 over names and contents of the model's own files in `folder`."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in FINGERPRINTED and file.name not in NOT_THE_MODEL:
            ctx.check_stop()
            ctx.quiet(60 + file.stat().st_size / 20e6, f"reading {file.name}")  # 20 MB/s: a slow disk
            whole.update(f"{file_digest(file)}  {file.name}\n".encode())
    return whole.hexdigest()


def identity(model: Located, adapter: Located | None, kind: str, decoding: Decoding) -> str:
    """Digest of everything that decides a translation: equal only if the models are truly identical."""
    return digest(" ".join([kind, model.fingerprint, adapter.fingerprint if adapter else "-", decoding.described(kind)]))


# -- backends


class _Heart(StoppingCriteria):
    """Never stops a sentence; ticks once a generated token."""

    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.tick()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Marian:
    """A MarianMTModel and its tokenizer, float32."""

    def __init__(self, model: Located, decoding: Decoding) -> None:
        self.device, self.engine = claim_device().type, f"transformers {transformers_version}, float32"
        with loading(model.path):
            self.tokenizer: Any = MarianTokenizer.from_pretrained(model.path, revision=model.revision)
            self.model: Any = MarianMTModel.from_pretrained(model.path, revision=model.revision, dtype=torch.float32)
        self.model.to(self.device).eval()
        self.decoding = decoding

    @property
    def max_source_tokens(self) -> int:
        return min(MARIAN_SOURCE_TOKENS, self.model.config.max_position_embeddings)

    def lengths(self, sources: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(sources), verbose=False)["input_ids"]]

    def translate(self, sources: Sequence[str], tick: Tick) -> list[tuple[str, int]]:
        cut = {"padding": True, "truncation": True, "max_length": self.max_source_tokens}
        inputs = self.tokenizer(list(sources), return_tensors="pt", **cut).to(self.device)
        room = self.model.config.max_position_embeddings - 1
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs,
                num_beams=self.decoding.num_beams,
                max_new_tokens=min(self.decoding.max_new_tokens, room),
                max_length=None,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([_Heart(tick)]),
            )[:, 1:]  # without the start token, which is the pad token
        counts = (generated != self.tokenizer.pad_token_id).sum(dim=1).tolist()
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [(text.strip(), int(count)) for text, count in zip(texts, counts, strict=True)]


class Gemma:
    """A TranslateGemma (Gemma3ForConditionalGeneration) in 4-bit NF4, with or without a LoRA adapter."""

    def __init__(self, model: Located, adapter: Located | None, decoding: Decoding) -> None:
        self.device, self.engine = claim_device().type, f"transformers {transformers_version}, NF4"
        compute = torch.bfloat16 if self.device == "cuda" else torch.float32
        with loading(model.path):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model.path, revision=model.revision, padding_side="left")
            self.model: Any = Gemma3ForConditionalGeneration.from_pretrained(
                model.path, revision=model.revision, quantization_config=nf4(compute), dtype=compute, device_map={"": self.device}
            )
        keep_layout(self.model)
        if adapter is not None:
            self.model = _with_adapter(self.model, adapter)
        self.model.eval()
        self.decoding = decoding
        self.end_ids = _end_ids(self.tokenizer)
        self.prompt = read_template(self.tokenizer).prompt

    @property
    def max_source_tokens(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings) - self.decoding.max_new_tokens

    def lengths(self, sources: Sequence[str]) -> list[int]:
        prompts = [self.prompt(source) for source in sources]
        return [len(ids) for ids in self.tokenizer(prompts, add_special_tokens=False)["input_ids"]]

    def translate(self, sources: Sequence[str], tick: Tick) -> list[tuple[str, int]]:
        prompts = [self.prompt(self._cut(source)) for source in sources]
        inputs = self.tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True).to(self.device)
        with torch.inference_mode():
            generated = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                num_beams=1,
                do_sample=False,
                top_k=None,
                top_p=None,
                max_new_tokens=self.decoding.max_new_tokens,
                max_length=None,
                eos_token_id=self.end_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([_Heart(tick)]),
            )[:, inputs["input_ids"].shape[1] :]
        counts = (generated != self.tokenizer.pad_token_id).sum(dim=1).tolist()
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [(text.strip(), int(count)) for text, count in zip(texts, counts, strict=True)]

    def _cut(self, source: str) -> str:
        """The beginning of a source that is too long: the prompt's own end must stay."""
        surplus = self.lengths([source])[0] - self.max_source_tokens
        if surplus <= 0:
            return source
        ids = self.tokenizer(source, add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(ids[: max(1, len(ids) - surplus)]))


def load(kind: str, model: Located, adapter: Located | None, decoding: Decoding) -> Backend:
    """The backend of a model, loaded on the GPU where there is one."""
    return Marian(model, decoding) if kind == "marian" else Gemma(model, adapter, decoding)


def _with_adapter(model: Any, adapter: Located) -> Any:
    from peft import PeftModel  # late: it takes seconds, and only adapters need it

    with loading(adapter.path):
        return PeftModel.from_pretrained(model, adapter.path, revision=adapter.revision)


def _end_ids(tokenizer: Any) -> list[int]:
    """Ids that end a translation: the end of the text and the end of the turn."""
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)} - {None, tokenizer.unk_token_id}
    return sorted(ends)


# -- keeping


class Kept:
    """The translations kept in one file, a line a batch; `path` is named after the model's identity."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[Batch] = list(_whole_lines(path))
        self.by_id = {hypothesis.id: hypothesis for batch in self.batches for hypothesis in batch.hypotheses}

    def append(self, batch: Batch) -> None:
        """Keep a batch, durably."""
        append_durably(self.path, msgspec.json.encode(batch))
        self.batches.append(batch)
        self.by_id.update((hypothesis.id, hypothesis) for hypothesis in batch.hypotheses)

    @property
    def seconds(self) -> float:
        """Time spent in generating, of all attempts."""
        return sum(batch.seconds for batch in self.batches)

    @property
    def device(self) -> str:
        """What they were made on, whichever attempt made them."""
        return ", ".join(sorted({batch.device for batch in self.batches if batch.device}))

    @property
    def engine(self) -> str:
        """What decoded them: more than one engine only where they were checked to say the same."""
        return ", ".join(sorted({batch.engine for batch in self.batches if batch.engine}))

    @property
    def tokens(self) -> int:
        """Generated tokens in all."""
        return sum(hypothesis.tokens for batch in self.batches for hypothesis in batch.hypotheses)


def _whole_lines(path: Path) -> Iterator[Batch]:
    """The batches of the file; a torn line, the mark of a kill, is passed over and translated again."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield msgspec.json.decode(line, type=Batch)
        except msgspec.DecodeError:
            continue


def plan(sources: Iterable[str], lengths: Sequence[int], batch_size: int, batch_tokens: int) -> list[list[str]]:
    """Batches of the distinct sources, longest first: at most `batch_size` each, and at most `batch_tokens` with the padding.

    A source longer than that is a batch of its own. A pure function of its arguments.
    """
    ordered = sorted(zip(lengths, sources, strict=True), key=lambda pair: (-pair[0], pair[1]))
    batches = []
    while ordered:
        rows = max(1, min(batch_size, batch_tokens // max(1, ordered[0][0])))
        batches.append([text for _length, text in ordered[:rows]])
        ordered = ordered[rows:]
    return batches


def translate(
    ctx: StageContext,
    backend: Backend,
    sources: Sequence[str],
    batch_size: int,
    kept: Kept,
    beat: Callable[[int], None],
    batch_tokens: int = BATCH_TOKENS,
) -> None:
    """Translate the distinct `sources` that are not kept yet; `beat(n)` hears how many are done, also during a batch.

    Raises:
        OutOfMemoryError: one sentence alone does not fit, or the GPU's context is broken.
        StopRequested: a stop was asked for; the batch in flight is lost.
    """
    lengths = backend.lengths(sources)
    cut = {digest(text) for text, length in zip(sources, lengths, strict=True) if length > backend.max_source_tokens}
    batches = plan(sources, lengths, batch_size, batch_tokens)
    queue = deque(todo for batch in batches if (todo := [text for text in batch if digest(text) not in kept.by_id]))

    def tick() -> None:
        ctx.check_stop()
        beat(len(kept.by_id))

    while queue:
        ctx.check_stop()
        batch = queue.popleft()
        started = time.monotonic()
        found = _try_batch(backend, batch, tick)
        if found is None:
            free_memory()
            queue = _smaller(batch, queue, _halved(ctx, batch))
            continue
        seconds = round(time.monotonic() - started, 6)
        names = [digest(source) for source in batch]
        hypotheses = tuple(Hypothesis(id_, *pair, id_ in cut) for id_, pair in zip(names, found, strict=True))
        kept.append(Batch(seconds, hypotheses, backend.device, backend.engine))
        beat(len(kept.by_id))


def _smaller(batch: list[str], queue: Iterable[list[str]], size: int) -> deque[list[str]]:
    """What is left to do, in the same order, in batches of `size`."""
    rest = [text for later in (batch, *queue) for text in later]
    return deque(rest[start : start + size] for start in range(0, len(rest), size))


def _try_batch(backend: Backend, batch: Sequence[str], tick: Tick) -> list[tuple[str, int]] | None:
    """The translations, or None when memory ran out: returning first lets go of the tensors that the traceback holds."""
    try:
        return backend.translate(batch, tick)
    except Exception as error:
        if not out_of_memory(error):
            raise
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemoryError(f"the GPU ran out of memory at batch {len(batch)} and cannot be used on: {error}") from error
        return None


def _halved(ctx: StageContext, batch: Sequence[str]) -> int:
    if len(batch) == 1:
        raise OutOfMemoryError("translating one sentence does not fit into memory; choose a smaller model or fewer new tokens")
    size = len(batch) // 2
    ctx.note(f"out of memory at an evaluation batch of {len(batch)}; going on with {size}", level="warning", batch=size)
    return size


def check_row(row: TranslationModel) -> None:
    """An adapter goes with Gemma only, int8 with Marian only.

    Raises:
        MisconfiguredError: a row says otherwise.
    """
    if row.kind == "gemma" and row.int8:
        raise MisconfiguredError(f"models[{row.name}].int8: Gemma's weights are in 4 bits already; set it for Marian only")
    if row.kind == "marian" and row.adapter is not None:
        raise MisconfiguredError(
            f"models[{row.name}].adapter: Marian is trained whole and takes no adapter; name its folder as `model`"
        )
