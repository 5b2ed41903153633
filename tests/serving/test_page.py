"""The playground: what its file may hold, and what it does in a real browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import httpx2 as httpx
import pytest
from chromium import brightness, contrast, opened_browser, page_opener  # noqa: F401 - fixtures
from live_server import SHAPE, TOKENIZER, held_engine, live_server, random_params
from scripted_api import END, EURO, HOSTILE, STORY, Script, serve_script

from gptjax.serving.attention import AttentionMaps
from gptjax.serving.page import read_page

HTML = read_page()[0].decode()
SCRIPT = HTML.partition("<script>")[2].partition("</script>")[0]


class Elements(HTMLParser):
    """The tags of the page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_policy_allows_the_script_and_the_style_of_the_page_and_nothing_else():
    policy = dict(
        part.split(" ", 1) for part in read_page()[1]["Content-Security-Policy"].split("; ")
    )
    for element in ("script", "style"):
        content = HTML.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{element}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)


def test_no_text_can_become_html_or_code():
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
    assert re.findall(ways, HTML) == []


def test_the_page_names_no_outside_address():
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", HTML)) == {"http://www.w3.org"}  # of SVG
    assert re.findall(r"url\(|@import", HTML) == []


def test_no_element_has_a_style_or_a_handler_of_its_own():
    attributes = {name for _, attrs in Elements().found for name in attrs}
    assert {name for name in attributes if name == "style" or name.startswith("on")} == set()


def test_every_name_leads_to_one_element():
    ids = [attrs["id"] for _, attrs in Elements().found if attrs.get("id")]
    assert len(ids) == len(set(ids))
    named = set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT))
    for attribute in ("for", "data-of", "aria-labelledby", "aria-describedby"):
        named |= {str(attrs[attribute]) for _, attrs in Elements().found if attribute in attrs}
    assert named <= set(ids)


# ---- in a browser ----


def finish(page: Any) -> str:
    """Wait for the end of a text, and return it without its prompt."""
    page.wait_for_selector("#status:has-text('Finished')", state="attached")
    return "".join(page.locator("#text > :not(.given)").all_text_contents())


@pytest.mark.slow
def test_a_text_is_generated_hovered_and_generated_again(visit):
    with serve_script(Script()) as script:
        page = visit(script.url)
        page.fill("#prompt", "Say:")
        page.fill("#max_tokens", "9")
        page.fill("#top_p", "0.9")
        page.fill("#stop", "the end\n\\n\\n")
        page.click("#generate")
        assert finish(page) == "".join(f" {word}" for word in STORY[:9])
        first = script.bodies[-1]
        expected = {"prompt": "Say:", "max_tokens": 9, "top_p": 0.9, "temperature": 0.8}
        expected |= {"stop": ["the end", "\n\n"], "logprobs": 5, "stream": True, "top_k": 50}
        assert first | expected == first
        assert not {"min_p", "repetition_penalty"} & first.keys()
        assert "9 tokens" in page.text_content("#numbers")
        assert f"token limit reached · seed {first['seed']}" in page.text_content("#numbers")

        page.hover(".token >> nth=1")
        shown = page.inner_text("#panel").split("\n")
        assert shown[:2] == [f"\u2423{STORY[1]}", "31.0 %"]
        assert page.locator("#panel .choice").count() == 5
        assert page.text_content("#panel .chosen").startswith(f"\u2423{STORY[1]}")
        page.mouse.move(5, 5)
        assert page.is_hidden("#panel")

        page.click("text=Use this seed")
        assert page.input_value("#seed") == str(first["seed"])
        page.click("#generate")
        finish(page)
        assert script.bodies[-1]["seed"] == first["seed"]
        page.click("#again")
        finish(page)
        assert script.bodies[-1]["seed"] != first["seed"]


@pytest.mark.slow
def test_a_stopped_text_stays_and_the_server_notices(visit):
    with serve_script(Script(pause=0.1, tokens=[" again"] * 500)) as script:
        page = visit(script.url)
        page.fill("#max_tokens", "500")
        page.click("#generate")
        page.wait_for_selector(".token >> nth=3")
        page.click("#halt")
        assert finish(page).startswith(" again again again")
        assert "stopped by you" in page.text_content("#numbers")
        assert script.left.wait(20)
        page.click("#generate")
        page.wait_for_selector(".token >> nth=1")
        page.click("#clear")
        page.wait_for_timeout(300)
        assert page.locator(".token").count() == 0
        assert page.text_content("#text") == "The text appears here."


