"""stages.label_studio: the import file has Label Studio's published shape, and a corrected export finds its chunks again."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from stages import label_studio
from stages.verdicts import DOUBTFUL, KEPT, REJECTED, Label
from state.contract import MisconfiguredError


def label(name: str, text: str = "heard", start_s: float = 3.0) -> Label:
    return Label(
        file_name=name,
        text=text,
        source="001_a",
        start_s=start_s,
        end_s=start_s + 5.0,
        verdict=DOUBTFUL,
        reason="captions differ",
        avg_logprob=-1.25,
        no_speech_prob=0.1,
        compression_ratio=1.0,
    )


def made(*labels: Label) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads(label_studio.tasks(labels, "stark_data/cleaned", "large-v3"))
    return tasks


def annotated(task: dict[str, Any], *texts: Any, cancelled: bool = False) -> dict[str, Any]:
    """The task as Label Studio exports it, with one annotation for each text."""
    control = {"id": "x", "from_name": "transcription", "to_name": "audio", "type": "textarea", "origin": "manual"}
    annotations = [
        {
            "id": 7,
            "was_cancelled": cancelled,
            "ground_truth": False,
            "result": [{**control, "value": {"text": text}}],
            "lead_time": 4.2,
        }
        for text in texts
    ]
    return {"id": 1, "project": 8, "data": task["data"], "annotations": annotations, "predictions": []}


def export(folder: Path, *tasks: dict[str, Any]) -> Path:
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def test_a_task_has_the_documented_shape() -> None:
    """`data` with the sound as a local file, one prediction whose result fits the control tags of the configuration."""
    (task,) = made(label("001_a/chunk 1.flac", "what was “heard”"))
    assert task["data"] == {
        "audio": "/data/local-files/?d=stark_data/cleaned/001_a/chunk%201.flac",
        "file_name": "001_a/chunk 1.flac",
        "recording": "001_a",
        "start_s": 3.0,
        "end_s": 8.0,
        "reason": "captions differ",
    }
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("large-v3", 0.2865)
    (result,) = prediction["result"]
    assert (result["type"], result["value"]) == ("textarea", {"text": ["what was “heard”"]})
    view = ET.fromstring(label_studio.CONFIGURATION)
    area, sound = view.find("TextArea"), view.find("Audio")
    assert area is not None
    assert sound is not None
    assert (area.get("name"), area.get("toName")) == (result["from_name"], result["to_name"])
    assert (sound.get("name"), str(sound.get("value"))[1:]) == (result["to_name"], "audio")
    assert str(view.find("Header").get("value"))[1:] in task["data"]  # type: ignore[union-attr]


def test_corrections_find_their_chunks(tmp_path: Path) -> None:
    """The last submitted text counts; a deleted text rejects; skipped, cancelled and re-cut chunks stay as they were."""
    labels = [label(f"{name}.flac") for name in "abcdef"]
    a, b, c, d, e, f = made(*labels)
    path = export(
        tmp_path,
        annotated(a, ["first"], ["what was", "really said "]),
        annotated(b, []),
        annotated(c, ["never meant"], cancelled=True),
        annotated(d),
        annotated(e, "one string"),
        annotated({"data": {**f["data"], "start_s": 9.0, "end_s": 14.0}}, ["of another cut"]),
    )
    found, count = label_studio.apply(labels, label_studio.read(path))
    assert [(one.text, one.verdict) for one in found] == [
        ("what was really said", KEPT),
        ("", REJECTED),
        ("heard", DOUBTFUL),
        ("heard", DOUBTFUL),
        ("one string", KEPT),
        ("heard", DOUBTFUL),
    ]
    assert count == 3
    assert {one.reason for one in found if one.verdict != DOUBTFUL} == {label_studio.CORRECTED}


@pytest.mark.parametrize("content", ["", "{}", '[{"data": {"image": "x.png"}}]', "\xff"])
def test_what_is_no_export_is_refused(tmp_path: Path, content: str) -> None:
    """Another project's export, or another format: named with its path before anything is labelled."""
    path = tmp_path / "export.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(MisconfiguredError, match=r"export\.json is no Label Studio export"):
        label_studio.read(path)
    with pytest.raises(MisconfiguredError, match="No such file"):
        label_studio.read(tmp_path / "gone.json")
