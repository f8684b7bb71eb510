"The page of `mrhd report` in a browser without a network"
import json, re, shutil
import pytest
from mrhd_nb.core.presets import run_config
from mrhd_nb.data.batches import split_records
from mrhd_nb.learning.training import train
from mrhd_nb.programs.cli import main

SMALL = {"model.width": 32, "model.ffn": 32, "data.train_queries": 24, "data.val_queries": 4, "data.test_queries": 12, "training.epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of one epoch"
    folder = tmp_path_factory.mktemp("runs")/"small"
    train(run_config("tr_detr", "synthetic", overrides=SMALL), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def made(run, film, tmp_path_factory):
    "Its page, with a film of each video"
    films = tmp_path_factory.mktemp("films")
    for record in split_records(run_config("tr_detr", "synthetic", overrides=SMALL), "test"): shutil.copy(film, films/f"{record.vid}.webm")
    page = films/"page.html"
    assert main(["report", str(run), "--out", str(page), "--video", str(films)]) == 0
    return page


@pytest.fixture(params=[1280, 800])
def opened(made, browser, request):
    "The page in a window of this width, offline; what the console said and what was asked of the network must be empty"
    context, said = browser.new_context(viewport={"width": request.param, "height": 900}, offline=True), []
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "blob:")) or said.append(asked.url))
    page.goto(made.as_uri())
    page.wait_for_function("document.querySelector('video')?.readyState > 0")
    yield page
    assert said == [] and page.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()


def time_is(page, seconds): page.wait_for_function("t => Math.abs(document.querySelector('video').currentTime-t) < .1", arg=float(seconds))


def test_shows_table_figures_and_gallery(opened):
    assert opened.locator("table tbody tr").count() == 2 and opened.locator("figure img").count() == 2
    assert all(opened.locator("figure img").evaluate_all("all => all.map(i => i.naturalWidth > 0)"))
    assert opened.locator(".card").count() == 8 and opened.locator(".card[aria-pressed=true]").count() == 1
    assert opened.locator(".tracks svg").count() >= 2 and opened.locator(".moment").count() >= 6


def test_a_click_on_a_moment_moves_the_film(opened):
    for moment in opened.locator(".moment").all()[1:4]:
        moment.click()
        time_is(opened, moment.get_attribute("data-start"))
    axis = opened.locator(".axis .plot").first # anywhere else on the timeline too
    axis.click(position={"x": axis.bounding_box()["width"]/2, "y": 5})
    time_is(opened, opened.locator(".time").evaluate("e => e.max/2"))


def test_keys_step_through_moments_and_records(opened):
    starts = [m.get_attribute("data-start") for m in opened.locator(".moment").all()]
    for start in starts[:3]:
        opened.keyboard.press("ArrowRight")
        time_is(opened, start)
    opened.keyboard.press("ArrowLeft")
    time_is(opened, starts[1])
    chosen = opened.locator(".card[aria-pressed=true]")
    first = chosen.get_attribute("data-qid")
    opened.keyboard.press("n")
    assert chosen.get_attribute("data-qid") != first and opened.locator(".query").inner_text().strip("“”") == chosen.locator(".words").inner_text()
    opened.keyboard.press("p")
    assert chosen.get_attribute("data-qid") == first
    opened.keyboard.press("a")
    assert opened.locator("canvas").count() >= 3
    opened.keyboard.press("a")
    opened.keyboard.press("m")
    assert opened.locator("canvas").count() == 0 and opened.locator(".curve.ends").count() == 3
    opened.keyboard.press("k")
    opened.wait_for_function("!document.querySelector('video').paused")


def test_is_usable_without_a_mouse(opened):
    for _ in range(2): opened.keyboard.press("Tab")
    second = opened.evaluate("document.activeElement.dataset.qid")
    opened.keyboard.press("Enter")
    assert opened.locator(".card[aria-pressed=true]").get_attribute("data-qid") == second
    assert opened.evaluate("document.activeElement.dataset.qid") == second # the focus stays where it was
    nameless = opened.evaluate("[...document.querySelectorAll('button, input, img')].filter(e => !(e.textContent || e.ariaLabel || e.alt)).length")
    assert nameless == 0


def test_one_film_selects_the_queries_about_it(run, film, tmp_path):
    vid = split_records(run_config("tr_detr", "synthetic", overrides=SMALL), "test")[5].vid
    mine = shutil.copy(film, tmp_path/f"{vid}.webm")
    assert main(["report", str(run), "--out", str(tmp_path/"one.html"), "--video", str(mine)]) == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path/"one.html").read_text())[1])
    assert {view["vid"] for view in data["views"].values()} == {vid} == {*data["videos"]}


def test_a_wrong_run_or_film_is_one_line_and_leaves_no_page(run, tmp_path, capsys):
    for words, said in ((["report", str(tmp_path)], "config.json"), (["report", str(run), "--video", str(tmp_path/"no.mp4")], "no.mp4"),
                        (["report", str(run), "--video", str(tmp_path)], "looked for as")):
        assert main([*words, "--out", str(tmp_path/"page.html")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
