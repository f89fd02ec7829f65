"""report.html in a real browser: charts are drawn, filters filter, numbers come by pointer and by keyboard, nothing hostile runs."""

import base64
import json
import pathlib
import shutil
import subprocess

import pytest

from reft_jax import report
from tests import made_runs

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-color-profile=srgb"
).split()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    run = made_runs.write(tmp_path_factory.mktemp("runs") / "one")
    report.build([run])
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, workdir):
    """The report, freshly opened at desktop width; what the console says is an error of the test."""
    yield opened(browser, workdir / "report.html")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def opened(browser, path, *, width=1280, theme="light"):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    return browser


def script(browser, text, *args):
    return browser.execute_script(text, *args)


def texts(browser, selector) -> list[str]:
    return script(browser, "return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector)


def enter(browser, label: str, value: str, section: str = "samples"):
    """Types a value into the control of that label, or chooses it."""
    script(
        browser,
        """const label = [...document.querySelectorAll(`#${arguments[2]} label`)].find((n) => n.textContent.startsWith(arguments[0]));
        const input = label.querySelector('input, select');
        input.value = arguments[1];
        input.dispatchEvent(new Event(input.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}));""",
        label,
        value,
        section,
    )


def found(browser, section: str = "samples") -> int:
    return int(texts(browser, f"#{section} .found")[0].split()[0])


def test_every_chart_is_drawn(page):
    shapes = script(
        page,
        """return [...document.querySelectorAll('#charts canvas')].map((c) => {
            const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            const colours = new Set();
            for (let i = 0; i < pixels.length; i += 4)
              if (pixels[i + 3] > 200 && Math.max(pixels[i], pixels[i+1], pixels[i+2]) - Math.min(pixels[i], pixels[i+1], pixels[i+2]) > 60)
                colours.add(`${pixels[i] >> 4},${pixels[i + 1] >> 4},${pixels[i + 2] >> 4}`);
            return [c.width, c.height, colours.size];
        })""",
    )
    titles = texts(page, "#charts .chart h3")
    assert len(shapes) == len(titles) >= 7 and any("KL" in title for title in titles)
    assert all(width > 200 and height > 100 and colours > 0 for width, height, colours in shapes), shapes
    assert script(page, "return document.querySelectorAll('#more .chart').length") == 0
    script(page, "document.getElementById('more').open = true")
    page.implicitly_wait(2)
    assert page.find_elements("css selector", "#more .chart canvas")


def test_numbers_of_a_chart_by_pointer_and_by_keyboard(page):
    from selenium.webdriver import ActionChains, Keys

    score = next(f for f in page.find_elements("css selector", "#charts figure") if "Score" in f.text)
    assert "0.678" in score.text and "step 39" in score.text  # the last step, before anything is pointed at
    plot = score.find_element("css selector", ".plot")
    script(page, "arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", plot)
    plot.send_keys(Keys.HOME)
    assert "0.602" in score.text and "step 1" in score.text
    plot.send_keys(Keys.ARROW_RIGHT)
    assert "0.604" in score.text and "step 2: ReFT 0.604" in script(
        page, "return document.getElementById('announce').textContent"
    )
    script(page, "document.activeElement.blur()")
    assert "step 39" in score.text
    ActionChains(page).move_to_element(plot.find_element("css selector", ".u-over")).perform()
    assert "step 20" in score.text and "0.64" in score.text
    ActionChains(page).move_to_element(page.find_element("css selector", "h1")).perform()
    button = score.find_element("css selector", ".legend button")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def test_accuracy_has_two_axes(page):
    before = texts(page, "#charts figure:first-child .at")
    page.find_element("css selector", "input[value='seq']").click()
    assert (
        texts(page, "#charts figure:first-child .at") != before
        and "sequences" in texts(page, "#charts figure:first-child .at")[0]
    )


def test_filters_narrow_the_samples(page):
    rows = made_runs.samples(40)
    assert found(page) == 160
    enter(page, "Status", "timeout")
    assert found(page) == sum(row["status"] == "timeout" for row in rows) == 40
    enter(page, "From step", "10")
    enter(page, "To step", "11")
    assert found(page) == 2 and texts(page, "#samples .list .row1 > span:first-child") == ["step 10", "step 11"]
    enter(page, "Status", "")
    enter(page, "Question or response", "alert(1)")
    assert found(page) == 4
    enter(page, "Question or response", r"^ 1\d \+ 3")
    assert found(page) == 0
    page.find_element("css selector", "#samples .filters input[type=checkbox]").click()
    assert found(page) == 2
    enter(page, "Question or response", "(")
    assert texts(page, "#samples .found") == ["This is not a regular expression."]
    for label in ("Question or response", "From step", "To step"):
        enter(page, label, "")
    enter(page, "Questions asked more than once", "svamp_3")
    assert found(page) == sum(row["item_id"] == "svamp_3" for row in rows)
    steps = [row["step"] for row in rows if row["item_id"] == "svamp_3"]
    assert texts(page, "#samples .over tbody th") == [f"step {step}" for step in steps]
    other = page.find_elements("css selector", "#samples .over .linkish")[-1]
    wanted = other.text
    other.click()
    assert wanted.capitalize() in page.find_element("css selector", "#samples .detail h3").text


def test_tokens_are_coloured_and_tell_their_numbers(page):
    from selenium.webdriver import ActionChains, Keys

    enter(page, "To step", "1")
    tokens = page.find_elements("css selector", "#samples .tok")
    row = made_runs.samples(1)[0]
    assert [t.get_attribute("textContent").replace("\u21b5", "") for t in tokens] == row["tokens"]
    colours = [token.value_of_css_property("background-color") for token in tokens]
    assert len(set(colours)) == 3  # advantages -1, 0, 1
    script(page, "arguments[0].scrollIntoView({block: 'center'})", tokens[0])
    ActionChains(page).move_to_element(tokens[2]).perform()
    readout = page.find_element("css selector", "#samples .readout")
    assert (
        "1.0000" in readout.text and "-0.3000" in readout.text and "0.5000" in readout.text and "<eos>" in readout.text
    )
    script(page, "arguments[0].focus()", tokens[0])
    assert "-1.0000" in readout.text and "KL\n0.2000" in readout.text and "log-prob\n-0.1000" in readout.text
    tokens[0].send_keys(Keys.ARROW_RIGHT)
    assert "token 2 of 3" in readout.text and "KL\n0.1000" in readout.text
    assert [token.get_attribute("tabindex") for token in tokens] == ["-1", "0", "-1"]
    page.find_element("css selector", "#samples input[value='lp']").click()
    assert [token.value_of_css_property("background-color") for token in tokens] != colours
    page.find_element("css selector", "#samples input[value='none']").click()
    assert {token.value_of_css_property("background-color") for token in tokens} == {"rgba(0, 0, 0, 0)"}


def test_hostile_text_is_shown_and_does_not_run(page):
    enter(page, "Question or response", "alert(1)")
    page.find_elements("css selector", "#samples .list button")[1].click()
    response = script(page, "return document.querySelector('#samples .detail .text').textContent")
    assert made_runs.HOSTILE in response
    assert made_runs.HOSTILE in "".join(texts(page, "#predictions .detail"))
    assert (
        not page.find_elements("css selector", "img, iframe") and len(page.find_elements("css selector", "script")) == 5
    )


def test_predictions_stand_beside_each_other(page):
    assert found(page, "predictions") == 24
    enter(page, "Checkpoints", "wrong", "predictions")
    wrong = sum(all((i + len(label)) % 3 == 0 for label in ("sft", "reft")) for i in range(12)) * 2
    assert found(page, "predictions") == wrong
    enter(page, "Checkpoints", "", "predictions")
    enter(page, "Split", "dev", "predictions")
    assert found(page, "predictions") == 12
    assert texts(page, "#predictions .answers strong") == ["SFT", "ReFT"]


def test_theme_by_system_and_by_button(browser, workdir):
    opened(browser, workdir / "report.html", theme="dark")
    dark = script(browser, "return getComputedStyle(document.body).backgroundColor")
    browser.find_element("id", "theme").click()
    light = script(browser, "return getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, dark[4:-1].split(", "))) < 150 < 600 < sum(map(int, light[4:-1].split(", ")))
    script(browser, "localStorage.clear()")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_and_fits(browser, workdir, width, theme):
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed: pip install -e '.[test]'")
    opened(browser, workdir / "report.html", width=width, theme=theme)
    assert script(browser, "return document.documentElement.scrollWidth") <= width
    script(browser, "document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    script(browser, (pathlib.Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    result = browser.execute_async_script(
        "axe.run(document, arguments[0]).then(arguments[arguments.length - 1])", rules
    )
    problems = [(v["id"], v["help"], [node["html"][:200] for node in v["nodes"]][:3]) for v in result["violations"]]
    assert not problems, json.dumps(problems, indent=1)
    assert len(result["passes"]) > 20


def test_without_scripts_the_tables_are_there(browser, workdir):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, workdir / "report.html")
        body = browser.find_element("tag name", "body").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for words in ("85.1", "81.0–88.0", "kl/mean", "need JavaScript", "best on dev"):
        assert words in body
    assert "Training curves" not in body and "Dark theme" not in body


def test_several_runs_have_bands_and_dashes(browser, tmp_path):
    runs = [made_runs.write(tmp_path / f"seed{i}", seed=i, shift=i / 10) for i in range(3)]
    runs.append(made_runs.write(tmp_path / "other", kl_coef=0.5))
    opened(browser, report.build(runs)[0])
    assert any("seed0 + 2 more seeds: ReFT" in text for text in texts(browser, "#charts .legend li"))
    assert found(browser) == 160
    enter(browser, "Stage", "3")
    assert found(browser) == 160 and "3 seeds" in browser.find_element("id", "results").text
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_no_request_leaves_the_page(workdir, tmp_path):
    """The browser alone, with every host unreachable, draws the page; an image shows that something was."""
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    picture = tmp_path / "page.png"
    subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={picture}",
         "--window-size=1280,1600", (workdir / "report.html").as_uri()], check=True, capture_output=True, timeout=60
    )  # fmt: skip
    assert picture.stat().st_size > 50_000 and base64.b64encode(picture.read_bytes()[:4]) == b"iVBORw=="
