"""The demo's own COMET: the real class and the real file layout at a size that learns in seconds on one core.

    python stages/tiny_comet.py PAIRS.jsonl FOLDER [--seed 20]

Runs in COMET's environment; imports the standard library and what comet brings. From the Spanish sentences of PAIRS.jsonl (`en`,
`es`) it makes damaged translations (words dropped, doubled, swapped, exchanged, cut off, a loop, another sentence) and trains a
RegressionMetric with a one-layer XLM-R encoder to tell their chrF against the undamaged sentence, in [0, 1]. So its number
means something about the demo's texts, and nothing beside a published COMET's: hparams.yaml carries a name that says so,
and the results show that name. FOLDER (`hparams.yaml`, `checkpoints/model.ckpt`, `encoder/`) appears whole, by rename.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a script's folder comes first: its modules would hide others

NAME = "demo metric (tiny COMET trained on damaged demo sentences; not comparable with a published COMET)"
DEMO_MARK = "vigil_demo_metric"
MADE = "made_from.sha256"
RECIPE = 1
"""Raise it when what is made changes: an older metric is then made again."""
WIDTH, LAYERS, HEADS, POSITIONS = 48, 1, 2, 258
PIECES = 2000
PR_SET_PDEATHSIG = 1
STEPS, BATCH, LEARNING_RATE = 160, 32, 4e-3
MAX_PAIRS = 2000
MIN_PAIRS = 20

Row = dict[str, Any]


def main() -> int:
    """Make the metric; a folder that is there and was made from the same pairs is left alone."""
    parser = argparse.ArgumentParser(description="make the demo's tiny COMET")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--parent", type=int, default=0, help="pid of the stage: this process ends with it")
    arguments = parser.parse_args()
    die_with(arguments.parent)
    folder = arguments.folder.resolve()
    pairs = read_pairs(arguments.pairs)
    if len(pairs) < MIN_PAIRS:
        print(f"{arguments.pairs}: {len(pairs)} sentence pairs are too few; give {MIN_PAIRS} or more", file=sys.stderr)
        return 78
    made_from = hashlib.sha256(json.dumps([RECIPE, arguments.seed, pairs]).encode()).hexdigest()
    if (folder / MADE).is_file() and (folder / MADE).read_text() == made_from:
        return 0
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "checkpoints").mkdir(parents=True)
    warnings.filterwarnings("ignore")  # about the code of comet's dependencies
    make_encoder(temporary / "encoder", [text for pair in pairs for text in pair], arguments.seed)
    rows = damaged_rows(pairs, random.Random(arguments.seed))
    train_and_save(temporary, rows, arguments.seed)
    (temporary / MADE).write_text(made_from)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return 0


def die_with(parent: int) -> None:
    """As in comet_process.py; two processes may not write one folder."""
    if parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Distinct (English, Spanish) pairs in file order, at most MAX_PAIRS."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys((row["en"], row["es"]) for row in map(json.loads, filter(None, lines))))[:MAX_PAIRS]


# -- damage


def drop(words: list[str], chance: random.Random, share: float, _others: list[str]) -> list[str]:
    """About `share` of the words are missing."""
    return [word for word in words if chance.random() > share]


def double(words: list[str], chance: random.Random, share: float, _others: list[str]) -> list[str]:
    """About `share` of the words stand twice."""
    return [copy for word in words for copy in [word] * (2 if chance.random() < share else 1)]


def swap(words: list[str], chance: random.Random, share: float, _others: list[str]) -> list[str]:
    """Words change places, `share` of their number times."""
    swapped = list(words)
    for _ in range(int(share * len(words))):
        i, j = chance.randrange(len(words)), chance.randrange(len(words))
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


def exchange(words: list[str], chance: random.Random, share: float, others: list[str]) -> list[str]:
    """About `share` of the words are any of `others`."""
    return [chance.choice(others) if chance.random() < share else word for word in words]


def cut_off(words: list[str], _chance: random.Random, share: float, _others: list[str]) -> list[str]:
    """The last `share` of the words is missing."""
    return words[: round(len(words) * (1 - share))]


def loop(words: list[str], chance: random.Random, _share: float, _others: list[str]) -> list[str]:
    """One word over and over."""
    return [chance.choice(words)] * len(words)


DAMAGE: tuple[Callable[[list[str], random.Random, float, list[str]], list[str]], ...] = (
    drop,
    double,
    swap,
    exchange,
    cut_off,
    loop,
)


def damaged_rows(pairs: list[tuple[str, str]], chance: random.Random) -> list[Row]:
    """Rows of `src`, `mt`, `ref` and `score` (chrF of mt against ref, in [0, 1]) for every training step."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    others = sorted({word for _english, spanish in pairs for word in spanish.split()})
    rows = []
    for number in range(STEPS * BATCH):
        english, spanish = chance.choice(pairs)
        words = spanish.split()
        if number % 10 == 0:
            damaged = spanish
        elif number % 10 == 1:
            damaged = chance.choice(pairs)[1]
        else:
            for spoil in chance.sample(DAMAGE, chance.choice((1, 1, 2))):
                words = spoil(words, chance, chance.random() ** 1.5, others) or [chance.choice(others)]
            damaged = " ".join(words)
        rows.append({"src": english, "mt": damaged, "ref": spanish, "score": chrf.sentence_score(damaged, [spanish]).score / 100})
    return rows


# -- model


def make_encoder(folder: Path, texts: list[str], seed: int) -> None:
    """An untrained XLM-R with a sentencepiece tokenizer of the given texts, in the layout of the hub."""
    import sentencepiece
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=PIECES, hard_vocab_limit=False,
        character_coverage=1.0, model_type="unigram", num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.vocab").unlink()
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(folder / "sentencepiece.bpe.model"), model_max_length=POSITIONS - 2)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH, max_position_embeddings=POSITIONS, type_vocab_size=1, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)


def train_and_save(folder: Path, rows: list[Row], seed: int) -> None:
    """Train the metric on `rows`, in order, and write checkpoint and hyperparameters as comet reads them."""
    import pytorch_lightning
    import torch
    import yaml
    from comet.models import RegressionMetric

    torch.manual_seed(seed)
    os.chdir(folder)  # the encoder is named relative to the model's folder, which may then be moved
    model = RegressionMetric(
        pretrained_model="encoder", encoder_model="XLM-RoBERTa", hidden_sizes=[64], dropout=0.0, layer="mix",
        layer_transformation="softmax", layer_norm=False, pool="avg", nr_frozen_epochs=0,
        keep_embeddings_frozen=False, local_files_only=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    model.train()
    for step in range(STEPS):
        inputs, target = model.prepare_sample(rows[step * BATCH : (step + 1) * BATCH], stage="fit")
        loss = torch.nn.functional.mse_loss(model(**inputs)["score"], target["score"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    hparams = {**dict(model.hparams), DEMO_MARK: NAME, "train_mse": round(float(loss.detach()), 5)}
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": pytorch_lightning.__version__,
    }
    torch.save(checkpoint, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(hparams), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
