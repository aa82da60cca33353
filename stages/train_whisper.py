"""Whisper by LoRA on the sermons' own chunks and their pseudo-labels, with general speech mixed in against forgetting.

Adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) sit on the attention of encoder and decoder. Whole recordings
are held out: chunks of one sermon share voice, room and words. The word error rate is measured on held-out chunks before
and after; its references are pseudo-labels too, so it is agreement with the teacher, not truth. General speech held out
shows what was forgotten. Delivers the adapter with the best dev loss and the processor into `fine_tuned_whisper_mi`, and
in `merged-ct2` below it the whole model for faster-whisper, if that proves equal (`stages.merged_whisper`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor

from stages import footprint, merged_whisper, word_errors
from stages import replay as general_speech
from stages.loading import claim_device, loading, resolve_model
from stages.recordings import NotAudioError, decode
from stages.runtime import Delivery, StageContext, run
from stages.shrinking import Shrinking
from stages.speech_rows import Row, choose_replay, read_rows, replay_count, row_lines, sample, split_by_source
from stages.training import Batch, Data, Example, Recipe, digest, summed_loss, train
from state.contract import MisconfiguredError
from state.durable import append_durably
from state.settings import TrainWhisper

ATTENTION = r".*\.(encoder|decoder)\.layers\.\d+\.(self_attn|encoder_attn)\.(q_proj|k_proj|v_proj|out_proj)"
RATE = 16_000
MAX_CHUNK_S = 30.0
LOAD_QUIET_S = 1800.0
"""A model may come over the network first."""
DECODE_QUIET_S = 300.0
IGNORED = -100


class Heard(msgspec.Struct, frozen=True):
    """One decoded chunk, kept on disk as it comes."""

    id: str
    text: str


def main(ctx: StageContext) -> Delivery:
    """Train the adapter, measure it, deliver it."""
    settings = ctx.settings(TrainWhisper)
    source = resolve_model(ctx.workspace, settings.model, "whisper")
    everything = sermon_rows(ctx, settings)
    replay = replay_rows(ctx, settings, len(everything))
    sermons, held_out = split_by_source(everything, settings.dev_examples, ctx.spec.seed)
    if not held_out and settings.dev_examples:
        ctx.note("fewer than two recordings: nothing is held out, so no word error rate is measured", level="warning")
    mixed, held_out_replay = choose_replay(sermons, held_out, replay, settings.replay_share, ctx.spec.seed)
    tell_replay(ctx, settings, mixed, held_out_replay, replay_count(len(sermons), settings.replay_share))
    ctx.quiet(LOAD_QUIET_S, f"loading {settings.model}")
    device = claim_device()
    with loading(settings.model):
        predicted = footprint.announce(ctx, AutoConfig.from_pretrained(source).to_dict(), settings)
    processor, base = load_model(source, settings, device)
    labels = Labels(processor, base.config, settings.language)
    rows = fitting(ctx, [*sermons, *mixed], labels)
    dev = fitting(ctx, [*held_out, *held_out_replay], labels)
    model = add_adapter(base, settings)
    lines = [*row_lines(rows), "dev", *row_lines(dev)]
    mark = digest([*lines, settings.model, settings.language])
    before = hear(ctx, model, labels, dev, ctx.scratch() / f"heard-before-{mark[:16]}.jsonl", settings)
    trained = train(
        ctx,
        settings,
        Recipe(
            model=model,
            model_name=settings.model,
            train=data(rows, labels),
            dev=data(dev, labels) if dev else None,
            token_loss=decoder_loss(settings.label_smoothing),
            fingerprint={"data": digest(lines), "model": settings.model, "adapter": f"{settings.lora_rank} {settings.lora_alpha}"},
            processing=processor,
        ),
    )
    after = hear(
        ctx, model, labels, dev, ctx.scratch() / f"heard-after-{mark[:16]}-{trained.steps}-{trained.best_step}.jsonl", settings
    )
    rates, words = word_error_rates(dev, before, after, ctx.spec.seed)
    ctx.quiet(DECODE_QUIET_S, "writing the adapter")
    folder = ctx.scratch() / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = settings.model  # not a path of this machine
    model.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" looks the base up on the hub
    (folder / "README.md").unlink()  # an empty form that names a path of this machine
    processor.save_pretrained(str(folder))
    merged = settings.merge and merge(ctx, source, folder, labels, dev or rows)
    target = ctx.publish(folder, ctx.workspace.fine_tuned_whisper)
    counts = {"sermon_chunks": float(len(sermons)), "replay_clips": float(len(mixed)), "held_out_chunks": float(len(dev))}
    counts["merged"] = float(merged)
    data_words = f"{trained.steps} steps on {len(sermons)} chunks and {len(mixed)} replay clips"
    summary = f"{data_words}; {words}; best adapter at step {trained.best_step}"
    footprint.tell_peak(ctx, predicted)
    return Delivery(outputs=[target], metrics={**trained.metrics, **rates, **counts}, summary=summary)


# -- data


def sermon_rows(ctx: StageContext, settings: TrainWhisper) -> list[Row]:
    """The labelled chunks, those that the transcription kept, at most `max_examples` of them.

    Raises:
        MisconfiguredError: there is no metadata file, or it keeps no chunk.
    """
    metadata = ctx.workspace.transcripts / "metadata.jsonl"
    rows = read_rows(metadata, (ctx.workspace.cleaned_audio, metadata.parent))
    if not rows:
        raise MisconfiguredError(f"{metadata} keeps no chunk to train on; look at the verdicts of the transcribe stage")
    return sample(rows, settings.max_examples, ctx.spec.seed)


def replay_rows(ctx: StageContext, settings: TrainWhisper, chunks: int) -> list[Row]:
    """The clips of general speech, enough for `chunks` chunks of sermons.

    Raises:
        MisconfiguredError: replay is required and the source is not named, not there, or empty.
        TransientError: the hub does not answer.
    """
    if settings.replay_share == 0:
        return []
    fault = f"no replay_source is set for {settings.replay_share:.0%} replay"
    if settings.replay_source is not None:
        rows, fault = general_speech.find(ctx, settings.replay_source, replay_count(chunks, settings.replay_share))
        if rows:
            return rows
    if settings.replay_required:
        raise MisconfiguredError(
            f"{fault}; give an audiofolder with metadata.jsonl (file_name, text), a Common Voice folder or hub:NAME as "
            "replay_source, or set replay_required = false"
        )
    ctx.note(f"{fault}: trained without replay, so general speech may be heard worse than before", level="warning")
    return []


def tell_replay(ctx: StageContext, settings: TrainWhisper, mixed: Sequence[Row], held_out: Sequence[Row], wanted: int) -> None:
    """Say what general speech there is before anything is trained."""
    if not mixed:
        return
    accents = len({row.accent for row in mixed if row.accent})
    balanced = f", {accents} accents in turns" if accents else ""
    text = f"general speech from {settings.replay_source}: {len(mixed)} clips to train on, {len(held_out)} held out{balanced}"
    short = len(mixed) < wanted
    ctx.note(
        f"{text}; too few: {settings.replay_share:.0%} of the examples would be {wanted}" if short else text,
        level="warning" if short else "info",
    )


class Labels:
    """What the decoder is forced to start with and what it learns to say, for one language."""

    def __init__(self, processor: WhisperProcessor, config: Any, language: str) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.multilingual = self.tokenizer.convert_tokens_to_ids("<|transcribe|>") != self.tokenizer.unk_token_id
        spoken: dict[str, str | None] = (
            {"language": language, "task": "transcribe"} if self.multilingual else {"language": None, "task": None}
        )
        try:
            self.tokenizer.set_prefix_tokens(**spoken, predict_timestamps=False)
        except ValueError as error:
            raise MisconfiguredError(f"language {language!r} is not one of Whisper's ({error})") from error
        self.prefix = list(self.tokenizer.prefix_tokens)
        self.end = int(self.tokenizer.eos_token_id)
        self.most = int(config.max_target_positions)
        self.spoken = spoken if self.multilingual else {}

    def text_ids(self, text: str) -> list[int]:
        """The text as Whisper writes it, with a space before the first word, and the end mark."""
        return [*self.tokenizer.encode(f" {text.strip()}", add_special_tokens=False), self.end]

    def features(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Log-mel spectrograms, (rows, mel bins, 3000) float32, each padded to 30 s."""
        waves = [samples(row.path) for row in rows]
        found = self.processor.feature_extractor(waves, sampling_rate=RATE, return_tensors="np")
        return np.asarray(found["input_features"], dtype=np.float32)