@pytest.mark.slow
def test_html_in_prompt_and_text_is_shown_as_it_is(visit):
    with serve_script(Script(tokens=HOSTILE)) as script:
        page = visit(script.url)
        page.fill("#prompt", HOSTILE[0])
        page.click("#generate")
        assert finish(page) == "".join(HOSTILE)
        assert page.text_content("#text .given") == HOSTILE[0]
        page.hover(".token >> nth=0")
        assert page.text_content("#panel .headline .code") == HOSTILE[0]
        page.check("#attention-on")
        page.wait_for_selector("#map:visible")
        assert HOSTILE[0] in page.text_content("#strip")
        assert page.locator("#text script, #panel script, #strip script, img").count() == 0


@pytest.mark.slow
def test_characters_of_several_tokens_and_cut_tokens_give_the_text_of_the_api(visit):
    with serve_script(Script(tokens=[" 5", " ", *EURO, "\n", END])) as script:
        page = visit(script.url)
        page.click("#generate")
        assert finish(page) == " 5 \u20ac\n"
        assert page.locator(".token").all_text_contents() == [" 5", " ", "", "\u20ac", "\n", ""]
        assert page.get_attribute(".token.end", "aria-label").startswith(END)


@pytest.mark.slow
def test_the_keyboard_is_enough(visit):
    with serve_script(Script(pause=0.02)) as script:
        page = visit(script.url)
        page.keyboard.press("Tab")  # the colours
        page.keyboard.press("Tab")
        page.keyboard.type("Hello")
        page.keyboard.press("Control+Enter")
        finish(page)
        assert script.bodies[-1]["prompt"] == "Hello"
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('token')"):
                break
        assert page.is_visible("#panel")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent") == f" {STORY[1]}"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert f"\u2423{STORY[1]}" in page.text_content("#panel")
        page.keyboard.press("Escape")
        assert page.is_hidden("#panel")
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.textContent") == f" {STORY[-1]}"

        page.focus("#generate")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "halt"
        page.keyboard.press("Escape")
        finish(page)
        assert "stopped by you" in page.text_content("#numbers")
        assert page.evaluate("document.activeElement.id") == "generate"


@pytest.mark.slow
def test_the_panel_stays_beside_a_token_that_the_browser_scrolls_to(visit):
    with serve_script(Script(pause=0)) as script:
        page = visit(script.url, viewport={"width": 900, "height": 700})
        page.evaluate("document.body.style.paddingTop = '2000px'")
        page.fill("#prompt", "Hello")
        page.click("#generate")
        finish(page)
        page.evaluate("scrollTo(0, 0)")
        page.evaluate(
            """new Promise((done) => { addEventListener('scroll', () => done(), { once: true });
            [...document.querySelectorAll('.token')].at(-1).focus(); })"""
        )
        assert page.evaluate("scrollY") > 0
        assert page.is_visible("#panel")
        token, panel = (page.locator(at).bounding_box() for at in (".token.shown", "#panel"))
        gaps = panel["y"] - token["y"] - token["height"], token["y"] - panel["y"] - panel["height"]
        assert max(gaps) == pytest.approx(8, abs=1)
        page.evaluate("document.activeElement.blur()")
        assert page.is_hidden("#panel")


@pytest.mark.slow
def test_attention_is_drawn_and_explored(visit):
    with serve_script(Script()) as script:
        page = visit(script.url)
        page.fill("#prompt", "a b c")
        page.fill("#max_tokens", "3")
        page.click("#generate")
        finish(page)
        assert not any(body["path"] == "/v1/attention" for body in script.bodies)  # off by default
        page.check("#attention-on")
        page.wait_for_selector("#map:visible")
        asked = {"prompt": "a b c", "completion": [0, 1, 2], "layer": 0, "head": 0}
        assert script.bodies[-1] == {"path": "/v1/attention", **asked}
        assert page.text_content("#attention-note") == "6 tokens"
        page.focus("#heat")
        for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        assert (
            "\u201c\u2423once\u201d (3) looks 36.4 % at \u201c\u2423a\u201d (0)."
            in page.text_content("#looks")
        )
        drawn = page.evaluate(
            """() => { const c = document.querySelector('#heat'), side = c.width / 6;
            const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.width).data;
            const middle = (i) => Math.round((i + .5) * side);
            const alpha = (q, k) => pixels[4 * (middle(q) * c.width + middle(k)) + 3];
            return [alpha(1, 1), alpha(1, 0), alpha(1, 4)]; }"""
        )
        assert drawn[0] > drawn[1] > drawn[2] == 0
        page.hover("#heat", position={"x": 3, "y": 3})
        assert "\u201c\u2423a\u201d (0) looks 100 %" in page.text_content("#looks")
        page.select_option("#layer", "1")
        page.select_option("#head", "2")
        page.wait_for_selector("#attention-note:has-text('6 tokens')")
        assert {"layer": 1, "head": 2}.items() <= script.bodies[-1].items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ((429, "64 sequences wait"), "The server is busy"),
        ((400, "max_tokens must be from 1 to 64"), "The server refuses the request"),
        ((503, "it is shutting down"), "not ready, or it is shutting down"),
        ((500, "an error of its own"), "The server failed"),
    ],
)
def test_errors_of_the_api_are_told_in_words(visit, fails, words):
    with serve_script(Script(fails=fails)) as script:
        page = visit(script.url)
        page.click("#generate")
        page.wait_for_selector("#alarm:visible")
        assert words in page.text_content("#alarm")
        assert fails[1] in page.text_content("#alarm")
        script.fails = None
        page.click("#generate")
        finish(page)
        assert page.is_hidden("#alarm")


