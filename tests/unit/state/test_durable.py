"""Durable writes: whole files, whole folders, ended lines."""

import pytest

from state import durable
from state.durable import append_durably, bring_back, clear_unwritten, publish_folder, read_again, tree_digest, write_atomically


def test_a_failed_write_keeps_the_old_file(tmp_path):
    """When the rename is refused, the old content stays and no temporary file is left."""
    target = tmp_path / "file"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_torn_line_is_ended_before_the_next(tmp_path):
    """An earlier crash in mid-line costs that line only."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    append_durably(path, b"three")
    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_publishing_replaces_a_folder(tmp_path):
    """The new folder stands under the name, the old one is gone."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    publish_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "f").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_digest_depends_on_names_and_bytes(tmp_path):
    """Equal trees have equal digests; a renamed or changed file changes it."""
    for name in ("a", "b", "c"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / ("x" if name != "c" else "y")).write_text("1")
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert tree_digest(tmp_path / "a") != tree_digest(tmp_path / "c")


def test_publishing_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    """On such a file system the new folder takes the place of the old one all the same."""
    monkeypatch.setattr(durable, "_RENAME_EXCHANGE", 1 << 20)  # the kernel answers EINVAL, as such a file system does
    test_publishing_replaces_a_folder(tmp_path)


def test_a_replacement_cut_in_two_is_healed(tmp_path):
    """The old folder that a crash left aside gets its name back, unless the new one already has it."""
    for name in (".a.old", ".b.old", "b"):
        (tmp_path / name).mkdir()
    bring_back(tmp_path / "a")
    bring_back(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.old", "a", "b"]


def test_a_passing_read_error_is_no_damage():
    """Two refusals are borne, a third one is told."""
    answers = [OSError(5, "EIO"), OSError(5, "EIO"), "read", *[OSError(5, "EIO")] * 3]

    def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert read_again(read) == "read"
    with pytest.raises(OSError, match="EIO"):
        read_again(read)


def test_what_a_kill_left_unwritten_goes(tmp_path):
    """A temporary file of a killed `write_atomically` is removed at any depth; a file that only looks a little like one stays."""
    kept = [tmp_path / name for name in ("a.json", ".hidden.tmp", "b.7.tmp", ".c.7.tmp.json")]
    for path in (*kept, tmp_path / ".a.json.4711.tmp", tmp_path / "deep" / ".b.flac.8.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    clear_unwritten(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    clear_unwritten(tmp_path / "a.json")
    clear_unwritten(tmp_path / "none")
