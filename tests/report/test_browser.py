"""The report in a real browser: it steps, finds, fits a phone, can be read by all, and breaks no rule of its own."""

import shutil

import pytest
from report_runs import HOSTILE, POLICIES, policy, steps, write_run

from atlas_ray.report import build_report
from atlas_ray.report.compare import build_comparison
from atlas_ray.rundir.files import append_jsonl, read_json, write_json

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVENLY = [0.1] * 10


def write_whole(run_dir, text=""):
    """A run with all that the page can show: recorded values, marks, evaluated episodes, where calls lie."""
    write_run(run_dir, text=text, policies=[{**p, "called_at": EVENLY} for p in POLICIES])
    path = run_dir / "switch" / "replay.json"
    one = read_json(path)
    told = [{**s, "values": [0.25, 0.5 if s["actor"] == "deepthink" else 0.125]} for s in one["steps"]]
    told[6]["values"] = [0.25, None]
    write_json(path, {**one, "steps": told})
    rows = []
    for model in ("none", "value/0"):
        for seed in range(45):
            about = {"env": "BabyAIText/GoToLocal-v0", "task": "GoToLocal", "seed": seed, "score": 0.5, "source": model}
            goal = f"go to the {'grey' if seed % 2 else 'purple'} key{text}"
            about |= {"id": f"{model}/{seed}", "success": seed % 3 > 0, "instruction": goal}
            row = {"model": model, "level": "GoToLocal", "seed": seed, "success": seed % 3 > 0, "lost": False}
            rows.append({**row, "trajectory": {**about, "steps": steps(text)}})
    append_jsonl(run_dir / "evaluation" / "episodes.jsonl", rows)
    return build_report(run_dir)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: the extra `browser` is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        # as root, in a container, Chromium has no sandbox; the pages are our own
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp("run"))