def samples(path: Path) -> NDArray[np.float32]:
    """The sound of a chunk, (samples,) float32 at 16 kHz, channels averaged, at most 30 s.

    Raises:
        MisconfiguredError: it cannot be decoded; the stage that made it has to make it again.
    """
    try:
        blocks = [block.mean(axis=0) for block in decode(path)]
    except (NotAudioError, OSError) as error:
        raise MisconfiguredError(f"{path}: {error}; remove it from metadata.jsonl or make it again") from error
    whole = np.concatenate(blocks) if blocks else np.zeros(0)
    if not len(whole):
        raise MisconfiguredError(f"{path} holds no sound; remove it from metadata.jsonl or make it again")
    return np.asarray(whole[: int(MAX_CHUNK_S * RATE)], dtype=np.float32)


def fitting(ctx: StageContext, rows: Sequence[Row], labels: Labels) -> list[Row]:
    """The rows whose text fits into the decoder."""
    room = labels.most - len(labels.prefix)
    kept = [row for row in rows if len(labels.text_ids(row.text)) <= room]
    if len(kept) < len(rows):
        ctx.note(f"{len(rows) - len(kept)} chunks have more text than the decoder takes ({labels.most} tokens) and were left out")
    return kept


def data(rows: Sequence[Row], labels: Labels) -> Data:
    """The rows as `stages.training` takes them; audio is decoded when its batch comes (about 20 ms of CPU a chunk)."""
    examples = [Example(row.id, len(labels.text_ids(row.text))) for row in rows]
    return Data(examples, lambda indices: collate([rows[index] for index in indices], labels))


