"""What the bot relies on in a Bot API server: the same for our own fake and for an emulator that somebody else wrote."""

from __future__ import annotations

import threading
import time

import pytest
from telegram import InlineKeyboardButton, InlineKeyboardMarkup
from telegram.error import BadRequest, InvalidToken, NetworkError

from tests.telegram import npm_api, wire
from tests.telegram.fake_api import OWNER_ID, FakeApi
from tests.telegram.library import Library

YES = InlineKeyboardMarkup([[InlineKeyboardButton("Yes", callback_data="yes")]])
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\0\0\1\0\0\0\1"


@pytest.fixture(scope="module")
def emulator():
    try:
        package = npm_api.installed()
    except npm_api.Missing as reason:
        pytest.skip(str(reason))
    with npm_api.emulator(package) as address:
        yield address


@pytest.fixture(params=["ours", "npm"])
def api(request):
    server = FakeApi() if request.param == "ours" else npm_api.NpmApi(request.getfixturevalue("emulator"))
    with server as api:
        yield api


@pytest.fixture
def bot(api):
    with Library(api.url, api.token) as bot:
        yield bot


def shown(api) -> list[str]:
    return [message.text for message in api.transcript() if message.by != OWNER_ID]


def test_who_the_bot_is(bot):
    """getMe names a bot."""
    me = bot("get_me")
    assert me.is_bot
    assert me.username


def test_what_the_owner_says_arrives(api, bot):
    """With who, where, when (in whole seconds) and a message id."""
    said = api.owner.says("/status")
    [update] = bot("get_updates")
    message = update.message
    assert (message.text, message.message_id) == ("/status", said)
    assert (message.from_user.id, message.chat.id, message.chat.type) == (OWNER_ID, OWNER_ID, "private")
    assert abs(message.date.timestamp() - time.time()) < 60


def test_an_update_comes_again_until_it_is_confirmed(api, bot):
    """So a bot that dies between fetching and keeping loses nothing."""
    for text in ("one", "two"):
        api.owner.says(text)
    updates = bot("get_updates")
    assert [each.message.text for each in updates] == ["one", "two"]
    assert [each.update_id for each in bot("get_updates")] == [each.update_id for each in updates]
    api.owner.says("three")
    rest = bot("get_updates", offset=updates[-1].update_id + 1)
    assert [each.message.text for each in rest] == ["three"]
    assert rest[0].update_id > updates[-1].update_id


def test_a_long_poll_ends_when_the_owner_writes(api, bot):
    """Not when its time is over."""
    speaker = threading.Thread(target=lambda: (api.wait_for(lambda: api.calls), api.owner.says("now")))
    speaker.start()
    began = time.monotonic()
    assert [each.message.text for each in bot("get_updates", timeout=30)] == ["now"]
    assert time.monotonic() - began < 15
    speaker.join()


def test_a_sent_text_comes_back_as_the_owner_sees_it(api, bot):
    """Tags are entities, escapes are characters, ids rise."""
    first = bot.says("<b>loss&lt;0.5</b> &amp; &lt;module&gt;", OWNER_ID)
    second = bot.says("two", OWNER_ID)
    assert (first.text, first.entities[0].type, first.chat.id) == ("loss<0.5 & <module>", "bold", OWNER_ID)
    assert first.message_id < second.message_id
    assert abs(first.date.timestamp() - time.time()) < 60
    assert shown(api) == ["loss<0.5 & <module>", "two"]


def test_an_edit_changes_the_message_in_its_place(api, bot):
    """Text and keyboard; an edit without a keyboard takes it away."""
    card = bot.says("one", OWNER_ID, reply_markup=YES).message_id
    bot.says("below", OWNER_ID)
    edited = bot("edit_message_text", chat_id=OWNER_ID, message_id=card, text="<i>two</i>", parse_mode="HTML")
    assert (edited.message_id, edited.text) == (card, "two")
    assert shown(api) == ["two", "below"]
    assert api.transcript()[0].buttons == ()
    again = bot("edit_message_reply_markup", chat_id=OWNER_ID, message_id=card, reply_markup=YES)
    assert (again.message_id, again.text) == (card, "two")
    assert api.transcript()[0].buttons == ((("Yes", "yes"),),)


