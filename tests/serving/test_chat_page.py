"""The page's chat: what is sent, shown and remembered of a conversation, in a real browser."""

import threading
from typing import Any

import pytest
from chromium import contrast, opened_browser, page_opener  # noqa: F401 - fixtures
from live_server import held_engine, live_server
from scripted_api import HOSTILE, STORY, Script, serve_script

pytestmark = pytest.mark.slow
CHAT = ("small-chat",)
ANSWER = "".join(f" {word}" for word in STORY)


def say(page: Any, text: str) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")


def answered(page: Any) -> list[str]:
    """Wait for the end of an answer, and return the words of all bubbles."""
    page.wait_for_selector("#send[aria-disabled=false]")
    return page.locator(".turn .words").all_text_contents()


def test_a_conversation_is_sent_whole_and_shown_as_bubbles(visit):
    with serve_script(Script(chats=CHAT)) as script:
        page = visit(script.url)
        assert page.is_visible("#say")
        assert page.is_hidden("#prompt")
        page.fill("#seed", "7")
        say(page, "Tell me a story")
        assert answered(page) == ["Tell me a story", ANSWER]
        body = script.bodies[-1]
        expected = {"path": "/v1/chat/completions", "model": "small-chat", "seed": 7}
        assert body | expected | {"stream": True, "temperature": 0.8, "top_k": 50} == body
        assert page.input_value("#say") == ""
        assert "15 tokens" in page.text_content("#talk-numbers")
        assert "ended by itself · seed 7" in page.text_content("#talk-numbers")
        say(page, "More")
        assert answered(page) == ["Tell me a story", ANSWER, "More", ANSWER]
        assert script.bodies[-1]["messages"] == [
            {"role": "user", "content": "Tell me a story"},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "More"},
        ]
        page.click("#new-chat")
        assert page.locator(".turn").count() == 0
        say(page, "Again")
        answered(page)
        assert len(script.bodies[-1]["messages"]) == 1


def test_enter_sends_and_shift_enter_breaks_the_line(visit):
    with serve_script(Script(chats=CHAT, pause=0.05)) as script:
        page = visit(script.url)
        page.focus("#say")
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        page.keyboard.type("while it answers")
        page.keyboard.press("Enter")  # has to wait
        page.wait_for_selector(".turn.assistant .words:not(:empty)")
        page.keyboard.press("Escape")
        stopped = answered(page)
        assert "stopped by you" in page.text_content("#talk-numbers")
        assert script.left.wait(20)
        assert stopped[0] == "one\ntwo"
        assert ANSWER.startswith(stopped[1])
        assert len(script.bodies) == 1
        page.keyboard.press("Enter")
        answered(page)
        contents = [message["content"] for message in script.bodies[-1]["messages"]]
        assert contents == [*stopped, "while it answers"]


def test_html_in_messages_is_shown_as_it_is(visit):
    with serve_script(Script(chats=CHAT, tokens=HOSTILE)) as script:
        page = visit(script.url)
        say(page, HOSTILE[0])
        assert answered(page) == [HOSTILE[0], "".join(HOSTILE)]
        assert page.locator("#talk script, #talk img").count() == 0


def test_a_refused_question_waits_to_be_asked_again(visit):
    with serve_script(Script(chats=CHAT, fails=(429, "64 sequences wait"))) as script:
        page = visit(script.url)
        say(page, "Hello")
        page.wait_for_selector("#alarm:has-text('The server is busy')")
        assert answered(page) == []
        assert page.input_value("#say") == "Hello"
        script.fails = None
        page.click("#send")
        assert answered(page) == ["Hello", ANSWER]
        assert page.is_hidden("#alarm")


def test_an_answer_without_text_is_no_part_of_the_conversation(visit):
    with serve_script(Script(chats=CHAT, tokens=[])) as script:
        page = visit(script.url)
        say(page, "Hello")
        assert answered(page) == ["Hello", "(no text)"]
        page.click("#send")
        answered(page)
        assert script.bodies[-1]["messages"] == [{"role": "user", "content": "Hello"}]


def test_the_oldest_turns_go_where_the_context_is_full(visit):
    with serve_script(Script(chats=CHAT, most_messages=3)) as script:
        page = visit(script.url)
        for text in ("one", "two", "three"):
            say(page, text)
            answered(page)
        contents = [message["content"] for message in script.bodies[-1]["messages"]]
        assert contents == ["two", ANSWER, "three"]
        assert page.locator(".turn.unread .words").all_text_contents() == ["one", ANSWER]
        assert "no longer reads" in page.text_content(".divide")
        assert page.is_hidden("#alarm")


def test_models_are_chosen_by_name_and_completion_stays_near(visit):
    with serve_script(Script(chats=("chat-a", "chat-b"))) as script:
        page = visit(script.url)
        page.select_option("#models", "chat-b")
        say(page, "Hello")
        answered(page)
        assert script.bodies[-1]["model"] == "chat-b"
        page.click("#mode-completion")
        assert page.is_hidden("#say")
        page.fill("#prompt", "Once")
        page.click("#generate")
        page.wait_for_selector("#status:has-text('Finished')", state="attached")
        asked = {"path": "/v1/completions", "model": "chat-b", "prompt": "Once"}
        assert script.bodies[-1] | asked == script.bodies[-1]
        page.click("#mode-chat")
        assert answered(page) == ["Hello", ANSWER]
        page.select_option("#models", "small-model")  # which is not tuned on turns
        assert page.is_visible("#prompt")
        assert page.is_hidden("#modes")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_chat_fits_and_can_be_read(visit, scheme, tmp_path):
    long = ["x" * 300, *(f" {word}" for word in STORY)]
    with serve_script(Script(chats=("small-chat", "other"), tokens=long)) as script:
        size = {"width": 360, "height": 740}
        page = visit(script.url, viewport=size, color_scheme=scheme, has_touch=True)
        say(page, "w" * 200)
        answered(page)
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        for place in (".turn.user .words", ".turn.assistant .words", "#talk-numbers"):
            assert contrast(page, place) >= 4.5, place
        box = page.locator("#send").bounding_box()
        assert box["y"] + box["height"] <= 740  # in sight without scrolling


def test_the_real_server_answers_a_conversation(visit):
    engine = held_engine()
    with live_server(engine, template="chat") as server:
        page = visit(f"{server.url}/")
        page.fill("#seed", "3")
        page.fill("#max_tokens", "12")
        say(page, "Hi")
        body = {"messages": [{"role": "user", "content": "Hi"}], "seed": 3, "max_tokens": 12}
        body |= {"temperature": 0.8, "top_k": 50}
        answer = server.http.post("/v1/chat/completions", json=body).json()
        assert answered(page)[1] == answer["choices"][0]["message"]["content"]
        engine.gate.clear()
        threading.Timer(2.0, engine.gate.set).start()
        page.click("#new-chat")
        say(page, "Hello")
        page.wait_for_selector("#halt-chat[aria-disabled=false]")
        page.click("#halt-chat")
        answered(page)
        server.wait_idle()