def collate(rows: Sequence[Row], labels: Labels) -> Batch:
    """One batch: `input_features` (batch, mel bins, 3000); `decoder_input_ids` and `labels` (batch, longest text), aligned.

    The forced prefix is given and not learned.
    """
    texts = [labels.text_ids(row.text) for row in rows]
    width = max(len(text) for text in texts) + len(labels.prefix) - 1
    inputs = np.full((len(rows), width), labels.end, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for number, text in enumerate(texts):
        given = [*labels.prefix, *text[:-1]]
        inputs[number, : len(given)] = given
        targets[number, len(labels.prefix) - 1 : len(given)] = text
    return {
        "input_features": torch.from_numpy(labels.features(rows)),
        "decoder_input_ids": torch.from_numpy(inputs),
        "labels": torch.from_numpy(targets),
    }


def decoder_loss(smoothing: float) -> Any:
    """The recipe's `token_loss`."""

    def token_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        features = batch["input_features"].to(_float_type(model))
        output = model(input_features=features, decoder_input_ids=batch["decoder_input_ids"], use_cache=False)
        return summed_loss(output.logits, batch["labels"], smoothing if model.training else 0.0)

    return token_loss


# -- the model


def load_model(source: str, settings: TrainWhisper, device: torch.device) -> tuple[WhisperProcessor, Any]:
    """Processor and base model on `device`, every parameter frozen; bfloat16 weights on a GPU if the settings allow it."""
    dtype = torch.bfloat16 if settings.bf16 and device.type == "cuda" else torch.float32
    with loading(settings.model):
        processor = WhisperProcessor.from_pretrained(source)
        model = WhisperForConditionalGeneration.from_pretrained(source, dtype=dtype).to(device)
    model.requires_grad_(False)
    model.config.use_cache = False
    return processor, model


def add_adapter(model: Any, settings: TrainWhisper) -> PeftModel:
    """LoRA on every attention projection; without a task type, so that peft passes `input_features` on as they are.

    Raises:
        MisconfiguredError: the model has no layer of Whisper's names.
    """
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=ATTENTION,
        bias="none",
    )
    torch.manual_seed(0)  # the adapter's first weights: the same in every attempt
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise MisconfiguredError(f"model {settings.model}: LoRA finds no attention layers of Whisper in it ({error})") from error


