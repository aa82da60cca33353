"""The settings of every stage module: names, types, units, defaults.

The daemon checks a pipeline file against these before anything starts, so that a typo does not wait until the third
day; the stage converts its spec with the same types. Paths that are relative count from the workspace, except where a
docstring says otherwise; a model is a folder or a name on the Hugging Face hub.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(gt=0.0)]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A name that also names a file."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all stage settings."""


class Download(Settings, frozen=True, kw_only=True):
    """`stages.download`: the newest recordings of a playlist or channel."""

    url: Annotated[str, Meta(min_length=1)]
    newest: Positive = 30
    """Recordings to have in the end."""
    min_duration_s: Seconds = 60.0
    """Shorter recordings are announcements and are left out."""
    captions: bool = True
    """Keep the site's own captions beside the audio where offered."""
    tries: Positive = 5
    """Tries of one recording before the stage gives up as TRANSIENT."""
    first_delay_s: Seconds = 2.0
    """Before the second try; doubles with each, one minute at most."""


class Corpus(Settings, frozen=True, kw_only=True):
    """`stages.corpus`: verse pairs and glossary."""

    source: Annotated[str, Meta(min_length=1)]
    """A folder in the layout of scrollmapper/bible_databases; `sample` is the small one that ships with Vigil."""
    english: tuple[str, ...] | None = None
    """Names of texts; None: KJV, ASV, BBE, YLT and NHEB, or the sample's own."""
    spanish: tuple[str, ...] | None = None
    """None: SpaRV (1909) and SpaRV1865, or the sample's own."""
    min_verses: Positive = 20_000
    """A text with fewer verses is refused."""
    test_share: Share = 0.1
    """Of the references of each genre."""


class Preprocess(Settings, frozen=True, kw_only=True):
    """`stages.preprocess`: recordings to clean chunks. Every pass can be switched off."""

    channel_check: bool = True
    """Take the loudest channel alone where the mean of all would be much weaker; false: always the mean."""
    gate: bool = True
    kinds: bool = True
    """Tell speech, music and noise apart, by measure or by `kinds_model`."""
    kinds_model: str = ""
    """An audio classifier for transformers, a folder or a hub name; empty: by measure, which needs no weights."""
    separation_model: str = ""
    """A demucs model (`htdemucs`, or a .safetensors file) that takes the music out where there is some; empty: it stays."""
    band_pass: bool = True
    denoise: bool = True
    loudness: bool = True
    vad: bool = True
    """Cut out the speech; false: cut all of the recording into chunks, at its quietest points."""
    speaker_model: str = ""
    """A speaker model for transformers (`microsoft/wavlm-base-plus-sv`) that tells who speaks in a chunk; empty: nobody does."""
    final_gate: bool = True
    low_hz: Annotated[float, Meta(gt=0)] = 80.0
    high_hz: Annotated[float, Meta(gt=0)] = 7600.0
    denoise_strength: Share = 0.7
    loudness_lufs: float = -16.0
    true_peak_dbtp: float = -1.0
    min_snr_db: float = 5.0
    max_clipped_share: Share = 0.01
    max_music_share: Share = 1.0
    """Of a chunk's time: speech over music is kept unless this says otherwise."""
    min_chunk_s: Seconds = 1.0
    max_chunk_s: Seconds = 30.0
    merge_gap_s: Seconds = 0.5
    """Speech closer together than this becomes one chunk where it fits."""
    min_good_share: Share = 0.5
    """Of the recordings: below it the stage fails rather than train on little."""
    workers: Positive = 2
    """Recordings cleaned side by side, each in a process of its own, as far as memory and cores allow."""
    worker_mb: Annotated[float, Meta(ge=0)] = 16.0
    """Less sound than this in all is cleaned without workers: they take a second to start."""


class Transcribe(Settings, frozen=True, kw_only=True):
    """`stages.transcribe`: pseudo-labels by faster-whisper."""

    model: str = "large-v3"
    """A CTranslate2 folder, or a name that faster-whisper knows."""
    language: str = "en"
    compute_type: str = "default"
    beam_size: Positive = 5
    batch_size: Positive = 8
    min_avg_logprob: float = -1.0
    max_no_speech_prob: Share = 0.6
    max_compression_ratio: float = 2.4
    max_repeats: Positive = 5
    """The same words may stand in a row this often; more is a decoder's loop."""
    max_chars_per_s: Annotated[float, Meta(gt=0)] = 30.0
    """Nobody speaks faster: more text than that is made up."""
    word_timestamps: bool = False
    """When each word was said; needed to find words under which there is no speech."""
    max_silent_words: Share = 0.5
    """Of a segment's words, where the voice detector hears nothing; 1: any."""
    max_caption_error: Share = 0.5
    """Word error rate against the site's captions, where there are some; above it a segment is doubtful. 1: never."""
    corrections: str | None = None
    """A Label Studio export (JSON) of doubtful segments that people corrected; absolute or relative to the workspace."""
    keep_doubtful: bool = False
    """Train on doubtful segments too (the demo's tiny model doubts everything)."""


