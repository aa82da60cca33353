"""Pipeline files: what is wrong is named by its path."""

import pytest

from daemon.config import ConfigError, load
from state.pipeline import Resource

GOOD = """
name = "p"
[[stage]]
name = "corpus"
module = "stages.corpus"
settings = {source = "sample"}
[[stage]]
name = "train"
module = "stages.train_marian"
needs = ["corpus"]
resource = "gpu"
[stage.settings]
model = "models/tiny"
epochs = 2
"""


def write(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text)
    return path


def test_a_good_file_loads(tmp_path):
    """Stages keep their order, their settings and their resources."""
    pipeline = load(write(tmp_path, GOOD))
    assert [stage.name for stage in pipeline.stages] == ["corpus", "train"]
    assert pipeline.stage("train").resource is Resource.GPU


@pytest.mark.parametrize(
    ("old", "new", "path", "word"),
    [
        ('name = "p"', 'name = "p"\nnmae = 1', "", "nmae"),
        ('resource = "gpu"', 'resource = "tpu"', "$.stage[1].resource", "tpu"),
        ('resource = "gpu"', "resource = 3", "$.stage[1].resource", "str"),
        ("epochs = 2", 'epochs = "2"', "$.stage[1].settings.epochs", "int"),
        ("epochs = 2", "epochs = 0", "$.stage[1].settings.epochs", ">= 1"),
        ("epochs = 2", "epoch = 2", "$.stage[1].settings", "epoch"),
        ('model = "models/tiny"', "", "$.stage[1].settings", "model"),
        ('needs = ["corpus"]', 'needs = ["korpus"]', "$.stage[1].needs[0]", "korpus"),
        ('needs = ["corpus"]', 'needs = ["train"]', "$.stage[1].needs[0]", "itself"),
        ('needs = ["corpus"]', 'after = ["x"]', "$.stage[1].after[0]", "'x'"),
        ('name = "train"', 'name = "corpus"', "$.stage[1].name", "twice"),
        ('name = "train"', 'name = "Train 1"', "$.stage[1].name", "regex"),
        ('"stages.train_marian"', '"stages.train_marlan"', "$.stage[1].module", "train_marlan"),
        ('name = "corpus"\n', 'name = "corpus"\noptional = true\n', "$.stage[1].needs[0]", "optional"),
        ('name = "corpus"\n', 'name = "corpus"\nafter = ["train"]\n', "", "circle"),
        ('name = "corpus"\n', 'name = "corpus"\ngrace_s = -1\n', "$.stage[0].grace_s", "> 0"),
        ('name = "p"', 'name = "p', "", "TOML"),
        ('name = "p"', 'name = "p"\ndeadline = "Tuesday"', "$.deadline", "Tue 08:00"),
        ('name = "corpus"\n', 'name = "corpus"\nleast_share = 0.5\n', "$.stage[0].least_share", "optional"),
    ],
)
def test_a_mistake_is_refused_with_its_path(tmp_path, old, new, path, word):
    """The message names the file, the path to the field and what is wrong with it."""
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as refusal:
        load(file)
    text = str(refusal.value)
    assert str(file) in text
    assert path in text
    assert word in text


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    """No file, a folder, bytes that are no text: one clear sentence each."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "bytes.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


def test_overrides_lie_over_the_settings(tmp_path):
    """STAGE.KEY=VALUE takes TOML values, and plain text where it is none."""
    pipeline = load(write(tmp_path, GOOD), ["train.epochs=7", "train.model=https://example.org/m?x=1", "train.bf16=false"])
    assert pipeline.stage("train").settings == {"model": "https://example.org/m?x=1", "epochs": 7, "bf16": False}


@pytest.mark.parametrize("override", ["train", "train.epochs", "epochs=3", "nobody.epochs=3"])
def test_a_bad_override_is_refused(tmp_path, override):
    """An override that names no stage or no key is not passed over."""
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load(write(tmp_path, GOOD), [override])
