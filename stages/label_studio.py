"""Label Studio: segments for a person to look at go out as tasks, what the person wrote comes back.

The shapes are those of its documentation: tasks with `data` and `predictions` (labelstud.io/guide/predictions), the export
called JSON with `annotations` (labelstud.io/guide/task_format). The labelling configuration that fits is CONFIGURATION.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from stages.verdicts import KEPT, REJECTED, Label
from state.contract import MisconfiguredError

FILE = "label_studio.json"
CORRECTED = "corrected by a person"
SAME_PLACE_S = 0.05
TEXT, SOUND = "transcription", "audio"  # the tags of the configuration
CONFIGURATION = f"""\
<View>
  <Audio name="{SOUND}" value="${SOUND}"/>
  <Header value="$reason"/>
  <TextArea name="{TEXT}" toName="{SOUND}" rows="4" editable="true" maxSubmissions="1"/>
</View>
"""


class Choice(msgspec.Struct, frozen=True):
    """One entry of a result; of other kinds than `textarea` nothing is read."""

    type: str = ""
    value: dict[str, Any] = {}


class Annotation(msgspec.Struct, frozen=True):
    """What one person submitted."""

    result: list[Choice] = []
    was_cancelled: bool = False


class Place(msgspec.Struct, frozen=True):
    """Which chunk a task is about."""

    file_name: str
    start_s: float
    end_s: float


class Exported(msgspec.Struct, frozen=True):
    """One task of an export."""

    data: Place
    annotations: list[Annotation] = []


def tasks(labels: Sequence[Label], audio: str, model: str) -> bytes:
    """The import file for `labels`. `audio`: the folder of the chunks, relative to what Label Studio serves as local files."""
    return msgspec.json.format(msgspec.json.encode([_task(label, audio, model) for label in labels]), indent=1)


def _task(label: Label, audio: str, model: str) -> dict[str, Any]:
    region = {"id": "text", "from_name": TEXT, "to_name": SOUND, "type": "textarea", "value": {"text": [label.text]}}
    data = {
        SOUND: f"/data/local-files/?d={quote(f'{audio}/{label.file_name}')}",
        "file_name": label.file_name,
        "recording": label.source,
        "start_s": label.start_s,
        "end_s": label.end_s,
        "reason": label.reason,
    }
    score = round(math.exp(min(0.0, label.avg_logprob)), 4)
    return {"data": data, "predictions": [{"model_version": model, "score": score, "result": [region]}]}


def read(path: Path) -> dict[str, tuple[Place, str]]:
    """What people wrote, by the chunk's file name: the last submitted text of each task; empty where it was deleted.

    Raises:
        MisconfiguredError: it cannot be read, or is not an export of tasks that Vigil wrote.
    """
    try:
        exported = msgspec.json.decode(path.read_bytes(), type=list[Exported])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MisconfiguredError(
            f"corrections: {path} is no Label Studio export of the JSON kind ({error}); export the project again as JSON"
        ) from error
    found = {}
    for one in exported:
        submitted = [annotation for annotation in one.annotations if not annotation.was_cancelled]
        if submitted:
            found[one.data.file_name] = (one.data, _text(submitted[-1]))
    return found


def _text(annotation: Annotation) -> str:
    parts = [choice.value.get("text", []) for choice in annotation.result if choice.type == "textarea"]
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return " ".join(" ".join(map(str, lines)).split())


def apply(labels: Sequence[Label], corrections: Mapping[str, tuple[Place, str]]) -> tuple[list[Label], int]:
    """The labels with what people wrote in their place, and how many were corrected.

    A correction whose chunk was cut anew since then lies elsewhere and is not used.
    """
    made = []
    count = 0
    for label in labels:
        place, text = corrections.get(label.file_name, (None, ""))
        if place is None or abs(place.start_s - label.start_s) > SAME_PLACE_S or abs(place.end_s - label.end_s) > SAME_PLACE_S:
            made.append(label)
            continue
        count += 1
        made.append(replace(label, text=text, verdict=KEPT if text else REJECTED, reason=CORRECTED, words=()))
    return made, count