@pytest.mark.slow
def test_a_setting_that_cannot_be_is_not_sent(visit):
    with serve_script(Script()) as script:
        page = visit(script.url)
        page.fill("#top_p", "1.5")
        page.click("#generate")
        assert page.evaluate("document.activeElement.id") == "top_p"
        assert script.bodies == []


@pytest.mark.slow
def test_a_lost_server_is_told_in_words_and_the_text_so_far_stays(visit):
    with serve_script(Script(breaks_after=3)) as script:
        page = visit(script.url)
        page.click("#generate")
        page.wait_for_selector("#alarm:visible")
        assert "ended the text early" in page.text_content("#alarm")
        assert finish(page) == "".join(f" {word}" for word in STORY[:3])
    page.click("#generate")
    page.wait_for_selector("#alarm:has-text('cannot be reached')")


@pytest.mark.slow
def test_a_key_is_asked_for_kept_for_the_tab_and_used(visit):
    with serve_script(Script(api_key="s3cret")) as script:
        page = visit(script.url)
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#alarm:visible")
        assert "valid API key" in page.text_content("#alarm")
        page.fill("#key", "s3cret")
        page.click("#save-key")
        page.wait_for_selector("#model:has-text('small-model')")
        assert page.is_hidden("#key-form")
        assert page.is_hidden("#alarm")
        page.click("#generate")
        finish(page)
        assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
        assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
        page.click("#forget-key")
        assert page.evaluate("Object.values(sessionStorage)") == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_and_its_text_can_be_read(visit, scheme, tmp_path):
    with serve_script(
        Script(tokens=[f" {'long' * 40}", *(f" {word}" for word in STORY)])
    ) as script:
        page = visit(
            script.url, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True
        )
        page.fill("#prompt", "w" * 200)
        page.click("#generate")
        finish(page)
        page.check("#attention-on")
        page.wait_for_selector("#map:visible")
        page.click("#settings summary")
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.tap(".token >> nth=4")
        box = page.locator("#panel").bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= 360
        for place in (".token.likely-0", ".token.likely-2", ".token.likely-4", ".given", ".hint"):
            assert contrast(page, place) >= 4.5, place


@pytest.mark.slow
def test_the_colours_follow_the_system_until_they_are_chosen(visit):
    with serve_script(Script()) as script:
        page = visit(script.url, color_scheme="dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert brightness(dark) < 0.1 < 0.8 < brightness(light)
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


@pytest.mark.slow
def test_the_real_server_writes_what_its_api_answers(visit):
    maps = AttentionMaps(SHAPE, random_params(), TOKENIZER, SHAPE.n_ctx, "float32")
    engine = held_engine()
    with live_server(engine, attention=maps) as server:
        page = visit(f"{server.url}/")
        assert page.text_content("#model") == "tiny \u00b7 2 layers \u00b7 context 64"
        page.fill("#prompt", "<b>")
        page.fill("#temperature", "1.5")
        page.fill("#max_tokens", "40")
        page.fill("#seed", "7")
        page.click("#generate")
        body = {"prompt": "<b>", "temperature": 1.5, "top_k": 50, "max_tokens": 40, "seed": 7}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()[
            "choices"
        ][0]
        assert finish(page) == answer["text"]
        page.check("#attention-on")
        page.wait_for_selector("#map:visible")
        assert "looks" in page.text_content("#looks")

        engine.gate.clear()  # the next token waits until the page has stopped
        page.fill("#seed", "")
        page.click("#generate")
        page.wait_for_selector(".token")
        page.click("#halt")
        assert "stopped by you" in page.text_content("#numbers")
        engine.gate.set()
        server.wait_idle()
        page.fill("#max_tokens", "65")
        page.click("#generate")
        page.wait_for_selector("#alarm:has-text('max_tokens must be')")