def test_a_tap_brings_its_data_and_its_message(api, bot):
    """And can be answered."""
    card = bot.says("Skip?", OWNER_ID, reply_markup=YES).message_id
    tap_id = api.owner.taps(card, "yes")
    [update] = bot("get_updates")
    tap = update.callback_query
    assert (tap.id, tap.data, tap.from_user.id) == (tap_id, "yes", OWNER_ID)
    assert (tap.message.message_id, tap.message.chat.id, tap.message.text) == (card, OWNER_ID, "Skip?")
    assert bot("answer_callback_query", callback_query_id=tap.id, text="Skipped") is True


def test_taps_and_texts_come_in_the_order_they_were_made(api, bot):
    """One queue for all kinds."""
    card = bot.says("Skip?", OWNER_ID, reply_markup=YES).message_id
    api.owner.says("before")
    api.owner.taps(card, "yes")
    api.owner.says("after")
    told = [update.message.text if update.message else update.callback_query.data for update in bot("get_updates")]
    assert told == ["before", "yes", "after"]


def test_a_deleted_message_is_gone(api, bot):
    """And cannot be deleted again."""
    gone = bot.says("gone", OWNER_ID).message_id
    assert bot("delete_message", chat_id=OWNER_ID, message_id=gone) is True
    assert shown(api) == []
    with pytest.raises(BadRequest):
        bot("delete_message", chat_id=OWNER_ID, message_id=gone)


def test_pictures_and_documents_are_messages(api, bot):
    """With a caption that is read as HTML, and an id like any other."""
    photo = bot("send_photo", chat_id=OWNER_ID, photo=PIXEL, caption="<b>loss</b>", parse_mode="HTML")
    report = bot("send_document", chat_id=OWNER_ID, document=b"<html>", filename="report.html")
    assert (photo.caption, photo.photo[0].file_size) == ("loss", len(PIXEL))
    assert (report.document.file_name, report.document.file_size) == ("report.html", 6)
    assert photo.message_id < report.message_id
    assert shown(api) == ["loss", ""]


def test_the_card_is_pinned_and_the_menu_set(bot):
    """Each is answered with True."""
    card = bot.says("card", OWNER_ID).message_id
    assert bot("pin_chat_message", chat_id=OWNER_ID, message_id=card, disable_notification=True) is True
    assert bot("unpin_chat_message", chat_id=OWNER_ID, message_id=card) is True
    assert bot("set_my_commands", commands=[("status", "How it goes")]) is True
    assert bot("send_chat_action", chat_id=OWNER_ID, action="typing") is True


def test_an_unknown_method_is_404(bot):
    """Which the library calls an invalid token."""
    with pytest.raises(InvalidToken, match="does not exist"):
        bot("do_api_request", endpoint="getHologram")


def test_a_lost_reply_leaves_the_message_there(api, bot):
    """The message is on the phone, and the bot does not know it."""
    api.fail("sendMessage", wire.LOST_REPLY)
    with pytest.raises(NetworkError):
        bot.says("sent?", OWNER_ID)
    assert shown(api) == ["sent?"]


def test_an_outage_loses_no_update(api, bot):
    """What the owner said while nobody could fetch it comes afterwards, once."""
    api.go_offline()
    api.owner.says("meanwhile")
    with pytest.raises(NetworkError):
        bot("get_updates")
    api.come_back()
    api.fail("getUpdates", wire.LOST_REPLY)
    with pytest.raises(NetworkError):
        bot("get_updates")
    [update] = bot("get_updates")
    assert update.message.text == "meanwhile"
    assert bot("get_updates", offset=update.update_id + 1) == ()