@pytest.fixture
def open_page(browser):
    """Opens a file at a width; at the end nothing may have been said in the console, refused or loaded."""
    said, opened = [], []

    def opener(path, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield opener
    for context in opened:
        context.close()
    assert said == []


def at(page):
    return page.locator("#viewer .where").inner_text()


def line(page, term):
    """What the panel of the step says under a heading."""
    rows = page.locator("#viewer .panel .line").filter(has=page.locator(f'.term:text-is("{term}")'))
    return rows.locator("> div").nth(1).inner_text()


def test_it_steps_by_buttons(open_page, report_file):
    page = open_page(report_file)
    assert at(page) == "Step 1 of 7" and line(page, "Did") == "turn right"
    viewer = page.locator("#viewer")
    assert viewer.get_by_role("button", name="Back").is_disabled()
    viewer.get_by_role("button", name="Next \u25b6").click()
    assert at(page) == "Step 2 of 7" and line(page, "Thought") == "go to the red ball"
    viewer.get_by_role("button", name="Last step").click()
    assert at(page) == "Step 7 of 7" and line(page, "Reward") == "+0.82"
    assert viewer.get_by_role("button", name="Next \u25b6").is_disabled()
    viewer.get_by_role("button", name="Step 3", exact=True).click()
    assert at(page) == "Step 3 of 7"
    assert viewer.locator(".strip [aria-current]").inner_text() == "3"


def test_it_steps_by_keys_but_not_while_one_types(open_page, report_file):
    page = open_page(report_file)
    page.locator("#viewer .strip button").first.focus()
    for key, place in (
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 7),
        ("Home", 1),
        ("m", 4),
        ("m", 5),
    ):
        page.keyboard.press(key)
        assert at(page) == f"Step {place} of 7", key
    page.keyboard.press("m")
    assert at(page) == "Step 4 of 7", "round to the first again"
    page.get_by_label("Find an episode").fill("key")
    here = at(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.type("m")
    assert at(page) == here


def test_who_acted_and_why(open_page, report_file):
    page = open_page(report_file)
    assert line(page, "Who acted").startswith("QUICK\nQUICK\n0.250\nDEEPTHINK\n0.125\n")
    page.locator("#viewer .strip button").nth(3).click()
    said = line(page, "Who acted")
    assert said.startswith("DEEPTHINK") and said.endswith("The switch values a step by DEEPTHINK most, so it acts.")
    bars = page.locator("#viewer .q-bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert bars[1] == pytest.approx(2 * bars[0], abs=1) and bars[0] > 10
    page.locator("#viewer .strip button").nth(6).click()
    assert "no call left" in line(page, "Who acted")


def test_marks_of_selectors_stand_beside_the_step(open_page, report_file):
    page = open_page(report_file)
    page.get_by_label("Kind").select_option("expert")
    page.locator("#viewer .found button").first.click()
    assert line(page, "value") == "\N{EN DASH}"
    page.keyboard.press("m")
    assert line(page, "value") == "critical\nvalue 0.2 before, 0.6 after"
    page.keyboard.press("m")
    assert line(page, "value") == "critical action" and at(page) == "Step 5 of 7"


def test_search_finds(open_page, report_file):
    page = open_page(report_file)
    status, found = page.locator("#viewer [role=status]"), page.locator("#viewer .found button")
    assert status.inner_text() == "93 of 93 episodes found, the first 60 in the list." and found.count() == 60
    page.get_by_label("Find an episode").fill("Purple KEY none")
    assert status.inner_text() == "23 of 93 episodes found." and found.count() == 23
    assert page.locator("#viewer .stage .goal").inner_text() == "go to the purple key", "the first of them is shown"
    page.get_by_label("Ended in").select_option("false")
    assert status.inner_text() == "8 of 93 episodes found."
    page.get_by_label("Find an episode").fill("seed 44")
    page.get_by_label("Ended in").select_option("")
    page.get_by_label("Who acted").select_option("value/0")
    assert found.count() == 1
    assert (
        page.locator("#viewer .about")
        .inner_text()
        .startswith("evaluation \u00b7 value/0 \u00b7 BabyAIText/GoToLocal-v0")
    )
    page.locator("#viewer .others button").click()
    assert "none" in page.locator("#viewer .about").inner_text(), "the same episode by another model"
    page.get_by_label("Find an episode").fill("no such thing")
    assert status.inner_text() == "0 of 93 episodes found." and found.count() == 0


def test_pictures_are_there_and_not_empty(open_page, report_file):
    page = open_page(report_file)
    pictures = page.locator("svg")
    assert pictures.count() == 5
    for i in range(5):
        box = pictures.nth(i).bounding_box()
        assert box["width"] > 300 and box["height"] > 100
        inked = pictures.nth(i).evaluate(
            "svg => [...svg.querySelectorAll('path, use')].filter(p => p.getBoundingClientRect().width > 1).length"
        )
        assert inked > 10


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_makes_the_page_scroll_sideways(open_page, tmp_path, width):
    page = open_page(write_whole(tmp_path, text=" " + "w" * 300), width)
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] == wide[1] == width
    for i in range(4):
        page.locator("#viewer .strip button").nth(i).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
    for fold in page.locator("details").all():
        fold.evaluate("fold => { fold.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    below = "document.documentElement.scrollHeight - document.querySelector('main').getBoundingClientRect().height"
    assert page.evaluate(below) == pytest.approx(0, abs=2), "nothing lies below what is shown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing(open_page, report_file, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no browser: no axe-core")
    page = open_page(report_file, width, color_scheme=scheme)
    page.get_by_label("Kind").select_option("expert")
    for fold in page.locator("details").all():
        fold.evaluate("fold => { fold.open = true; }")
    found = axe.Axe().run(page).response
    told = [
        (v["id"], [(node["target"], node["failureSummary"]) for node in v["nodes"]][:3]) for v in found["violations"]
    ]
    assert told == []
    assert {"color-contrast", "label", "button-name", "svg-img-alt"} <= {p["id"] for p in found["passes"]}


@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison_fits_and_axe_finds_nothing(open_page, tmp_path, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no browser: no axe-core")
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", policies=POLICIES[1:], name="w" * 300)
    page = open_page(build_comparison(tmp_path / "a", tmp_path / "b"), width, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [v["id"] for v in axe.Axe().run(page).response["violations"]] == []
    assert page.locator("svg").count() == 3


def test_foreign_text_stays_text(open_page, tmp_path):
    page = open_page(write_whole(tmp_path, text=HOSTILE))
    page.get_by_label("Find an episode").fill("grey")
    assert page.locator("#viewer .stage .goal").inner_text() == f"go to the grey key{HOSTILE}".replace("  ", " ")
    assert page.locator("script").count() == 2 and page.locator("#viewer img, #viewer script").count() == 0


def test_a_script_that_is_not_ours_does_not_run(browser, tmp_path):
    path = write_whole(tmp_path)
    path.write_text(path.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>"))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "atlas-ray: demo" and page.locator("#viewer").is_visible()
    page.close()


def test_without_script_and_in_print_the_lists_are_there(open_page, report_file):
    page = open_page(report_file, java_script_enabled=False)
    assert page.locator("#static-episodes").is_visible() and not page.locator("#viewer").is_visible()
    page = open_page(report_file)
    assert not page.locator("#static-episodes").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("#static-episodes").is_visible() and not page.locator("#viewer").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"


def test_a_report_of_switches_alone_and_one_of_nothing_to_view(open_page, tmp_path):
    write_run(tmp_path, policies=[policy("always-quick", 0.4, 0.0), policy("londi(c=0.1)", 0.6, 2.0, cost=0.1)])
    for gone in ("trajectories/expert.jsonl", "switch/replay.json"):
        (tmp_path / gone).unlink()
    page = open_page(build_report(tmp_path))
    assert page.locator("h1").inner_text() == "atlas-ray: demo" and page.locator("#viewer").count() == 0
