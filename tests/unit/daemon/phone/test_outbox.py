"""The outbox: in order, once, marked where it may be twice; quiet when it should be, and never about what is red."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from daemon.phone import outbox
from daemon.phone.dialogue import Button, Message, Ring
from daemon.phone.outbox import AGAIN, OLD_S, Deliver, Fold, Keeper, Outbox, Wait

ROOT = Path(__file__).parents[4]
NOW = 1_000_000.0


def event(key, ring=Ring.LOUD, at=NOW, **rest):
    return Message(key=key, html=f"<b>{key}</b>", ring=ring, kind="stage.succeeded", at=at, **rest)


def answer(key, **rest):
    return Message(key=key, html=key, at=NOW, **rest)


def filled(*messages):
    box = Outbox()
    for message in messages:
        box = outbox.put(box, message)
    return box


def drained(box, now=NOW, hushed=False):
    """Everything that leaves while all goes well, as (key, text, silent, edited id)."""
    out = []
    while isinstance(step := outbox.next_step(box, now, hushed=hushed), Deliver):
        out.append((step.message.key, step.message.html, step.silent, step.edits))
        box = outbox.arrived(outbox.begun(box, step.message.key), step.message.key, step.edits or 100 + len(out))
    assert step == Wait(None)
    return out, box


def test_events_keep_their_order_and_answers_go_first():
    """The owner who asks does not wait for old news."""
    out, _ = drained(filled(event("1"), event("2"), answer("a"), event("3")))
    assert [key for key, *_ in out] == ["a", "1", "2", "3"]


def test_a_key_is_sent_once():
    """While it waits, and after it was sent."""
    box = filled(event("1"), event("1"))
    out, box = drained(box)
    assert len(out) == 1
    assert drained(outbox.put(box, event("1")))[0] == []


def test_what_is_off_is_dropped():
    """The owner does not want to hear of it."""
    assert outbox.next_step(filled(event("1", Ring.OFF)), NOW) == Wait(None)


@pytest.mark.parametrize(
    ("ring", "hushed", "silent"),
    [
        (Ring.RED, False, False),
        (Ring.RED, True, False),
        (Ring.LOUD, False, False),
        (Ring.LOUD, True, True),
        (Ring.SILENT, False, True),
    ],
)
def test_quiet_hours_hush_all_but_red(ring, hushed, silent):
    """Loud becomes silent then, red stays red."""
    assert outbox.next_step(filled(event("1", ring)), NOW, hushed=hushed).silent is silent


def test_an_edit_finds_its_message_whatever_it_is_called():
    """An edit of an edit is an edit of the first; without a first one it is a message."""
    out, _ = drained(filled(answer("q"), answer("q/asked", replaces="q"), event("x"), answer("q/done", replaces="q/asked")))
    assert [(key, edits) for key, _text, _silent, edits in out] == [("q", 0), ("q/asked", 101), ("q/done", 101), ("x", 0)]
    assert drained(filled(answer("late", replaces="gone")))[0] == [("late", "late", True, 0)]


def test_of_edits_that_wait_the_last_counts():
    """A card that could not be edited for hours is edited once."""
    _, box = drained(filled(answer("card", replaces="card")))
    for number in range(5):
        box = outbox.put(box, replace(answer("card", replaces="card"), html=f"{number}"))
    assert drained(box)[0] == [("card", "4", True, 101)]


def test_what_has_files_cannot_be_edited():
    """Its text is a caption: what would edit it is sent as a message."""
    out, _ = drained(filled(answer("p", photo="x.png"), answer("p2", replaces="p")))
    assert [edits for *_, edits in out] == [0, 0]


def test_an_unsure_try_is_repeated_with_a_mark_and_a_sure_one_without():
    """Only what may be there twice says so."""
    box = outbox.not_sent(outbox.begun(filled(event("1")), "1"), "1")
    assert outbox.next_step(box, NOW).message.html == "<b>1</b>"
    box = outbox.in_doubt(outbox.begun(box, "1"), "1")
    assert outbox.next_step(box, NOW).message.html == AGAIN + "<b>1</b>"
    box = outbox.not_sent(outbox.begun(box, "1"), "1")
    assert outbox.next_step(box, NOW).message.html == AGAIN + "<b>1</b>", "one sure failure does not take the doubt away"


def test_an_unsure_edit_is_repeated_without_a_mark():
    """The second edit changes nothing."""
    _, box = drained(filled(answer("q")))
    box = outbox.in_doubt(outbox.begun(outbox.put(box, answer("e", replaces="q")), "e"), "e")
    step = outbox.next_step(box, NOW)
    assert (step.message.html, step.edits) == ("e", 101)


def test_a_try_that_a_crash_cut_is_in_doubt():
    """What was on its way when the process died may have arrived."""
    box = outbox.after_crash(outbox.begun(filled(event("1"), event("2")), "1"))
    assert [text for _, text, *_ in drained(box)[0]] == [AGAIN + "<b>1</b>", "<b>2</b>"]


def test_a_flood_limit_pauses_the_whole_chat():
    """Nothing leaves before its time is over, answers neither; a clock that was set back does not make it longer."""
    box = outbox.flooded(outbox.begun(filled(event("1"), answer("a")), "1"), "1", NOW, 40)
    assert outbox.next_step(box, NOW + 39) == Wait(1.0)
    assert isinstance(outbox.next_step(box, NOW + 40), Deliver)
    assert outbox.next_step(box, NOW - 1e6) == Wait(40)
    assert [text for _, text, *_ in drained(box, NOW + 41)[0]] == ["a", "<b>1</b>"], "it was not sent: no mark"


def test_more_than_three_old_events_are_folded_and_red_ones_stay():
    """What is new, red, an edit or perhaps sent stays as it is, and the one in place of the others stands where the first stood."""
    old = NOW - OLD_S - 1
    reds = [event("r1", Ring.RED, old), event("r2", Ring.RED, old)]
    box = filled(event("sent", at=old), reds[0], *(event(f"{n}", at=old) for n in range(4)), reds[1], event("new", at=NOW))
    box = outbox.in_doubt(outbox.begun(box, "sent"), "sent")
    step = outbox.next_step(box, NOW)
    assert isinstance(step, Fold)
    assert [message.key for message in step.messages] == ["0", "1", "2", "3"]
    assert isinstance(outbox.next_step(box, NOW, fold=False), Deliver), "while Telegram is away there may be more to fold"
    box = outbox.folded(box, step.messages, event("fold", at=NOW))
    assert [key for key, *_ in drained(box)[0]] == ["sent", "r1", "fold", "r2", "new"]


def test_three_old_events_are_not_folded():
    """Each is read faster than a digest of three."""
    box = filled(*(event(f"{n}", at=NOW - OLD_S - 1) for n in range(3)))
    assert isinstance(outbox.next_step(box, NOW), Deliver)


def test_red_that_lasts_comes_again_until_it_is_solved():
    """After 1, 4 and 12 hours, each once; a daemon that was away does not make up for it; an edit of the first ends it."""
    red = event("r", Ring.RED)
    box = outbox.lasts(filled(red), red, NOW)
    assert outbox.lasting(box, NOW + 3601) == [], "the first still waits"
    _, box = drained(box)
    told = []
    for hour in (0, 1, 2, 5, 6, 30, 31):
        for alarm, hours in outbox.lasting(box, NOW + hour * 3600):
            told.append((hour, hours))
            box = outbox.told_again(box, alarm, hours, event(f"r/still/{hours}", Ring.RED))
        _, box = drained(box)
    assert told == [(1, 1), (5, 4), (30, 12)]
    box = outbox.lasts(box, replace(red, key="r", at=NOW + 40 * 3600), NOW)
    out, box = drained(outbox.put(box, event("r/solved", replaces="r")))
    assert [edits for *_, edits in out] == [101]
    assert outbox.lasting(box, NOW + 1e6) == []


def test_what_is_refused_goes_as_bare_text_and_then_not_at_all():
    """The words arrive where the markup does not; what nobody takes does not block what waits behind it."""
    text = "<b>x</b> &lt;module&gt; loss&lt;0.5 1<2"
    one = replace(event("1"), html=text, photo="p", buttons=((Button("a", "b"),),))
    box = outbox.refused(outbox.begun(filled(one, event("2")), "1"), "1")
    step = outbox.next_step(box, NOW)
    assert (step.message.html, step.plain) == ("x <module> loss<0.5 1<2", True)
    assert (step.message.photo, step.message.buttons) == ("", ())
    box = outbox.refused(outbox.begun(box, "1"), "1")
    assert [key for key, *_ in drained(box)[0]] == ["2"]


def test_a_picture_that_does_not_get_through_is_left_out():
    """On a slow network the words behind it matter more."""
    box = filled(event("1", photo="large.png"))
    for _ in range(outbox.MOST_DOUBTS):
        assert outbox.next_step(box, NOW).message.photo
        box = outbox.in_doubt(outbox.begun(box, "1"), "1")
    assert not outbox.next_step(box, NOW).message.photo


def test_an_edit_of_what_is_gone_becomes_a_message():
    """The owner deleted it: what is to be said is said anew, and edited from then on."""
    _, box = drained(filled(answer("card", replaces="card")))
    box = outbox.put(box, answer("card", replaces="card"))
    box = outbox.vanished(outbox.begun(box, "card"), "card")
    assert outbox.next_step(box, NOW).edits == 0


def test_old_keys_go_and_needed_ones_stay():
    """The file stays small; what an alarm or a waiting edit needs is kept."""
    red = event("r", Ring.RED)
    _, box = drained(outbox.lasts(filled(red), red, NOW))
    box = replace(box, sent={**box.sent, **{f"k{n}": outbox.Sent(message_id=n) for n in range(outbox.KEPT_KEYS + 50)}})
    _, box = drained(outbox.put(box, event("last")))
    assert len(box.sent) == outbox.KEPT_KEYS + 1
    assert {"r", "last"} <= set(box.sent)


FATES = {
    "arrived": lambda box, key, _now: outbox.arrived(box, key, 1),
    "not_sent": lambda box, key, _now: outbox.not_sent(box, key),
    "in_doubt_lost": lambda box, key, _now: outbox.in_doubt(box, key),
    "in_doubt_there": lambda box, key, _now: outbox.in_doubt(box, key),
    "flooded": lambda box, key, now: outbox.flooded(box, key, now, 7),
    "crash_before": lambda box, _key, _now: outbox.after_crash(box),
    "crash_after": lambda box, _key, _now: outbox.after_crash(box),
}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(FATES)), max_size=25), st.integers(1, 6))
def test_nothing_is_lost_and_no_repeat_is_unmarked(faults, count):
    """Whatever becomes of each try, every message arrives, and of each at most one copy is without the mark."""
    box, phone, now = filled(*(event(f"{n}") for n in range(count))), [], NOW
    fates = iter(faults)
    while (step := outbox.next_step(box, now)) != Wait(None):
        if isinstance(step, Wait):
            now += step.seconds
            continue
        key, fate = step.message.key, next(fates, "arrived")
        phone += [step.message.html] * (fate in ("arrived", "in_doubt_there", "crash_after"))
        box = FATES[fate](outbox.begun(box, key), key, now)
    for n in range(count):
        assert phone.count(f"<b>{n}</b>") <= 1
        assert phone.count(f"<b>{n}</b>") + phone.count(f"{AGAIN}<b>{n}</b>") >= 1


def test_what_is_kept_comes_back(tmp_path):
    """All of it, also texts that no file can hold as they are; the folder is the owner's alone."""
    keeper = Keeper(tmp_path / "telegram" / "box.json", Outbox)
    assert keeper.load() is None
    box = outbox.flooded(outbox.begun(filled(event("1"), replace(event("2"), html="half \ud83d")), "1"), "1", NOW, 3)
    assert keeper.save(box)
    assert keeper.load() == box
    assert (tmp_path / "telegram").stat().st_mode & 0o777 == 0o700


def test_a_damaged_file_is_set_aside(tmp_path):
    """The bot begins anew rather than not at all."""
    keeper = Keeper(tmp_path / "box.json", Outbox)
    keeper.path.write_text("{")
    assert keeper.load() is None
    assert (tmp_path / "box.json.damaged").exists()


def test_a_disk_that_refuses_is_told_by_the_result(tmp_path):
    """No exception: the caller goes on from memory."""
    (tmp_path / "telegram").write_text("no folder")
    assert not Keeper(tmp_path / "telegram" / "box.json", Outbox).save(Outbox())


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_between_any_two_lines(tmp_path, every):
    """Nothing is lost, and there is at most one repeat, which is marked."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.process.outbox_kills", str(tmp_path), str(every)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    counted = json.loads(ended.stdout)
    assert counted["kills"] * every > 300
    assert counted["repeats"] > 0
