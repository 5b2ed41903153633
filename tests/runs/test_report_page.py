"""report.html of a run and of several: what it shows, what stays text in it, how large it is."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import contrast, opened_browser  # noqa: F401 - a fixture

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config, ModelConfig, TrainConfig, to_json
from gptjax.evaluate import evaluate
from gptjax.runs.accounts import Start, as_json
from gptjax.runs.comparing import HEADER, SEEDS_HEADER, as_text, read_side_by_side
from gptjax.runs.page import TEMPLATE
from gptjax.runs.recorded import read_run
from gptjax.runs.run_page import write_run_page
from gptjax.runs.samples import append_sample
from gptjax.runs.thinning import BUCKETS, MOST_MARKS, few, thinned, tokens_by_step

CONFIG = Config(model=ModelConfig(n_vocab=64), train=TrainConfig(max_steps=100))
EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{title}} 'quoted' \"so\" &amp;"
)
STARTS = [
    Start(1e9, 1e9 + 60, {"start_up": 10.0, "training": 50.0}, to_step=60, from_step=0,
          device="NVIDIA H100", devices=8, price=2.0, versions={"jax": "0.10.2"}),
    Start(1e9 + 100, 1e9 + 160, {"training": 60.0}, gap=40.0, lost=20.0, to_step=100, from_step=40,
          device="NVIDIA H100", devices=8, price=2.0, exit=143, versions={"jax": "0.10.2"}),
]  # fmt: skip


def row(step: int) -> dict:
    """A row of metrics.jsonl with all that a page shows."""
    found = {
        "step": step, "train_loss": 4.0 / step, "learning_rate": 1e-3, "grad_norm": 1.0,
        "tokens": 512, "tokens_per_second": 1000.0, "data_wait": 0.0,
    }  # fmt: skip
    if step == 30:
        del found["grad_norm"]  # it was skipped
    if step % 10 == 0:
        found |= {"val_loss": 5.0 - step / 25 if step < 80 else 3.0, "val_stderr": 0.01}
        found |= {"val_loss/web": 4.0, "val_loss/books": 3.0, "hellaswag/acc": 0.3}
    return found


ROWS = [row(step) for step in range(1, 101)]


def make_run(path: Path, rows=ROWS, config=CONFIG, starts=STARTS) -> Path:
    """A run's directory without checkpoints."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (path / "accounts.json").write_bytes(as_json(starts))
    return path


def page_of(path: Path) -> str:
    """The page of a run."""
    write_run_page(read_run(path))
    return (path / "report.html").read_text()


