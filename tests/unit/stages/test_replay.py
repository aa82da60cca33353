"""stages.replay: general speech comes from an audiofolder, from Common Voice as it is published, or from a hub data set."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from stages import replay
from stages.runtime import StageContext
from state.contract import MisconfiguredError
from tests import stage_attempts

CLIPS = Path(__file__).parents[3] / "pipelines" / "demo_audio" / "replay"
STRING = {"dtype": "string", "_type": "Value"}


@pytest.fixture
def ctx(tmp_path: Path) -> StageContext:
    return stage_attempts.context(tmp_path / "run", "train_whisper")


def common_voice(folder: Path, rows: list[dict[str, str]], table: str = "validated.tsv") -> Path:
    """A folder as Common Voice's archive unpacks, every other clip left away."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    accent = "accent" if "accent" in rows[0] else "accents"
    columns = ["client_id", "path", "sentence_id", "sentence", "up_votes", "down_votes", "age", "gender", accent, "locale"]
    lines = ["\t".join(columns), *("\t".join(row.get(column, "") for column in columns) for row in rows)]
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for row in rows[::2]:
        (folder / "clips" / Path(row["path"]).name).write_bytes(b"sound")
    return folder


def test_an_audiofolder_is_read_with_its_accents(ctx: StageContext) -> None:
    """The demo's own clips; their sound is the file that is named."""
    rows, _why = replay.find(ctx, str(CLIPS), 2)
    assert len(rows) >= 3
    assert all(row.path.is_file() and row.text for row in rows)


def test_common_voice_is_read_as_published(ctx: StageContext) -> None:
    """Quotes are text, speakers and accents are kept, clips that were not unpacked are passed over, no path leads outside."""
    rows = [
        {"client_id": "s1", "path": "a.mp3", "sentence": 'He said "come', "accents": "Scottish English"},
        {"client_id": "s1", "path": "b.mp3", "sentence": "not unpacked"},
        {"client_id": "s2", "path": "../../c.mp3", "sentence": " Good morning. "},
        {"client_id": "s2", "path": "d.mp3", "sentence": "not unpacked"},
        {"client_id": "s3", "path": "e.mp3", "sentence": ""},
    ]
    folder = common_voice(ctx.workspace.root / "cv", rows)
    common_voice(folder, [{"path": "z.mp3", "sentence": "of the lesser table"}], "train.tsv")
    common_voice(ctx.workspace.root / "old", [{"client_id": "s", "path": "a.mp3", "sentence": "Good.", "accent": "scotland"}])
    assert [row.accent for row in replay.find(ctx, "old", 5)[0]] == ["scotland"], "as the corpora before 2021 name the column"
    found, why = replay.find(ctx, "cv", 5)
    assert {(row.id, row.text, row.source, row.accent) for row in found} == {
        ("a.mp3", 'He said "come', "s1", "Scottish English"),
        ("c.mp3", "Good morning.", "s2", ""),
    }
    assert all(row.path.parent == folder / "clips" for row in found)
    assert "validated.tsv lists" in why


def test_of_a_large_table_a_fixed_part_is_looked_at(ctx: StageContext) -> None:
    """Common Voice lists a million clips: four for each one wanted, the same ones every time."""
    rows = [{"client_id": str(number), "path": f"{number}.mp3", "sentence": f"words {number}"} for number in range(400)]
    common_voice(ctx.workspace.root / "cv", rows)
    found, _why = replay.find(ctx, "cv", 10)
    assert 8 <= len(found) <= 32
    assert replay.find(ctx, "cv", 10)[0] == found


def test_nothing_there_is_said(ctx: StageContext) -> None:
    """What was looked for and where."""
    assert replay.find(ctx, "nowhere", 5) == ([], f"there is no metadata.jsonl and no Common Voice in {ctx.workspace.root}/nowhere")


def hub_rows() -> list[dict[str, Any]]:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(1600, dtype=np.float32), 16_000, format="FLAC")
    audio = {"bytes": sound.getvalue(), "path": "x.flac"}
    return [
        {"audio": audio, "sentence": "One.", "accent": "scottish", "speaker_id": 0},
        {"audio": {**audio, "path": "x.exe"}, "sentence": "Two.", "accent": None, "speaker_id": 7},
        {"audio": audio, "sentence": "", "accent": "", "speaker_id": 7},
        {"audio": audio, "sentence": "Four.", "accent": "", "speaker_id": 7},
    ]


@pytest.mark.slow  # eight seconds of imports
def test_a_data_set_of_the_hub_is_streamed_into_a_folder(ctx: StageContext, tmp_path: Path) -> None:
    """By datasets' own loader, here on a folder of parquet; the second attempt reads what the first one brought."""
    (tmp_path / "hub").mkdir()
    columns = {"audio": {"_type": "Audio"}, "speaker_id": {"dtype": "int64", "_type": "Value"}}  # as the hub's own files say it
    table = pa.Table.from_pylist(hub_rows())
    told = json.dumps({"info": {"features": {name: columns.get(name, STRING) for name in table.column_names}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), tmp_path / "hub" / "train.parquet")
    found, _why = replay.find(ctx, f"hub:{tmp_path / 'hub'}", 5)
    assert [(row.id, row.text, row.source, row.accent) for row in found] == [
        ("000000.flac", "One.", "0", "scottish"),
        ("000001.wav", "Two.", "7", ""),
        ("000003.flac", "Four.", "7", ""),
    ]
    assert soundfile.info(found[0].path).frames == 1600
    (tmp_path / "hub" / "train.parquet").unlink()
    assert replay.find(ctx, f"hub:{tmp_path / 'hub'}", 5)[0] == found


def test_a_data_set_that_is_not_there_is_refused(ctx: StageContext, tmp_path: Path) -> None:
    """With its name, and nothing half-made stays to be taken for whole."""
    with pytest.raises(MisconfiguredError, match="gone"):
        replay.find(ctx, f"hub:{tmp_path / 'gone'}", 5)
    assert not [path for path in ctx.scratch().iterdir() if path.suffix != ".part"]
