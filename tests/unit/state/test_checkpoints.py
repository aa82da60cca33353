"""Checkpoints: whole or not at all, newest valid first, the last good one never deleted."""

import os
from pathlib import Path

import pytest

from state.checkpoints import MANIFEST, Checkpoints, verify
from state.contract import DiskFullError


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "optimizer.bin").write_text(text * 2)

    return write


def test_a_published_checkpoint_verifies(tmp_path):
    """It carries its step, its facts and every file's digest."""
    checkpoint = Checkpoints(tmp_path).publish(4, fill("a"), info={"examples": 128})
    assert verify(checkpoint.path).info == {"examples": 128}
    assert checkpoint.step == 4


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(bytes(data))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _add(file: Path) -> None:
    file.with_name("stray").write_text("x")


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, Path.unlink, _add])
@pytest.mark.parametrize("name", ["weights.bin", "sub/optimizer.bin", MANIFEST])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, damage, name):
    """Truncated, flipped, emptied, deleted or joined by another: the one before is used, the bad one kept under another name."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))
    newest = checkpoints.publish(2, fill("b")).path
    damage(newest / name)
    found = checkpoints.newest_valid()
    assert found is not None
    assert found.step == 1
    assert [p.name for p in tmp_path.glob("damaged-*")] == ["damaged-step-00000002-0"]


def test_retiring_keeps_two_that_verify(tmp_path):
    """Damaged newer folders do not count: two good ones stay."""
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 6):
        checkpoints.publish(step, fill(str(step)))
    _flip(tmp_path / "step-00000005" / "weights.bin")
    assert [p.name for p in checkpoints.retire()] == ["step-00000002", "step-00000001"]
    assert checkpoints.newest_valid().step == 4


def test_retiring_removes_nothing_without_two_good_ones(tmp_path):
    """With a single good one nothing goes, however many bad ones are newer."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.publish(step, fill(str(step)))
    for step in (2, 3):
        (tmp_path / f"step-0000000{step}" / MANIFEST).unlink()
    assert checkpoints.retire() == []
    assert checkpoints.newest_valid().step == 1


def test_a_failed_save_leaves_the_older_ones(tmp_path):
    """An error while filling removes the partial folder and nothing else."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))

    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.publish(2, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_an_unhealthy_checkpoint_is_passed_over_when_asked(tmp_path):
    """After a divergence only a healthy one is good enough."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))
    checkpoints.publish(2, fill("b"), healthy=False)
    assert checkpoints.newest_valid().step == 2
    assert checkpoints.newest_valid(healthy_only=True).step == 1


def test_retiring_keeps_the_newest_healthy_one(tmp_path):
    """However many unhealthy ones are newer, there is one to go back to after a divergence; when one is healthy again, it goes."""
    checkpoints = Checkpoints(tmp_path)
    for step, healthy in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        checkpoints.publish(step, fill(str(step)), healthy=healthy)
        checkpoints.retire()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]
    checkpoints.publish(6, fill("6"))
    checkpoints.retire()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_dropping_what_a_divergence_made_worthless(tmp_path):
    """Only later steps go."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.publish(step, fill(str(step)))
    assert [p.name for p in checkpoints.drop_after(1)] == ["step-00000003", "step-00000002"]
    assert checkpoints.newest_valid().step == 1


def test_a_checkpoint_published_again_takes_the_place_of_the_old(tmp_path):
    """The same step twice leaves the newer one, and nothing beside it."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("old"))
    checkpoints.publish(1, fill("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert verify(tmp_path / "step-00000001").manifest.files


def test_every_flipped_bit_and_every_cut_of_a_file_is_noticed(memory_path):
    """Of the weights and of the manifest, all of them: the one before is used, or what is read is what was written."""
    checkpoints = Checkpoints(memory_path)
    checkpoints.publish(1, fill("a"))
    good = checkpoints.publish(2, fill("b"), info={"examples": 7})
    rejected = 0
    for name in ("weights.bin", MANIFEST):
        path = good.path / name
        whole = path.read_bytes()
        flipped = (whole[:n] + bytes([whole[n] ^ 1 << bit]) + whole[n + 1 :] for n in range(len(whole)) for bit in range(8))
        for data in (*flipped, *(whole[:length] for length in range(len(whole)))):
            path.write_bytes(data)
            found = checkpoints.newest_valid()
            if found != good:
                assert found is not None
                assert found.step == 1
                (aside,) = memory_path.glob("damaged-*")
                aside.rename(good.path)
                rejected += 1
        path.write_bytes(whole)
    assert checkpoints.newest_valid() == good
    assert rejected > 3000


def test_an_empty_newest_folder_is_set_aside(tmp_path):
    """What a crash of something else left under the name of a checkpoint is passed over."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))
    (tmp_path / "step-00000009").mkdir()
    assert checkpoints.newest_valid().step == 1
    assert (tmp_path / "damaged-step-00000009-0").is_dir()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_retires_nothing_newer(tmp_path, days):
    """File times a day off do not change which checkpoint is the newest."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        path = checkpoints.publish(step, fill(str(step))).path
        at = path.stat().st_mtime + days * 86400 * (1 if step % 2 else -1)
        os.utime(path, (at, at))
    assert [p.name for p in checkpoints.retire()] == ["step-00000002", "step-00000001"]
    assert checkpoints.newest_valid().step == 4


def test_a_refused_read_sets_nothing_aside(tmp_path, monkeypatch):
    """A limit or a permission says nothing about the checkpoint: the error comes through and the folder keeps its name."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))

    def refuse(_path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match="Too many"):
            checkpoints.newest_valid()
    assert checkpoints.newest_valid().step == 1


def test_a_replacement_cut_in_two_is_healed(tmp_path):
    """Where names cannot be exchanged a crash may leave the only checkpoint aside: it gets its name back."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a")).path.rename(tmp_path / ".step-00000001.old")
    assert checkpoints.newest_valid().step == 1


def test_a_save_that_cannot_fit_is_not_begun(tmp_path):
    """Leftovers and older checkpoints go first; the newest, and the newest healthy one, never."""
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step, healthy in ((1, True), (2, True), (3, False), (4, False)):
        checkpoints.publish(step, fill(str(step)), healthy=healthy)
    for name in (".step-00000005.tmp", "damaged-step-00000000-0"):
        (tmp_path / name).mkdir()
    with pytest.raises(DiskFullError, match=r"needs \d+ bytes and \d+ are free") as caught:
        checkpoints.publish(5, pytest.fail, expected_bytes=1 << 60)
    assert caught.value.needed_bytes > 1 << 60
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