class Outline(HTMLParser):
    """Elements of a page, their addresses, and the text that a reader sees."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.numbers: dict = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action")]
        self._open.append("numbers" if ("id", "numbers") in attrs else tag)

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] == "numbers":
            self.numbers = json.loads(data)
        elif self._open and self._open[-1] not in ("script", "style"):
            self.text += data + "\n"


def test_a_page_tells_of_figures_hours_starts_settings_and_files(tmp_path):
    path = make_run(tmp_path / "mine")
    append_sample(path / "samples.md", 50, "Once upon")
    append_sample(path / "samples.md", 100, "a time\n~~~\n\n")
    (path / "results.json").write_text('{"accuracy": 0.25, "split": {"test": 1}}')
    (path / "log.txt").write_text("2026-01-01 00:00:00  devices  8 x H100\nno message\n")
    text = Outline(page_of(path)).text
    for words in (
        "mine", "100 of 100 steps", "2.2000", "± 0.0100, step 70", "3.0000", "51.2 k",
        "Skipped steps", "the last was 30",
        "Goodput 56.2%: the share of 2 min 40 s in 2 starts",
        "Price so far 0.53 (2 per GPU and hour)", "lost progress", "between starts",
        "SIGTERM", "killed", "40 to 100", "8 x NVIDIA H100", "jax 0.10.2", "8 x H100",
        "Once upon", "a time\n~~~\n", "0.2500",
        "train.max_steps", "default 19073", "metrics.jsonl", "results.json",
    ):  # fmt: skip
        assert words in text, words
    assert "loss.png" not in text  # there is none


def test_curves_have_every_kind_of_number_and_marks(tmp_path):
    numbers = Outline(page_of(make_run(tmp_path / "mine"))).numbers
    panels = {panel["title"]: panel for panel in numbers["panels"]}
    assert list(panels) == ["Loss", "Validation loss by source", "acc", "Learning rate",
                            "Gradient norm", "Speed"]  # fmt: skip
    lines = {line["label"]: line for line in panels["Loss"]["lines"]}
    assert lines["training, each step"]["x"] == list(range(1, 101))
    assert lines["validation"]["y"] == [4.6, 4.2, 3.8, 3.4, 3.0, 2.6, 2.2, 3.0, 3.0, 3.0]
    assert [li["label"] for li in panels["Validation loss by source"]["lines"]] == ["web", "books"]
    (run,) = numbers["runs"]
    assert (run["starts"], run["skipped"]) == ([40], [30])
    assert (run["steps"], run["tokens"]) == ([0, 100], [0, 51200])


@pytest.mark.parametrize("rows", [(), ({"step": 3},), ({"step": 5, "val_loss": 1.0},)])
def test_a_run_with_hardly_a_number_has_a_page(rows, tmp_path):
    page = page_of(make_run(tmp_path / "mine", rows, starts=[]))
    assert "of 100 steps" in Outline(page).text


def test_what_a_run_says_stays_text(tmp_path):
    sections = {"data": dataclasses.replace(CONFIG.data, path=EVIL)}
    rows = [{**row(10), f"val_loss/{EVIL}": 1.0}]
    config, name = dataclasses.replace(CONFIG, **sections), EVIL.replace("/", "|")
    starts = [dataclasses.replace(STARTS[0], device=EVIL, versions={EVIL: EVIL})]
    path = make_run(tmp_path / name, rows, config, starts)
    append_sample(path / "samples.md", 10, EVIL)
    (path / "results.json").write_text(json.dumps({EVIL: 1}))
    (path / "log.txt").write_text(f"2026-01-01 00:00:00  data  {EVIL}\n")
    page, plain = page_of(path), make_run(tmp_path / "plain", [row(10)], starts=starts[:0])
    outline, usual = Outline(page), Outline(page_of(plain))
    assert outline.elements.count("script") == usual.elements.count("script") == 2
    assert set(outline.elements) <= {*usual.elements, "table", "thead", "tbody", "tr", "th", "td",
                                     "details", "pre", "i", "span"}  # fmt: skip
    assert outline.text.count(EVIL) >= 7
    assert EVIL in [line["label"] for line in outline.numbers["panels"][1]["lines"]]


def test_a_page_asks_nobody_for_anything(tmp_path):
    path = make_run(tmp_path / "mine")
    for name in ("log.txt", "loss.png", "samples.md"):
        (path / name).write_bytes(b"")
    page = page_of(path)
    addresses = [a for a in Outline(page).addresses if not a.startswith("data:")]
    assert addresses == ["metrics.jsonl", "log.txt", "samples.md", "loss.png", "config.json"]
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"url\((?!#)|@import|fetch\(|XMLHttp|innerHTML", page) == []
    assert "default-src 'none'" in TEMPLATE.read_text()


def test_a_page_hides_the_home_of_its_writer(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    data = dataclasses.replace(CONFIG.data, path="/home/somebody/data")
    page = page_of(make_run(tmp_path / "mine", config=dataclasses.replace(CONFIG, data=data)))
    assert "~/data" in page
    assert "somebody" not in page


def test_a_damaged_account_or_a_page_that_fails_leaves_the_rest(tmp_path, monkeypatch):
    path = make_run(tmp_path / "mine")
    (path / "accounts.json").write_text("{")
    before = page_of(path)
    assert "Goodput" not in before
    monkeypatch.setattr("gptjax.runs.run_page.figures_of", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_of(path)
    assert (path / "report.html").read_text() == before


@pytest.mark.slow
def test_half_a_million_steps_make_a_small_page_that_shows_its_spikes(tmp_path):
    rows = [
        {"step": s, "train_loss": 3 + math.sin(s), "grad_norm": 1.0, "tokens": 512}
        for s in range(1, 500_001)
    ]
    rows[123_456]["train_loss"], rows[400_000]["grad_norm"] = 99.0, 77.0
    path = make_run(tmp_path / "long", rows[:1])
    write_run_page(dataclasses.replace(read_run(path), rows=rows))
    numbers = Outline((path / "report.html").read_text()).numbers
    loss, norm = [panel["lines"][0] for panel in numbers["panels"]]
    assert loss["y"][loss["x"].index(123_457)] == 99.0
    assert norm["y"][norm["x"].index(400_001)] == 77.0
    assert (path / "report.html").stat().st_size < 400_000


@pytest.mark.parametrize("count", [0, 1, 2 * BUCKETS + 2, 2 * BUCKETS + 3, 10_007])
def test_thinning_keeps_ends_and_extremes_in_order(count):
    values = [math.sin(i * i) for i in range(count)]
    steps, kept = thinned(range(count), values, BUCKETS)
    assert steps == sorted(set(steps))
    assert [values[s] for s in steps] == kept
    assert len(steps) <= 2 * BUCKETS + 2
    if count:
        assert (steps[0], steps[-1], min(kept), max(kept)) == (
            0, count - 1, min(values), max(values))  # fmt: skip


def test_tokens_of_a_ramp_have_the_corners_of_their_line():
    rows = [{"step": s, "tokens": 10 if s <= 1000 else 20} for s in range(1, 2001)]
    steps, tokens = tokens_by_step(rows)
    assert len(steps) == 201
    assert (steps[0], tokens[0], steps[-1], tokens[-1]) == (0, 0, 2000, 30_000)
    assert tokens[steps.index(1000)] == 10_000
    assert len(few(range(10_000))) <= MOST_MARKS


def seeded(seed: int, **values) -> Config:
    """A config with a seed."""
    return dataclasses.replace(CONFIG, train=TrainConfig(max_steps=100, seed=seed, **values))


def test_a_comparison_groups_seeds_and_lists_differences(tmp_path):
    rows = [row(s) for s in range(1, 51)]
    better = [{**r, "val_loss": r["val_loss"] - 1} if "val_loss" in r else r for r in rows]
    make_run(tmp_path / "x/a", rows, seeded(1), starts=[])
    make_run(tmp_path / "y/a", better, seeded(2), starts=[])
    make_run(tmp_path / "b", rows, seeded(1, save_every_steps=7), starts=[])
    comparison = read_side_by_side([str(tmp_path / name) for name in ("x/a", "y/a", "b")])
    assert comparison.names == ["x/a", "y/a", "b"]
    assert comparison.seeds() == [
        ("x/a, y/a", "2", "1, 2", "50", "2.5000", "0.7071", "2.5000", "0.7071")
    ]
    assert comparison.differences() == [
        ("train.save_every_steps", "500", "500", "7"), ("train.seed", "1", "2", "1")
    ]  # fmt: skip
    lines = as_text(HEADER, comparison.table()).splitlines()
    assert lines[0].split() == ["run", "seed", "steps", "best", "loss", "at", "step", "last",
                                "loss", "training", "loss", "tokens", "a", "second"]  # fmt: skip
    assert as_text(SEEDS_HEADER, comparison.seeds()).count("\n") == 1
    comparison.write(tmp_path / "out.html")
    outline = Outline((tmp_path / "out.html").read_text())
    assert [run["name"] for run in outline.numbers["runs"]] == ["x/a", "y/a", "b"]
    titles = [panel["title"] for panel in outline.numbers["panels"]]
    assert titles[:2] == ["Loss: training, mean", "Loss: validation"]
    assert all(len(panel["lines"]) == 3 for panel in outline.numbers["panels"])
    assert "train.save_every_steps" in outline.text


def test_the_verb_prints_the_tables_and_writes_the_page(tmp_path, capsys, monkeypatch):
    for seed in (1, 2):
        make_run(tmp_path / f"run{seed}", config=seeded(seed))
    monkeypatch.chdir(tmp_path)
    assert evaluate(["--compare", "run1", "run2"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["run1", "1"], ["run2", "2"]]
    assert "run1, run2  2   1, 2" in out
    assert out.endswith("curves side by side in compare.html\n")
    assert (tmp_path / "compare.html").is_file()
    assert evaluate(["--compare", "run1", "--out", "one.html"]) == 0
    assert Outline((tmp_path / "one.html").read_text()).numbers["together"]


@pytest.mark.parametrize(
    "words", [["--compare", "a", "--data", "x"], ["--compare", "a", "--on", "labels"],
              ["--data", "x", "--out", "y.html"], ["--compare", "a", "--out", "/"]],
)  # fmt: skip
def test_flags_that_do_not_go_with_a_comparison_are_refused(words):
    with pytest.raises(ConfigError, match=rf"{words[2]} "):
        evaluate(words)


def test_paths_that_are_no_runs_are_named_at_once(tmp_path):
    fresh = make_run(tmp_path / "fresh", ())
    with pytest.raises(ConfigError) as raised:
        read_side_by_side([str(tmp_path / "none"), str(fresh), str(make_run(tmp_path / "good"))])
    first, second = raised.value.problems
    assert f"{tmp_path / 'none'} is not a run" in first
    assert f"{fresh} has no step yet" in second
    (fresh / "metrics.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="damaged in line 1"):
        read_side_by_side([str(fresh)])


@pytest.fixture(name="look")
def page_in_chromium(browser):
    """Opens a page from the disk; afterwards the console must be clean and nothing else asked."""
    problems, asked, contexts = [], [], []

    def look(path: Path, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield look
    for context in contexts:
        context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def spoken(page) -> str:
    """The read-out that is shown."""
    return page.locator(".read:visible").inner_text()


@pytest.mark.slow
def test_curves_are_read_by_pointer_and_by_keyboard(look, tmp_path):
    path = make_run(tmp_path / EVIL.replace("/", "|"))
    append_sample(path / "samples.md", 100, EVIL)
    page_of(path)
    page = look(path / "report.html", viewport={"width": 1200, "height": 900})
    assert page.locator("figure").count() == 6
    assert page.locator("figure").first.locator(".startmark").count() == 1
    assert page.locator("figure").first.locator(".skip").count() == 1
    plot = page.locator(".plot svg").first
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + 50)
    assert "step 100, 51.2k tokens" in spoken(page)
    assert "0.0400" in spoken(page)
    page.mouse.move(0, 0)
    assert page.locator(".read:visible").count() == 0
    plot.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert "step 3," in spoken(page)
    plot.blur()
    page.get_by_role("button", name="training, each step").click()
    assert page.locator("figure").first.locator("path.curve.faint").count() == 1  # of the legend
    page.locator("select").first.select_option("tokens")
    page.get_by_label("logarithmic").check()
    assert "50k" in page.locator("figure").first.locator(".plot").inner_text().split()


@pytest.mark.slow
def test_dragging_shows_a_part_and_a_button_the_whole(look, tmp_path):
    path = make_run(tmp_path / "mine")
    page_of(path)
    page = look(path / "report.html", viewport={"width": 1200, "height": 900})
    box = page.locator(".plot svg").first.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 600, box["y"] + 80, steps=3)
    page.mouse.up()
    assert "100" not in page.locator("figure").first.locator(".plot").inner_text().split()
    page.get_by_role("button", name="whole run").click()
    assert "100" in page.locator("figure").first.locator(".plot").inner_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_can_be_read(scheme, look, tmp_path):
    path = make_run(tmp_path / "mine")
    append_sample(path / "samples.md", 100, "word " * 200)
    page_of(path)
    phone = {"width": 360, "height": 740}
    page = look(path / "report.html", viewport=phone, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for place in ("h1", "header p:last-child", ".tiles dd", ".tiles dt", ".tiles small", "thead th",
                  ".pairs small", "pre", "a", ".keys span"):  # fmt: skip
        assert contrast(page, place) >= 4.5, place


@pytest.mark.slow
def test_runs_are_hidden_and_shown_together(look, tmp_path):
    paths = [str(make_run(tmp_path / name, config=seeded(i))) for i, name in enumerate("abc")]
    read_side_by_side(paths).write(tmp_path / "compare.html")
    page = look(tmp_path / "compare.html", viewport={"width": 900, "height": 900})
    curves = page.locator(".plot path.curve")
    before = curves.count()
    page.get_by_role("button", name="b", exact=True).click()
    assert curves.count() == before * 2 // 3
