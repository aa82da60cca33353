"""The demo's models, made on the spot: real architectures, tokenizers and files at a size that two cores can train.

`python -m stages.tiny FOLDER` writes `marian-en-es`, `whisper-tiny-teacher`, `whisper-tiny`, `whisper-tiny-ct2`,
`gemma-tiny-a` and `gemma-tiny-b` into FOLDER. The stages load them by the code that loads the real ones. Each model is seeded,
built under a temporary name and renamed when whole, so that a kill leaves no half model; one that is there and was made
from the same text is left alone.

The tokenizers are trained here, on the text given, with the special tokens and file layouts of opus-mt, Whisper and
TranslateGemma. The chat template is ours; it has the shape that TranslateGemma's model card documents.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils.logging import disable_progress_bar

from bible_data import sample
from stages.tiny_speech import Clip, read_clips, teach
from state.contract import MisconfiguredError, StageError
from state.durable import publish_folder, write_atomically

Pair = tuple[str, str]
"""One sentence in English and the same in Spanish."""

RECIPE = 3
"""Raise it when a recipe below changes: models made by an older one are then made again."""
MADE = "made.json"
EARLY = "early.safetensors"
CLIPS = Path(__file__).resolve().parent.parent / "pipelines" / "demo_audio"
SEED = 20
MIN_PAIRS = 50

MULTILINGUAL = ""
"""CTranslate2 takes a Whisper for multilingual when its vocabulary holds the empty token, as the published ones do."""
WHISPER_TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
WHISPER_LANGUAGES = tuple(LANGUAGES)[:99]  # the hundredth came with large-v3
TIMESTAMPS = tuple(f"<|{index * 0.02:.2f}|>" for index in range(1501))

GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
GEMMA_IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
GEMMA_SIZES: dict[str, dict[str, int]] = {
    "a": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3},
    "b": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3},
}

INSTRUCTION = "user Translate from English to Spanish: model"
CHAT_TEMPLATE = """\
{%- set names = {"en": "English", "es": "Spanish"} -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message["role"] == "user" -%}
{%- if loop.index0 % 2 != 0 -%}{{- raise_exception("Roles must alternate, user first") -}}{%- endif -%}
{%- set content = message["content"] -%}
{%- if content is string or content is mapping or content | length != 1 -%}
{{- raise_exception("User content must be a list of exactly one item") -}}
{%- endif -%}
{%- set item = content[0] -%}
{%- if item["type"] != "text" or item["source_lang_code"] not in names or item["target_lang_code"] not in names -%}
{{- raise_exception("The item needs type, source_lang_code, target_lang_code and text") -}}
{%- endif -%}
{{- "<start_of_turn>user\\nTranslate from " ~ names[item["source_lang_code"]] ~ " to " ~ names[item["target_lang_code"]] -}}
{{- ":\\n" ~ item["text"] | trim ~ "<end_of_turn>\\n" -}}
{%- elif message["role"] == "assistant" -%}
{%- if loop.index0 % 2 != 1 -%}{{- raise_exception("Roles must alternate, user first") -}}{%- endif -%}
{{- "<start_of_turn>model\\n" ~ message["content"] | trim ~ "<end_of_turn>\\n" -}}
{%- else -%}
{{- raise_exception("Only the roles user and assistant are known") -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<start_of_turn>model\\n" -}}{%- endif -%}
"""


# -- Marian


def make_marian(folder: Path, pairs: Sequence[Pair], *, pieces: int = 1000, d_model: int = 128, layers: int = 2) -> None:
    """Write an untrained MarianMTModel and its tokenizer into `folder`, laid out as opus-mt's models are.

    `pieces` is the most that each language's sentencepiece model may have; little text gives fewer. The joint
    vocabulary starts with `</s>`, `<unk>` and ends with `<pad>`, which also starts the decoder.
    """
    vocabulary: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for name, side in (("source.spm", 0), ("target.spm", 1)):
        model = _train_sentencepiece([pair[side] for pair in pairs], pieces)
        (folder / name).write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for index in range(processor.get_piece_size()):
            if not processor.is_control(index) and not processor.is_unknown(index):
                vocabulary.setdefault(processor.id_to_piece(index), len(vocabulary))
    vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
    tokenizer = MarianTokenizer(
        *(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")), source_lang="en", target_lang="es"
    )
    size = {
        "d_model": d_model,
        "vocab_size": len(vocabulary),
        "decoder_vocab_size": len(vocabulary),
        "max_position_embeddings": 512,
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    marks = {
        "pad_token_id": vocabulary["<pad>"],
        "decoder_start_token_id": vocabulary["<pad>"],
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    config = MarianConfig(
        **size,
        **_depth(layers, 4 * d_model),
        **heads,
        **marks,
        forced_eos_token_id=0,
        activation_function="swish",
        scale_embedding=True,
        static_position_embeddings=True,
        tie_word_embeddings=True,
        share_encoder_decoder_embeddings=True,
        init_std=0.06,  # one epoch of the sample ends at a dev loss of 1.3 in place of 1.9 with the default, made for width 512
        dropout=0.1,
    )
    with seeded():
        model = MarianMTModel(config)
    with torch.no_grad():  # CTranslate2 assumes that the decoder starts from a zero embedding
        model.get_input_embeddings().weight[vocabulary["<pad>"]].zero_()
    model.generation_config = GenerationConfig(
        **marks, forced_eos_token_id=0, bad_words_ids=[[vocabulary["<pad>"]]], max_length=512, num_beams=4
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _depth(layers: int, width: int) -> dict[str, int]:
    return {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in (("layers", layers), ("ffn_dim", width))}


def _train_sentencepiece(sentences: Sequence[str], pieces: int) -> bytes:
    """A unigram model as bytes; one thread, so that the same text gives the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        model_type="unigram",
        num_threads=1,
        unk_id=0,
        bos_id=-1,
        eos_id=1,
        minloglevel=2,
    )
    return model.getvalue()


# -- Whisper


def make_whisper(folder: Path, texts: Sequence[str], *, d_model: int = 64, layers: int = 2) -> None:
    """Write an untrained WhisperForConditionalGeneration and its processor into `folder`.

    All special tokens of Whisper before large-v3 are there (99 languages, 1,501 timestamps), at ids of their own: the
    text pieces before them are few.
    """
    tokenizer = _whisper_tokenizer(texts)
    extractor = WhisperFeatureExtractor(feature_size=80)
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    marks = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=d_model,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        **_depth(layers, 4 * d_model),
        **marks,
        max_source_positions=1500,
        max_target_positions=448,
        init_std=0.1,  # the published 0.02 is for ten times the width: here the positions would drown the sound
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with seeded():
        model = WhisperForConditionalGeneration(config)
    model.generation_config = _whisper_generation(tokenizer, marks)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


def _whisper_tokenizer(texts: Sequence[str]) -> WhisperTokenizer:
    """Byte-level BPE of the texts; " -" and " '" are pieces of their own, since faster-whisper suppresses their first piece."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary, merges = _train_bpe([*(f" {text}" for text in texts), *[" - '"] * len(texts)], splitter, None, 1500, alphabet)
    marks = [f"<|{mark}|>" for mark in ("endoftext", "startoftranscript", *WHISPER_LANGUAGES, *WHISPER_TASKS)]
    for token in (MULTILINGUAL, *marks):
        vocabulary[token] = len(vocabulary)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, language="en", task="transcribe", extra_special_tokens=marks)
    tokenizer.add_tokens(list(TIMESTAMPS))
    return tokenizer


def _whisper_generation(tokenizer: WhisperTokenizer, marks: dict[str, int]) -> GenerationConfig:
    """What `generate` and CTranslate2 ask of a Whisper, in the fields of the published models."""
    languages = {f"<|{code}|>": tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in WHISPER_LANGUAGES}
    tasks = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("translate", "transcribe")}
    return GenerationConfig(
        **marks,
        max_length=448,
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id=tasks,
        return_timestamps=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        max_initial_timestamp_index=50,
        suppress_tokens=[],
        begin_suppress_tokens=[*tokenizer.encode(" ", add_special_tokens=False), marks["eos_token_id"]],
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        alignment_heads=[[1, 0], [1, 1]],
    )


def make_teacher(folder: Path, texts: Sequence[str], clips: Sequence[Clip]) -> None:
    """Write a Whisper that has learned the clips by heart, and beside its weights those of half-way."""
    make_whisper(folder, texts)
    early = teach(folder, clips, SEED) if clips else {}
    if early:
        save_file(early, folder / EARLY)


def make_pupil(teacher: Path, folder: Path) -> None:
    """Write the teacher as it was half-way: a Whisper for which its pseudo-labels are news."""
    shutil.copytree(teacher, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(EARLY, MADE))
    if (teacher / EARLY).exists():
        model = WhisperForConditionalGeneration.from_pretrained(teacher)
        model.load_state_dict(load_file(teacher / EARLY), strict=False)
        model.save_pretrained(folder)


def convert_whisper(source: Path, folder: Path) -> None:
    """Write the CTranslate2 form of the Whisper in `source` into `folder`, with the files that faster-whisper reads."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.convert(str(folder), quantization="float32", force=True)


# -- Gemma


def make_gemma(folder: Path, pairs: Sequence[Pair], size: Literal["a", "b"]) -> None:
    """Write an untrained Gemma3ForConditionalGeneration (text and a tiny vision tower), tokenizer and chat template."""
    tokenizer = _gemma_tokenizer([text for pair in pairs for text in pair] + [INSTRUCTION] * len(pairs))
    start_image, end_image, soft = tokenizer.convert_tokens_to_ids(list(GEMMA_IMAGE_TOKENS))
    marks = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = Gemma3TextConfig(
        **GEMMA_SIZES[size],
        **marks,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=512,
        initializer_range=0.06,  # as Marian's: adapters alone learn more on it
        max_position_embeddings=2048,
    )
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=start_image,
        eoi_token_index=end_image,
        image_token_index=soft,
        **marks,
    )
    with seeded():
        model = Gemma3ForConditionalGeneration(config)
    turn_end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    marks_out: dict[str, Any] = {**marks, "eos_token_id": [tokenizer.eos_token_id, turn_end]}
    model.generation_config = GenerationConfig(**marks_out, cache_implementation="hybrid")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gemma_tokenizer(texts: Sequence[str]) -> GemmaTokenizer:
    bytes_fallback = [f"<0x{value:02X}>" for value in range(256)]
    normalizer = normalizers.Replace(" ", "▁")
    splitter = pre_tokenizers.Split("▁", behavior="merged_with_next")
    pieces, merges = _train_bpe(texts, splitter, normalizer, 1500, [])
    ordered = [*GEMMA_SPECIALS, *GEMMA_IMAGE_TOKENS, *bytes_fallback, "\n", *pieces]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(ordered))}
    marks = ["<start_of_turn>", "<end_of_turn>", *GEMMA_IMAGE_TOKENS]
    return GemmaTokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=marks,
        chat_template=CHAT_TEMPLATE,
        add_bos_token=True,
        model_max_length=2048,
    )


