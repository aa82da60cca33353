"""stages.speech_rows: which chunks are trained on, which recordings are held out, how much general speech is mixed in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.speech_rows import Row, choose_replay, read_rows, replay_count, row_lines, sample, split_by_source
from state.contract import MisconfiguredError


def row(source: int, number: int, accent: str = "") -> Row:
    """Chunk `number` of recording `source`."""
    name = f"r{source}-{number}.flac"
    return Row(name, Path(name), f"words {number}", f"r{source}", accent=accent)


def write(folder: Path, rows: list[dict[str, object]], files: list[str]) -> Path:
    """A metadata.jsonl with its (empty) audio files."""
    for name in files:
        (folder / name).write_bytes(b"x")
    metadata = folder / "metadata.jsonl"
    metadata.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return metadata


def test_only_kept_rows_with_words_count(tmp_path: Path) -> None:
    """Doubtful, rejected and empty labels are not trained on; an audiofolder from elsewhere has no verdicts and counts whole."""
    lines: list[dict[str, object]] = [
        {"file_name": "a.flac", "text": " one ", "verdict": "kept", "source": "s"},
        {"file_name": "b.flac", "text": "two", "verdict": "doubtful", "source": "s"},
        {"file_name": "c.flac", "text": "three", "verdict": "rejected", "source": "s"},
        {"file_name": "d.flac", "text": "  ", "verdict": "kept", "source": "s"},
        {"file_name": "e.flac", "text": "five", "other": 1},
    ]
    found = read_rows(write(tmp_path, lines, ["a.flac", "e.flac"]), (tmp_path,))
    assert [(one.id, one.text, one.source) for one in found] == [("a.flac", "one", "s"), ("e.flac", "five", "e.flac")]


def test_the_folders_are_searched_in_turn(tmp_path: Path) -> None:
    """The audio may lie beside the metadata or with the cleaned chunks."""
    cleaned = tmp_path / "cleaned"
    cleaned.mkdir()
    metadata = write(tmp_path, [{"file_name": "a.flac", "text": "one"}], ["a.flac"])
    assert read_rows(metadata, (cleaned, tmp_path))[0].path == tmp_path / "a.flac"
    (cleaned / "a.flac").write_bytes(b"y")
    assert read_rows(metadata, (cleaned, tmp_path))[0].path == cleaned / "a.flac"


BAD = {
    "no file": ([{"file_name": "gone.flac", "text": "x"}], "there is no gone.flac"),
    "outside": ([{"file_name": "../x.flac", "text": "x"}], "leads outside"),
    "absolute": ([{"file_name": "/etc/hostname", "text": "x"}], "leads outside"),
    "no text field": ([{"file_name": "a.flac"}], "line 1: not a row"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, fault: str) -> None:
    """A label without its sound is a fault of the stage before, not a reason to train on less in silence."""
    lines, words = BAD[fault]
    with pytest.raises(MisconfiguredError, match=words):
        read_rows(write(tmp_path, lines, []), (tmp_path,))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The stage that writes it has to run first."""
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        read_rows(tmp_path / "metadata.jsonl", (tmp_path,))


@given(st.lists(st.integers(1, 8), min_size=1, max_size=12), st.integers(0, 20), st.integers(0, 3))
def test_no_recording_is_on_both_sides(chunks: list[int], dev_examples: int, seed: int) -> None:
    """A fifth of the recordings at most is held out, at least one where there are two, never more rows than asked for."""
    rows = [row(source, number) for source, count in enumerate(chunks) for number in range(count)]
    train, dev = split_by_source(rows, dev_examples, seed)
    assert train
    assert not {one.source for one in train} & {one.source for one in dev}
    assert len(dev) <= dev_examples
    assert bool(dev) is (dev_examples > 0 and len(chunks) > 1)
    gone = len(chunks) - len({one.source for one in train})
    assert gone <= max(1, len(chunks) // 5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_replay_makes_its_share_of_the_whole(share: float) -> None:
    """30 % replay means 30 % of what is trained on, not 30 % of the sermons."""
    count = replay_count(700, share)
    assert count / (700 + count) == pytest.approx(share, abs=1e-3)


def test_replay_clips_are_either_trained_on_or_held_out() -> None:
    """Forgetting is measured on clips that were not trained on; their ids cannot meet a sermon's."""
    sermons = [row(0, number) for number in range(70)]
    held_out = [row(1, number) for number in range(20)]
    clips = [row(9, number) for number in range(100)]
    mixed, dev = choose_replay(sermons, held_out, clips, 0.3, 0)
    assert len(mixed) == 30
    assert len(dev) == 9
    assert not {one.id for one in mixed} & {one.id for one in dev}
    assert all(one.replay and one.id.startswith("replay/") for one in [*mixed, *dev])


def test_accents_take_turns() -> None:
    """Of a source that is nearly all one accent each accent has the same part, in training and held out, as far as it goes."""
    clips = [row(9, number, "scottish" if number % 10 == 0 else "indian" if number % 10 == 1 else "") for number in range(300)]
    mixed, dev = choose_replay([row(0, number) for number in range(70)], [row(1, number) for number in range(35)], clips, 0.3, 0)
    assert Counter(one.accent for one in mixed) == {"": 10, "scottish": 10, "indian": 10}
    assert Counter(one.accent for one in dev) == {"": 5, "scottish": 5, "indian": 5}
    rare = [row(9, number, "scottish" if number < 12 else "") for number in range(300)]
    mixed, dev = choose_replay([row(0, number) for number in range(70)], [], rare, 0.3, 0)
    assert Counter(one.accent for one in mixed) == {"": 18, "scottish": 12}


def test_a_speaker_is_not_on_both_sides() -> None:
    """Forgetting is measured on voices that were not trained on; where all clips are one voice it is the clips that differ."""
    sermons, held_out = [row(0, number) for number in range(70)], [row(1, number) for number in range(20)]
    many = [row(speaker, number) for speaker in range(10, 60) for number in range(4)]
    mixed, dev = choose_replay(sermons, held_out, many, 0.3, 0)
    assert (len(mixed), len(dev)) == (30, 9)
    assert not {one.source for one in mixed} & {one.source for one in dev}
    mixed, dev = choose_replay(sermons, held_out, [row(9, number) for number in range(100)], 0.3, 0)
    assert (len(mixed), len(dev)) == (30, 9)


def test_too_few_clips_are_all_used_but_for_a_tenth() -> None:
    """A small replay source gives what it has."""
    mixed, dev = choose_replay([row(0, n) for n in range(100)], [row(1, 0)], [row(9, n) for n in range(10)], 0.5, 0)
    assert len(mixed) == 9
    assert len(dev) == 1


def test_a_sample_keeps_the_order() -> None:
    """`max_examples` takes a fixed part of the chunks, spread over the recordings."""
    rows = [row(source, number) for source in range(10) for number in range(10)]
    chosen = sample(rows, 20, 0)
    assert len(chosen) == 20
    assert chosen == [one for one in rows if one in chosen]
    assert len({one.source for one in chosen}) > 4


def test_the_fingerprint_sees_another_text_and_another_sound(tmp_path: Path) -> None:
    """A resume on changed data is refused, so a change must show."""
    lines: list[dict[str, object]] = [{"file_name": "a.flac", "text": "one"}]
    metadata = write(tmp_path, lines, ["a.flac"])
    first = list(row_lines(read_rows(metadata, (tmp_path,))))
    (tmp_path / "a.flac").write_bytes(b"longer")
    assert list(row_lines(read_rows(metadata, (tmp_path,)))) != first
