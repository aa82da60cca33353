"""The strict Bot API server, asked by the real library and by plain HTTP.

What these tests say of the library is what the bot is built on.
"""

from __future__ import annotations

import html
import json
import struct
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, InputFile
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError, TimedOut

from tests.telegram import wire
from tests.telegram.fake_api import BOT_ID, OWNER_ID, FakeApi
from tests.telegram.library import Library

FIRE = "🔥"


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(17)


def keyboard(*data: str) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup([[InlineKeyboardButton(each.title() or "?", callback_data=each)] for each in data])


@pytest.fixture(autouse=True)
def _timedelta(monkeypatch):
    """Without this the library warns whenever it makes a RetryAfter."""
    monkeypatch.setenv("PTB_TIMEDELTA", "1")


@pytest.fixture
def api():
    with FakeApi() as api:
        yield api


@pytest.fixture
def bot(api):
    with Library(api.url) as bot:
        yield bot


def raw(api: FakeApi, method: str, body: bytes | None = None, kind: str = "application/json", token: str = wire.TOKEN):
    """Status and JSON of a request made by hand."""
    request = urllib.request.Request(f"{api.url}/bot{token}/{method}", body, {"Content-Type": kind} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def history(api: FakeApi) -> list[str]:
    return [message.text for message in api.transcript()]


# Faults


@pytest.mark.parametrize(
    ("fault", "kind", "cause", "carried_out"),
    [
        (wire.UNAUTHORIZED, InvalidToken, type(None), False),
        (wire.FORBIDDEN, Forbidden, type(None), False),
        (wire.NOT_FOUND, InvalidToken, type(None), False),
        (wire.HOTEL_404, InvalidToken, TelegramError, False),
        (wire.CONFLICT, Conflict, type(None), False),
        (wire.flood(7), RetryAfter, type(None), False),
        (wire.SERVER_ERROR, NetworkError, type(None), False),
        (wire.BAD_GATEWAY, NetworkError, TelegramError, False),
        (replace(wire.BAD_GATEWAY, carried_out=True), NetworkError, TelegramError, True),
        (wire.HOTEL_PAGE, TelegramError, json.JSONDecodeError, False),
        (wire.STRANGE_JSON, KeyError, type(None), False),
        (wire.GARBAGE, TelegramError, json.JSONDecodeError, True),
        (wire.TRUNCATED, NetworkError, httpx.RemoteProtocolError, True),
        (wire.HANG_UP, NetworkError, httpx.RemoteProtocolError, True),
        (wire.LOST_REPLY, NetworkError, httpx.ReadError, True),
        (wire.RESET, NetworkError, httpx.ReadError, False),
        (wire.BLACK_HOLE, TimedOut, httpx.ReadTimeout, False),
        (wire.slow(5), TimedOut, httpx.ReadTimeout, True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_how_the_library_raises_each_fault(api, bot, fault, kind, cause, carried_out):
    """Each fault has this very exception and cause, and the message was sent or not: one fault later all is well again."""
    api.fail("sendMessage", fault)
    with Library(api.url, timeout_s=0.5 if kind is TimedOut else 5.0) as hasty, pytest.raises(Exception) as raised:  # noqa: PT011  see below
        hasty.says("first", OWNER_ID)
    assert (type(raised.value), type(raised.value.__cause__)) == (kind, cause)
    api.wait_for(lambda: api.called("sendMessage", outcome=fault.name))
    assert history(api) == ["first"] * carried_out
    bot.says("second", OWNER_ID)
    assert history(api)[carried_out:] == ["second"]


def test_retry_after_comes_as_seconds(api, bot):
    """A 429 carries how long to wait."""
    api.fail("sendMessage", wire.flood(7))
    with pytest.raises(RetryAfter) as raised:
        bot.says("x", OWNER_ID)
    assert raised.value.retry_after.total_seconds() == 7


def test_a_lost_reply_and_a_reset_look_alike(api, bot):
    """From the exception alone nobody can tell whether the message went out."""
    raised = []
    for fault in (wire.LOST_REPLY, wire.RESET):
        api.fail("sendMessage", fault)
        with pytest.raises(NetworkError) as error:
            bot.says("x", OWNER_ID)
        raised.append(repr(error.value))
    assert raised[0] == raised[1]
    assert history(api) == ["x"]


def test_offline_is_a_refused_connection(api, bot):
    """A closed port proves that nothing was sent; afterwards the same bot goes on, at the same address."""
    bot.says("before", OWNER_ID)
    api.go_offline()
    with pytest.raises(NetworkError) as raised:
        bot.says("x", OWNER_ID)
    assert isinstance(raised.value.__cause__, httpx.ConnectError)
    api.come_back()
    bot.says("after", OWNER_ID)
    assert history(api) == ["before", "after"]


def test_a_network_that_swallows_packets_is_a_connect_timeout():
    """Connecting takes for ever: TimedOut, but its cause proves that nothing was sent."""
    with wire.Unreachable() as url, Library(url, timeout_s=0.5) as bot, pytest.raises(TimedOut) as raised:
        bot("get_me")
    assert isinstance(raised.value.__cause__, httpx.ConnectTimeout)


def test_a_fault_is_for_its_method_and_lasts_as_told(api, bot):
    """By count, until lifted, or for any method."""
    api.fail("getMe", wire.SERVER_ERROR, times=2)
    bot.says("x", OWNER_ID)
    for _ in range(2):
        with pytest.raises(NetworkError):
            bot("get_me")
    bot("get_me")
    api.fail("*", wire.NOT_FOUND, times=None)
    for _ in range(3):
        with pytest.raises(InvalidToken):
            bot("get_me")
    api.heal()
    assert bot("get_me").id == BOT_ID


def test_a_black_hole_lets_go_when_healed(api, bot):
    """The connection ends without an answer; the request was not carried out."""
    api.fail("sendMessage", wire.BLACK_HOLE, times=None)
    healer = threading.Thread(target=lambda: (api.wait_for(lambda: api.called("sendMessage", outcome="black hole")), api.heal()))
    healer.start()
    with pytest.raises(NetworkError):
        bot.says("x", OWNER_ID)
    healer.join()
    assert history(api) == []


def test_random_faults_are_the_same_for_the_same_seed(api, bot):
    """A storm can be repeated, and what was carried out is known."""
    storms = []
    for _ in range(2):
        api.heal()
        api.fail_at_random(0.5, [wire.SERVER_ERROR, wire.LOST_REPLY], seed=4)
        first = len(api.calls)
        for number in range(12):
            with suppress(NetworkError):
                bot.says(str(number), OWNER_ID)
        storms.append([call.outcome for call in api.calls[first:]])
    assert storms[0] == storms[1]
    assert set(storms[0]) == {"ok", "server error", "lost reply"}
    assert len(api.sent) == 24 - 2 * storms[0].count("server error")


def test_poison_stops_the_library_until_it_is_confirmed(api, bot):
    """An update that the library cannot parse takes its neighbours along and comes again; its id is in the answer as it came."""
    api.owner.says("before")
    api.poison()
    for _ in range(2):
        with pytest.raises(KeyError):
            bot("get_updates")
    updates = raw(api, "getUpdates")[1]["result"]
    assert "date" not in updates[1]["message"]
    api.owner.says("after")
    assert [each.message.text for each in bot("get_updates", offset=updates[1]["update_id"] + 1)] == ["after"]


def test_a_clock_that_is_wrong_shows_in_the_dates(api, bot):
    """Messages and updates are dated by the server's clock, in whole seconds."""
    api.advance(-7200)
    api.owner.says("x")
    sent = bot.says("x", OWNER_ID)
    ages_s = [time.time() - each.date.timestamp() for each in (sent, bot("get_updates")[0].message)]
    assert all(7199 < age_s < 7210 for age_s in ages_s)
    assert sent.date.microsecond == 0


# Refusals


BUTTON = {"text": "x", "callback_data": "y"}


def inline(**button: str) -> str:
    return json.dumps({"inline_keyboard": [[BUTTON | button]]})


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        ("sendMessage", {"text": ""}, "message text is empty"),
        ("sendMessage", {"text": " \n "}, "text must be non-empty"),
        ("sendMessage", {"text": "<b> </b>", "parse_mode": "HTML"}, "text must be non-empty"),
        ("sendMessage", {"text": FIRE * 2048 + "x"}, "message is too long"),
        ("sendMessage", {"text": "loss<0.5", "parse_mode": "HTML"}, "can't parse entities: Unsupported start tag"),
        ("sendMessage", {"text": "<b>x", "parse_mode": "html"}, "can't parse entities: Can't find end tag"),
        ("sendMessage", {"text": "x", "parse_mode": "MarkdownV2"}, "unsupported parse_mode"),
        ("sendMessage", {"text": "x", "chat_id": 5}, "chat not found"),
        ("sendMessage", {"text": "x", "chat_id": "me"}, "chat_id must be an integer"),
        ("sendMessage", {"text": "x", "reply_markup": inline(callback_data="ñ" * 32 + "x")}, "BUTTON_DATA_INVALID"),
        ("sendMessage", {"text": "x", "reply_markup": inline(callback_data="")}, "BUTTON_DATA_INVALID"),
        ("sendMessage", {"text": "x", "reply_markup": inline(text=" ")}, "Button text must be non-empty"),
        ("sendMessage", {"text": "x", "reply_markup": '{"inline_keyboard":[[{"text":"x"}]]}'}, "Text buttons are unallowed"),
        (
            "sendMessage",
            {"text": "x", "reply_markup": json.dumps({"inline_keyboard": [[BUTTON] * 101]})},
            "reply markup is too long",
        ),
        ("sendMessage", {"text": "x", "reply_markup": "{"}, "can't parse the JSON"),
        ("sendPhoto", {}, "there is no photo"),
        ("editMessageText", {"text": "x", "message_id": 9}, "message to edit not found"),
        ("editMessageText", {"text": "x", "message_id": 101}, "message can't be edited"),
        ("editMessageText", {"text": "<b>card</b> ", "parse_mode": "HTML", "message_id": 102}, "message is not modified"),
        ("editMessageText", {"text": "", "message_id": 102}, "message text is empty"),
        ("editMessageReplyMarkup", {"message_id": 102}, "message is not modified"),
        ("deleteMessage", {"message_id": 9}, "message to delete not found"),
        ("pinChatMessage", {"message_id": 9}, "message to pin not found"),
        ("unpinChatMessage", {}, "message to unpin not found"),
        ("answerCallbackQuery", {"callback_query_id": "5"}, "query is too old and response timeout expired or query ID is invalid"),
        ("setMyCommands", {"commands": '[{"command":"Status","description":"x"}]'}, "BOT_COMMAND_INVALID"),
        ("setMyCommands", {"commands": '[{"command":"status","description":""}]'}, "BOT_COMMAND_DESCRIPTION_INVALID"),
        ("sendChatAction", {"action": "dancing"}, "wrong parameter action"),
        ("getUpdates", {"offset": "x"}, "offset must be an integer"),
    ],
)
def test_what_is_refused(api, method, params, why):
    """Telegram's 400, in its words; nothing has changed."""
    api.owner.says("/start")
    raw(api, f"sendMessage?chat_id={OWNER_ID}&text=%3Cb%3Ecard%3C/b%3E&parse_mode=HTML")
    before = api.transcript()
    status, reply = raw(api, method, json.dumps({"chat_id": OWNER_ID} | params).encode())
    assert (status, reply["ok"], reply["error_code"]) == (400, False, 400)
    assert why in reply["description"]
    assert reply["description"].startswith("Bad Request: ")
    assert api.transcript() == before


def test_a_refusal_is_a_bad_request_which_is_a_network_error(api, bot):
    """So BadRequest is to be caught first, or a message that is wrong for ever is tried for ever."""
    with pytest.raises(BadRequest, match="Can't parse entities") as raised:
        bot.says("a < b", OWNER_ID)
    assert isinstance(raised.value, NetworkError)


def test_what_just_fits_is_taken(api, bot):
    """4,096 units after parsing, 1,024 of a caption, 64 bytes of data."""
    bot.says(f"<b>{FIRE * 2047}</b>&lt;x", OWNER_ID, reply_markup=keyboard("x" * 64))
    bot("send_photo", chat_id=OWNER_ID, photo=png(90, 90), caption=FIRE * 512)
    assert [len(text) for text in history(api)] == [2049, 512]
    with pytest.raises(BadRequest, match="caption is too long"):
        bot("send_photo", chat_id=OWNER_ID, photo=png(90, 90), caption=FIRE * 512 + "x")


def test_a_wrong_token_is_401_and_an_unknown_method_404(api):
    """Both are InvalidToken to the library; the status tells them apart."""
    assert raw(api, "getMe", token="1:x") == (401, {"ok": False, "error_code": 401, "description": "Unauthorized"})
    assert raw(api, "getHologram") == (404, {"ok": False, "error_code": 404, "description": "Not Found"})
    with Library(api.url, token="1:x") as bot, pytest.raises(InvalidToken, match="Unauthorized"):
        bot("get_me")


def test_forms_json_and_queries_are_all_understood(api):
    """The API takes a GET, a form and JSON alike."""
    raw(api, f"sendMessage?chat_id={OWNER_ID}&text=one")
    raw(api, "sendMessage", f"chat_id={OWNER_ID}&text=two+%26".encode(), "application/x-www-form-urlencoded")
    raw(api, "sendMessage", json.dumps({"chat_id": OWNER_ID, "text": "three"}).encode())
    assert history(api) == ["one", "two &", "three"]


# Messages


def test_a_text_arrives_as_typed(api, bot):
    """Escaped text comes back as it was, with its entities; the owner sees the same."""
    typed = "loss<0.5 & <module> 🌶"
    sent = bot.says(f"<b>{html.escape(typed)}</b>", OWNER_ID, disable_notification=True)
    assert (sent.text, sent.entities[0].type, sent.entities[0].length) == (typed, "bold", 22)
    assert sent.chat.type == "private"
    [seen] = api.transcript()
    assert (seen.text, seen.by, seen.silent) == (typed, BOT_ID, True)


def test_message_ids_rise(api, bot):
    """One counter for both sides of the chat."""
    ids = [bot.says("x", OWNER_ID).message_id, api.owner.says("y"), bot.says("z", OWNER_ID).message_id]
    assert ids == sorted(set(ids))


def test_an_edit_replaces_text_and_keyboard(api, bot):
    """An edit that brings no keyboard takes the old one away; the transcript shows the newest, the logs show all."""
    sent = bot.says("one", OWNER_ID, reply_markup=keyboard("go", "no"))
    assert api.transcript()[0].buttons == ((("Go", "go"),), (("No", "no"),))
    edited = bot("edit_message_text", chat_id=OWNER_ID, message_id=sent.message_id, text="two")
    assert (edited.text, edited.message_id, edited.edit_date is not None) == ("two", sent.message_id, True)
    bot("edit_message_reply_markup", chat_id=OWNER_ID, message_id=sent.message_id, reply_markup=keyboard("again"))
    [seen] = api.transcript()
    assert (seen.text, seen.buttons) == ("two", ((("Again", "again"),),))
    assert ([it.text for it in api.sent], [it.text for it in api.edited]) == (["one"], ["two", "two"])


def test_pictures_and_files_arrive_byte_for_byte(api, bot):
    """A PNG that Telegram can show, and a document with its name."""
    content = bytes(range(256)) * 40 + b"\r\n--x\r\n"
    photo = bot("send_photo", chat_id=OWNER_ID, photo=png(800, 400), caption="<b>loss</b>", parse_mode="HTML")
    document = bot("send_document", chat_id=OWNER_ID, document=InputFile(content, filename="report ñ.html"))
    assert (photo.caption, photo.photo[0].file_size) == ("loss", len(png(800, 400)))
    assert (document.document.file_size, document.caption) == (len(content), None)
    first, second = api.transcript()
    assert (first.photo, first.text) == (png(800, 400), "loss")
    assert (second.document, second.document_name) == (content, document.document.file_name)
    with pytest.raises(BadRequest, match="no text in the message to edit"):
        bot("edit_message_text", chat_id=OWNER_ID, message_id=photo.message_id, text="x")


@pytest.mark.parametrize(
    ("photo", "why"),
    [
        (b"<html>", "Image_process_failed"),
        (png(6000, 5000), "Photo_invalid_dimensions"),
        (png(2100, 100), "Photo_invalid_dimensions"),
        (png(9, 9) + bytes(10 * 1024 * 1024), "File is too big"),
    ],
    ids=["no picture", "too wide and high", "too flat", "too heavy"],
)
def test_pictures_that_telegram_cannot_show(api, bot, photo, why):
    """Over 10,000 pixels of width and height together, flatter than 20 to 1, over 10 MiB, or no picture at all."""
    with pytest.raises(BadRequest, match=why):
        bot("send_photo", chat_id=OWNER_ID, photo=photo)
    assert history(api) == []


def test_an_empty_file_is_refused(api, bot):
    """There is nothing to send."""
    with pytest.raises(BadRequest, match="File must be non-empty"):
        bot("send_document", chat_id=OWNER_ID, document=InputFile(b"", filename="report.html"))
    assert history(api) == []


def test_deleting_pinning_and_the_menu(api, bot):
    """A pinned card is found through getChat; after 48 hours a message stays."""
    card = bot.says("card", OWNER_ID).message_id
    bot("pin_chat_message", chat_id=OWNER_ID, message_id=card, disable_notification=True)
    assert bot("get_chat", chat_id=OWNER_ID).pinned_message.message_id == card
    assert api.transcript()[0].pinned
    bot("unpin_chat_message", chat_id=OWNER_ID)
    assert bot("get_chat", chat_id=OWNER_ID).pinned_message is None
    bot("set_my_commands", commands=[("status", "How it goes")])
    assert api.commands == [{"command": "status", "description": "How it goes"}]
    assert bot("send_chat_action", chat_id=OWNER_ID, action="upload_photo")
    gone = bot.says("gone", OWNER_ID).message_id
    bot("delete_message", chat_id=OWNER_ID, message_id=gone)
    assert history(api) == ["card"]
    api.advance(49 * 3600)
    with pytest.raises(BadRequest, match="can't be deleted"):
        bot("delete_message", chat_id=OWNER_ID, message_id=card)


# Updates


def test_an_update_comes_until_it_is_confirmed(api, bot):
    """By an offset beyond it, and by nothing else."""
    for text in ("/status", "two", "three"):
        api.owner.says(text)
    first = bot("get_updates", limit=2)
    assert [each.message.text for each in first] == ["/status", "two"]
    assert first == bot("get_updates", limit=2)
    rest = bot("get_updates", offset=first[0].update_id + 1)
    assert [each.message.text for each in rest] == ["two", "three"]
    assert bot("get_updates", offset=rest[-1].update_id + 1) == ()
    assert api.unconfirmed() == 0


def test_an_update_carries_who_where_and_when(api, bot):
    """User, chat, its type, and a command as an entity."""
    api.owner.says("/skip train_marian")
    message = bot("get_updates")[0].message
    assert (message.from_user.id, message.from_user.is_bot, message.chat.id, message.chat.type) == (
        OWNER_ID,
        False,
        OWNER_ID,
        "private",
    )
    assert message.parse_entity(message.entities[0]) == "/skip"


def test_updates_are_kept_for_24_hours(api, bot):
    """What was said two days ago is lost; what was said 20 hours ago comes."""
    api.owner.says("two days ago")
    api.advance(28 * 3600)
    api.owner.says("20 hours ago")
    api.advance(20 * 3600)
    assert [each.message.text for each in bot("get_updates")] == ["20 hours ago"]


def test_a_negative_offset_forgets_the_rest(api, bot):
    """The last ones only; those before are gone for good."""
    for text in ("one", "two", "three"):
        api.owner.says(text)
    assert [each.message.text for each in bot("get_updates", offset=-2)] == ["two", "three"]
    assert api.unconfirmed() == 2


def test_kinds_that_were_not_asked_for_do_not_come(api, bot):
    """`allowed_updates` holds from then on, until it is given anew."""
    bot("get_updates", allowed_updates=["callback_query"])
    api.owner.says("lost")
    sent = bot.says("x", OWNER_ID, reply_markup=keyboard("go"))
    api.owner.taps(sent.message_id, "go")
    assert [each.callback_query.data for each in bot("get_updates")] == ["go"]


def test_a_long_poll_ends_when_something_comes(api, bot):
    """At once, not when its time is over."""
    speaker = threading.Thread(target=lambda: (api.wait_for(lambda: api.calls), api.owner.says("now")))
    speaker.start()
    began = time.monotonic()
    assert [each.message.text for each in bot("get_updates", timeout=30)] == ["now"]
    assert time.monotonic() - began < 10
    speaker.join()


def test_a_long_poll_ends_empty_when_its_time_is_over(api, bot):
    """After the seconds that were asked for."""
    began = time.monotonic()
    assert bot("get_updates", timeout=1) == ()
    assert 0.9 < time.monotonic() - began < 5


def test_a_second_poller_ends_the_first(api, bot):
    """The older one gets 409; the newer one the updates."""

    def second():
        api.wait_for(lambda: api.calls)
        raw(api, "getUpdates?timeout=0")

    other = threading.Thread(target=second)
    other.start()
    with pytest.raises(Conflict, match="terminated by other getUpdates request"):
        bot("get_updates", timeout=30)
    other.join()


def test_a_webhook_of_another_program_is_in_the_way(api, bot):
    """Polling is a conflict until the webhook is deleted."""
    api.webhook = "https://example.org/hook"
    with pytest.raises(Conflict, match="webhook is active"):
        bot("get_updates")
    bot("delete_webhook")
    assert bot("get_updates") == ()


def test_a_long_poll_ends_with_the_server(api, bot):
    """Going offline cuts it at once."""
    cutter = threading.Thread(target=lambda: (api.wait_for(lambda: api.calls), api.go_offline()))
    cutter.start()
    with pytest.raises(NetworkError):
        bot("get_updates", timeout=30)
    cutter.join()


# People


def test_a_tap_brings_its_data_and_gets_one_toast(api, bot):
    """Only a button that is there can be tapped, unless the screen is stale."""
    sent = bot.says("Skip?", OWNER_ID, reply_markup=keyboard("yes"))
    with pytest.raises(LookupError):
        api.owner.taps(sent.message_id, "no")
    api.owner.taps(sent.message_id, "yes")
    tap = bot("get_updates")[0].callback_query
    assert (tap.data, tap.from_user.id, tap.message.message_id, tap.message.text) == ("yes", OWNER_ID, sent.message_id, "Skip?")
    with pytest.raises(BadRequest, match="Message_too_long"):
        bot("answer_callback_query", callback_query_id=tap.id, text="x" * 201)
    bot("answer_callback_query", callback_query_id=tap.id, text="Skipped")
    assert [(toast.callback_id, toast.text) for toast in api.toasts] == [(tap.id, "Skipped")]


def test_a_stale_tap_comes_with_what_the_message_is_now(api, bot):
    """The keyboard is gone, or the whole message: then it is inaccessible."""
    sent = bot.says("Skip?", OWNER_ID, reply_markup=keyboard("yes"))
    bot("edit_message_text", chat_id=OWNER_ID, message_id=sent.message_id, text="Done")
    api.owner.taps(sent.message_id, "yes", stale=True)
    bot("delete_message", chat_id=OWNER_ID, message_id=sent.message_id)
    api.owner.taps(sent.message_id, "yes", stale=True)
    first, second = (each.callback_query.message for each in bot("get_updates"))
    assert (first.text, first.is_accessible, second.is_accessible) == ("Done", True, False)


def test_a_tap_is_answered_within_15_seconds_or_never(api, bot):
    """Later the query is too old."""
    sent = bot.says("Skip?", OWNER_ID, reply_markup=keyboard("yes"))
    tap = api.owner.taps(sent.message_id, "yes")
    api.advance(16)
    with pytest.raises(BadRequest, match="Query is too old"):
        bot("answer_callback_query", callback_query_id=tap)


def test_strangers_and_groups_can_be_told_apart(api, bot):
    """Everybody can write to a bot; the bot can write only to who did."""
    stranger, family = api.person(666, "Mallory"), api.group(-100)
    with pytest.raises(BadRequest, match="Chat not found"):
        bot.says("x", 666)
    sent = bot.says("Skip?", family, reply_markup=keyboard("yes"))
    stranger.says("/status")
    stranger.taps(sent.message_id, "yes")
    api.owner.says("/status", chat_id=family)
    updates = bot("get_updates")
    where = [(it.effective_user.id, it.effective_chat.id, it.effective_chat.type) for it in updates]
    assert where == [(666, 666, "private"), (666, -100, "group"), (OWNER_ID, -100, "group")]
    bot.says("hello", 666)
    assert [seen.text for seen in api.transcript(666)] == ["/status", "hello"]


def test_a_sticker_is_a_message_without_text(api, bot):
    """Not everything that is sent is text."""
    api.owner.says(None, dice={"emoji": "🎲", "value": 4})
    message = bot("get_updates")[0].message
    assert (message.text, message.dice.value) == (None, 4)


# Pace


def test_one_message_a_second_and_chat(api, bot):
    """When switched on: 429 for what comes sooner, in that chat only; an answer to a tap is free."""
    api.gap_s = 1.0
    api.person(5, started=True)
    bot.says("one", OWNER_ID)
    bot.says("another chat", 5)
    with pytest.raises(RetryAfter):
        bot.says("two", OWNER_ID)
    bot("get_chat", chat_id=OWNER_ID)
    api.advance(3)
    bot.says("two", OWNER_ID)
    assert history(api) == ["one", "two"]


def test_who_does_not_wait_waits_longer(api, bot):
    """A paused chat refuses messages and edits alike, and each try makes the pause longer."""
    sent = bot.says("card", OWNER_ID)
    api.flood(10)
    waits_s = []
    for _ in range(2):
        with pytest.raises(RetryAfter) as raised:
            bot("edit_message_text", chat_id=OWNER_ID, message_id=sent.message_id, text="new")
        waits_s.append(raised.value.retry_after.total_seconds())
    assert waits_s == [20, 40]
    api.advance(41)
    bot("edit_message_text", chat_id=OWNER_ID, message_id=sent.message_id, text="new")
    assert history(api) == ["new"]


# The server itself


def test_what_breaks_in_the_server_breaks_the_test():
    """An error of the fake's own is never taken for a fault of the network."""

    class Broken(FakeApi):
        def answer(self, method, params, files):
            raise ZeroDivisionError(method)

    api = Broken()
    with pytest.raises(ZeroDivisionError, match="getMe"), api, Library(api.url) as bot, suppress(NetworkError):
        bot("get_me")


def test_waiting_in_vain_says_what_happened_instead(api, bot):
    """`wait_for` names the last calls."""
    bot("get_me")
    with pytest.raises(TimeoutError, match="getMe"):
        api.wait_for(lambda: api.sent, timeout_s=0.05)