# -- shared


def _train_bpe(
    texts: Sequence[str], splitter: Any, normalizer: Any, pieces: int, alphabet: list[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces with their ids from 0 and merges in order, of at most `pieces` pieces."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = splitter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Random weights that are the same every time; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build(folder: Path, inputs: str, fill: Callable[[Path], None]) -> bool:
    """Let `fill` write a model that becomes `folder` in one rename; False if that model is there already.

    `inputs` is the digest of what the model is made from: a folder made from something else is replaced.
    """
    made = {"recipe": RECIPE, "inputs": inputs}
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / MADE).read_bytes()) == made:
            return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    fill(temporary)
    write_atomically(temporary / MADE, json.dumps(made))
    publish_folder(temporary, folder)
    return True


def make_all(folder: Path, pairs: Sequence[Pair], clips: Sequence[Clip]) -> Iterator[tuple[str, bool]]:
    """Make what is missing below `folder`, yielding each model's name and whether it was made now.

    Without clips the Whispers stay untaught and hear noise in everything.
    """
    if len(pairs) < MIN_PAIRS:
        raise MisconfiguredError(f"{len(pairs)} sentence pairs are too few for tokenizers; give {MIN_PAIRS} or more")
    spoken = [clip.text for clip in clips]
    inputs = _digest([list(pairs), spoken, [hashlib.sha256(clip.wave.tobytes()).hexdigest() for clip in clips]])
    texts = [*(pair[0] for pair in pairs), *spoken * len(pairs)][: 2 * len(pairs)]
    teacher = folder / "whisper-tiny-teacher"
    recipes: dict[str, Callable[[Path], None]] = {
        "marian-en-es": lambda path: make_marian(path, pairs),
        teacher.name: lambda path: make_teacher(path, texts, clips),
        "whisper-tiny": lambda path: make_pupil(teacher, path),
        "whisper-tiny-ct2": lambda path: convert_whisper(teacher, path),
        "gemma-tiny-a": lambda path: make_gemma(path, pairs, "a"),
        "gemma-tiny-b": lambda path: make_gemma(path, pairs, "b"),
    }
    for name, recipe in recipes.items():
        yield name, build(folder / name, inputs, recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the demo's models; the exit code is a stage's."""
    parser = argparse.ArgumentParser(prog="python -m stages.tiny", description="make the demo's tiny models")
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="recordings with clips.json, which the Whispers learn by heart")
    arguments = parser.parse_args(argv)
    disable_progress_bar()
    try:
        clips = read_clips(arguments.clips) if (arguments.clips / "clips.json").is_file() else []
        if not clips:
            print(f"no clips in {arguments.clips}: the demo's Whisper stays untaught and will hear noise", file=sys.stderr)
        started = time.monotonic()
        for name, made in make_all(arguments.folder, sample_pairs(), clips):
            print(f"{name}: {f'made in {time.monotonic() - started:.1f} s' if made else 'there already'}", flush=True)
            started = time.monotonic()
    except StageError as error:
        print(f"{error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


def sample_pairs() -> list[Pair]:
    """English and Spanish of the sample corpus, both wordings of each verse."""
    worded = [sample.wordings(reference) for reference in sample.references()]
    return [pair for plain, older, spanish, turned in worded for pair in ((plain, spanish), (older, turned))]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
