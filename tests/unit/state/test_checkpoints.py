"""Checkpoints: whole or not at all, newest valid first, the last good one never deleted."""

from pathlib import Path

import pytest

from state.checkpoints import MANIFEST, Checkpoints, DamagedCheckpointError, verify


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


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["weights.bin", "sub/optimizer.bin", MANIFEST])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, damage, name):
    """Truncated, flipped, emptied or deleted, whichever file: the one before is used and the bad one kept under another name."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.publish(1, fill("a"))
    newest = checkpoints.publish(2, fill("b")).path
    damage(newest / name)
    found = checkpoints.newest_valid()
    assert found is not None
    assert found.step == 1
    assert [p.name for p in tmp_path.glob("damaged-*")] == ["damaged-step-00000002-0"]


def test_an_extra_file_is_damage(tmp_path):
    """A folder that holds more than its manifest says is not that checkpoint."""
    checkpoint = Checkpoints(tmp_path).publish(1, fill("a"))
    (checkpoint.path / "stray").write_text("x")
    with pytest.raises(DamagedCheckpointError, match="stray"):
        verify(checkpoint.path)


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