def merge(ctx: StageContext, source: str, adapter: Path, labels: Labels, rows: Sequence[Row]) -> bool:
    """Add the whole model for faster-whisper to the adapter's folder; said where it cannot be."""
    features = labels.features(rows[: merged_whisper.SAMPLES])
    prompt = merged_whisper.Prompt(labels.prefix, labels.end)
    fault = merged_whisper.deliver(ctx, source, adapter, labels.processor, prompt, features)
    if fault is not None:
        ctx.note(f"the adapter is delivered alone, without its merged form for faster-whisper: {fault}", level="warning")
    return fault is None


def _float_type(model: nn.Module) -> torch.dtype:
    """The type of the base's weights; the adapter's may be wider."""
    return next(p.dtype for name, p in model.named_parameters() if "conv1" in name)


# -- word error rate


def word_error_rates(rows: Sequence[Row], before: dict[str, str], after: dict[str, str], seed: int) -> tuple[dict[str, float], str]:
    """Rates of the sermon chunks (`wer`) and of the replay clips (`replay_wer`), for those that there are, and in words."""
    rates: dict[str, float] = {}
    words = []
    for name, replayed, what in (
        ("wer", False, "WER against held-out pseudo-labels (agreement)"),
        ("replay_wer", True, "WER on general speech held out (forgetting)"),
    ):
        said = {row.id: row.text for row in rows if row.replay is replayed}
        found = word_errors.rates(name, word_errors.compare(said, before, after), seed) if said else {}
        rates |= found
        words += [f"{what} {word_errors.in_words(name, found)}"] if found else []
    return rates, "; ".join(words) or "no held-out WER"


def hear(
    ctx: StageContext, model: PeftModel, labels: Labels, rows: Sequence[Row], kept: Path, settings: TrainWhisper
) -> dict[str, str]:
    """What the model hears in each row, by id: greedy, without timestamps, at most twice the longest label of a batch."""
    heard = {one.id: one.text for one in _kept(kept)}
    batches = Shrinking(ctx, ctx.spec.batch.eval_batch or settings.micro_batch or 8, "held-out chunk")
    ordered = sorted((row for row in rows if row.id not in heard), key=lambda row: (len(row.text), row.id))
    model.eval()

    def transcribed(batch: Sequence[Row]) -> list[str]:
        ctx.check_stop()
        ctx.quiet(DECODE_QUIET_S, f"{len(heard)} of {len(rows)} held-out chunks heard")
        return _transcribe(model, labels, batch)

    for row, text in batches.run(ordered, transcribed):
        append_durably(kept, msgspec.json.encode(Heard(row.id, text)))
        heard[row.id] = text
    return heard


@torch.no_grad()
def _transcribe(model: PeftModel, labels: Labels, rows: Sequence[Row]) -> list[str]:
    longest = max(len(labels.text_ids(row.text)) for row in rows)
    device = next(model.parameters()).device
    features = torch.from_numpy(labels.features(rows)).to(device, _float_type(model))
    found = model.generate(
        input_features=features,
        attention_mask=torch.ones(features.shape[0], features.shape[2], dtype=torch.long, device=device),
        max_new_tokens=min(2 * longest + 8, labels.most - len(labels.prefix)),
        do_sample=False,
        num_beams=1,
        return_timestamps=False,
        use_cache=True,
        **labels.spoken,
    )
    return [text.strip() for text in labels.tokenizer.batch_decode(found, skip_special_tokens=True)]


def _kept(path: Path) -> list[Heard]:
    """What an earlier attempt heard; a torn last line is left out and heard again."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(msgspec.json.decode(line, type=Heard))
        except msgspec.DecodeError:
            continue
    return found


if __name__ == "__main__":
    run(main)