class TranslationModel(Settings, frozen=True, kw_only=True):
    """One model that `stages.evaluate` scores."""

    name: FileName
    """Its row in the report; the same before and after."""
    kind: Literal["marian", "gemma"]
    model: str
    adapter: str | None = None
    """A LoRA adapter, or None for the model as it is."""
    trained_by: str | None = None
    """The stage that makes it: when that one did not succeed, the row is left out and said so."""
    optional: bool = False
    """A bonus: when it cannot be loaded or does not fit into memory, the row is left out and said so."""
    int8: bool = False
    """Marian only: decode on int8 weights, if they lose at most 0.2 points of BLEU and chrF++ on 200 sentences."""


class Evaluate(Settings, frozen=True, kw_only=True):
    """`stages.evaluate`: SacreBLEU, chrF++ and COMET by model and genre."""

    label: FileName
    """`before`, `after`, ...: the column in the report."""
    models: tuple[TranslationModel, ...]
    comet_model: str | None = "Unbabel/wmt22-comet-da"
    """A checkpoint file, a hub name, `tiny` (the demo's own, made from the training pairs on first use), or none ("")."""
    kiwi_model: str = ""
    """A COMET that needs no reference, `Unbabel/wmt22-cometkiwi-da` say (its licence must be accepted on the hub); "": none."""
    forgetting: bool = False
    """Score each model also on the 200 general sentences that ship with Vigil: what a training on one domain forgets."""
    min_references: Positive = 500
    """A smaller test set is refused."""
    max_references: Positive | None = None
    """Score a fixed, genre-balanced sample of the test references."""
    batch_size: Positive = 32
    """Sentences translated at once, at most."""
    batch_tokens: Positive = 4096
    """Of their sources, padding included, at most."""
    num_beams: Positive = 4
    max_new_tokens: Positive = 256


class Training(Settings, frozen=True, kw_only=True):
    """Common to the training stages. The effective batch is the setting; micro-batches follow from memory."""

    model: str
    epochs: Positive = 3
    effective_batch: Positive = 32
    micro_batch: Positive | None = None
    """None: the whole effective batch first, halved until it fits."""
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-4
    warmup_share: Share = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    label_smoothing: Share = 0.0
    gradient_checkpointing: bool = False
    paged_optimizer: bool = False
    """bitsandbytes' paged 8-bit AdamW; CUDA only."""
    bf16: bool = True
    checkpoint_every_s: Seconds = 600.0
    """Before the first checkpoint; the later intervals follow from the measured time of a save (Young's rule) and may be longer."""
    checkpoint_every_steps: Positive | None = None
    dev_examples: Annotated[int, Meta(ge=0)] = 500
    """Held out of training for the quality gate; 0: none."""
    evaluations: Positive = 10
    """Of the dev set, spread over the run."""
    max_examples: Positive | None = None


class LoRA(Training, frozen=True, kw_only=True):
    """Common to the stages that train adapters."""

    lora_rank: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.05


class TrainWhisper(LoRA, frozen=True, kw_only=True):
    """`stages.train_whisper`."""

    model: str = "openai/whisper-large-v3-turbo"
    lora_rank: Positive = 32
    lora_alpha: Positive = 64
    language: str = "en"
    replay_share: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.3
    """Of each epoch's examples, from general speech."""
    replay_source: str | None = None
    """An audiofolder (metadata.jsonl with file_name and text) or an unpacked Common Voice (clips/ and its .tsv files), absolute
    or relative to the workspace; or `hub:owner/name[:configuration[:split]]`, a data set of the Hugging Face hub."""
    replay_required: bool = True
    """False: go on without replay, and say so."""
    merge: bool = True
    """Put a whole model for faster-whisper beside the adapter."""


class TrainMarian(Training, frozen=True, kw_only=True):
    """`stages.train_marian`."""

    epochs: Positive = 5
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-5
    max_tokens: Positive = 128
    glossary_repeats: Annotated[int, Meta(ge=0)] = 1


class TrainGemma(LoRA, frozen=True, kw_only=True):
    """`stages.train_gemma`."""

    size: Literal["A", "B"] = "A"
    """Names the output folder: A for 4B, B for 12B."""
    max_examples: Positive | None = 20_000
    """Verse pairs: one of each verse, modern translations first (`stages.pair_choice`). None: all that there are."""
    sermon_pairs: str | None = None
    """A JSON-lines file with `en` and `es`, absolute or relative to the workspace, that is trained on too."""
    learning_rate: Annotated[float, Meta(gt=0)] = 3e-6
    """TranslateGemma forgets fast: 1e-5 has ruined it between steps 50 and 150, 1e-6 has been safe. This is the middle."""
    max_tokens: Positive = 256
    load_in_4bit: bool = True
    gate_examples: Annotated[int, Meta(ge=0)] = 128
    """Of the dev examples, translated at each evaluation: the adapter with the best chrF++ is kept. 0: by dev loss."""


MODULES: dict[str, type[Settings]] = {
    "stages.download": Download,
    "stages.corpus": Corpus,
    "stages.preprocess": Preprocess,
    "stages.transcribe": Transcribe,
    "stages.evaluate": Evaluate,
    "stages.train_whisper": TrainWhisper,
    "stages.train_marian": TrainMarian,
    "stages.train_gemma": TrainGemma,
}
"""The stage modules that Vigil ships; a pipeline may name others, whose settings they check themselves."""
