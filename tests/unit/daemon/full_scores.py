"""Results of an evaluation with everything that it can measure, for the tests of what people are shown of them."""

from __future__ import annotations

import json
from typing import Any

from daemon import scores
from state.workspace import Workspace

BETTER = (
    "MarianMT is better than before: chrF++ +13.25 (95 % interval +12.05 to +14.65); better in gospels, poetry; "
    "on general sentences worse: chrF++ −0.84 (95 % interval −1.31 to −0.35)."
)
UNCLEAR = "TranslateGemma-4B is not distinguishable from before: chrF++ −0.50 (95 % interval −1.70 to +0.90)."


def enriched(workspace: Workspace) -> scores.Results:
    """The finished run's results with terms, faults and general sentences of MarianMT, and a verdict of each model."""
    saved: dict[str, Any] = json.loads(workspace.eval_results.read_text())
    for label, terms in (("before", 70.0), ("after", 81.25)):
        row = saved["labels"][label]["models"]["MarianMT"]
        row["scores"] |= {"terms": terms, "kiwi": terms / 100, "intervals": {"terms": [terms - 2, terms + 2], "chrf": [1.0, 2.0]}}
        row["genres"]["poetry"]["intervals"] = {"bleu": [0.5, 3.25]}
        row["faults"] = {"length_ratio": 0.976, "empty": 1, "copied": 2, "untranslated": 3, "english_share": 0.0123}
        row["general"] = {"scores": {"sentences": 200, "bleu": 30.0, "chrf": 59.0 - terms / 100}, "translations": {}}
    compared = saved["comparisons"]["after"]["models"]
    gained = {f"t{number}": 50 - number for number in range(scores.MOST_TERMS + 2)}
    compared["MarianMT"] |= {"verdict": BETTER, "terms_gained": gained, "terms_lost": {"altar": 2}}
    compared["MarianMT"]["overall"]["terms"] = {"delta": 11.25, "p_value": 0.004, "ci_low": 3.1, "ci_high": 18.0}
    compared["MarianMT"]["overall"]["kiwi"] = {"delta": 0.1125, "p_value": 0.06, "ci_low": -0.0123, "ci_high": 0.2345}
    compared["MarianMT"]["general"] = {"chrf": {"delta": -0.84, "p_value": 0.01, "ci_low": -1.31, "ci_high": -0.35}}
    compared["TranslateGemma-4B"] |= {"verdict": UNCLEAR}
    workspace.eval_results.write_text(json.dumps(saved))
    read = scores.read(workspace.eval_results)
    assert read is not None
    return read
