"""The widget in a real JupyterLab: its page in an output cell, its answers from the kernel."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 60_000  # ms; these machines are slow at times
SETTINGS = {"notification": {"fetchNews": "false", "checkForUpdates": False}}
UNUSED = {"jupyter_lsp": False, "jupyter_server_terminals": False, "notebook_shim": False}
ITS_OWN = re.compile("Failed to load resource")  # what JupyterLab says about that

CELLS = [
    """
import torch, saccade
from saccade.adapters import pretrained
from saccade.jupyter import explore

reader = pretrained.load()
text = "He left the roses by the bank."
with saccade.record(reader.model, reader.tokenizer, keep="qkv") as trace, torch.no_grad():
    trace.next(texts=[text])
    reader.model(**pretrained.encode(reader, text).inputs)
w = explore(trace, model=reader, view="/pattern?site=2&head=5", height=600)
w
""",
    "w",
    "",
]


class Lab:
    """A running JupyterLab with one notebook. Nothing of the user's is read or written."""

    def __init__(self, folder):
        self.folder, self.token = folder, secrets.token_hex(16)
        self._write_settings()
        self._write_notebook()
        homes = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
        environment = {f"JUPYTER_{name}": str(folder / home) for name, home in homes.items()}
        environment |= {f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("settings", "workspaces")}
        environment |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_TOKEN": self.token, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
        command += [f"--ServerApp.root_dir={folder / 'work'}", f"--ServerApp.jpserver_extensions={UNUSED}"]
        command += ["--LabApp.expose_app_in_browser=True"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        self.address = self._address()

    def _write_settings(self):
        for name, settings in SETTINGS.items():
            place = self.folder / "settings/@jupyterlab/apputils-extension" / f"{name}.jupyterlab-settings"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(settings))

    def _write_notebook(self):
        code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        cells = [code | {"id": f"cell-{i}", "source": source.strip()} for i, source in enumerate(CELLS)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / "work").mkdir()
        (self.folder / "work" / "a.ipynb").write_text(json.dumps(notebook))

    def _address(self):
        """Where it listens; it writes that down when it does."""
        deadline = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < deadline and self.process.poll() is None:
            for written in (self.folder / "runtime").glob("jpserver-*.json"):
                with_all_of_it = written.read_text()
                if with_all_of_it.endswith("}"):
                    return json.loads(with_all_of_it)["url"]
            time.sleep(0.05)
        self.end()
        raise AssertionError((self.folder / "log").read_text())

    def end(self):
        """End it, and it its kernels."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


class Notebook:
    """A tab with the notebook, and all that it complained of."""

    def __init__(self, tab, lab):
        self.tab, self.complaints = tab, []
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", self._said)
        tab.goto(f"{lab.address}lab/tree/a.ipynb?token={lab.token}")
        tab.wait_for_selector(".jp-Cell")
        tab.evaluate(
            "async () => { const s = jupyterapp.shell.currentWidget.sessionContext; await s.ready;"
            "await s.session.kernel.info }"
        )
        self.kernel = int(self.run("import os; print(os.getpid())"))

    def _said(self, message):
        if message.type == "error" and not ITS_OWN.search(message.text):
            self.complaints.append(message.text)

    def run(self, code):
        """What some code prints in the kernel."""
        self.begin(code)
        return self.ended()

    def begin(self, code):
        self.tab.evaluate(
            """(code) => {
                const future = jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code });
                let said = "";
                future.onIOPub = ({ content }) => (said += content.text ?? content.traceback?.join("\\n") ?? "");
                globalThis.running = future.done.then(() => said);
            }""",
            code,
        )

    def ended(self):
        return self.tab.evaluate("running").strip()

    def do(self, command):
        """A command of JupyterLab."""
        self.tab.evaluate("command => jupyterapp.commands.execute(command)", command)

    def select(self, cell):
        self.tab.evaluate("cell => { jupyterapp.shell.currentWidget.content.activeCellIndex = cell }", cell)

    def run_cell(self, cell):
        self.select(cell)
        self.do("notebook:run-cell")

    def output(self, cell=0):
        """The page in the output of a cell."""
        return self.tab.locator(".jp-Cell").nth(cell).locator(".saccade")

    def drawn(self, view, cell=0):
        self.output(cell).locator(f"main[data-drawn='{view}']").wait_for()

    def until(self, code, said):
        """Wait until some code prints that; messages take their time."""
        deadline = time.monotonic() + PATIENCE / 1000
        while (printed := self.run(code)) != said:
            assert time.monotonic() < deadline, printed
            time.sleep(0.05)

    def saved(self, way):
        page = self.output()
        page.get_by_role("button", name="Save", exact=True).click()
        with self.tab.expect_download() as waiting:
            page.get_by_role("button", name=re.compile(f"^{way}")).click()
        return Path(waiting.value.path()).read_text()


@pytest.fixture(scope="module")
def notebook(chromium, tmp_path_factory):
    """The notebook after its first cell was run."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        context = chromium.new_context(
            viewport={"width": 1280, "height": 800}, color_scheme="light", accept_downloads=True
        )
        opened = Notebook(context.new_page(), lab)
        opened.run_cell(0)
        opened.drawn("pattern")
        yield opened
        context.close()
    finally:
        lab.end()
    with pytest.raises(ProcessLookupError):
        os.kill(opened.kernel, 0)
    assert opened.complaints == []


def test_the_numbers_are_the_kernels(notebook):
    notebook.run('w.view = "/pattern?site=2&head=5"')
    notebook.drawn("pattern")
    saved = json.loads(notebook.saved("JSON"))
    assert saved["query_tokens"][:3] == ["[CLS]", "He", "left"]
    own = json.loads(notebook.run("print(trace[0, 2, 5].pattern[0, 0].tolist())"))
    assert len(own) == 10
    assert saved["weights"] == [pytest.approx(row, abs=1e-6) for row in own]


def test_the_view_follows_both_ways(notebook):
    notebook.output().get_by_role("link", name="Lines").click()
    notebook.drawn("lines")
    notebook.until("print(w.view)", "/lines?site=2&head=5")
    notebook.run('w.view = "/pattern?site=4&head=1"')
    notebook.drawn("pattern")
    assert notebook.output().get_by_role("link", name="Pattern").get_attribute("aria-current") == "page"
    assert notebook.output().get_by_role("combobox", name="Layer").input_value() == "4"
    notebook.run("w.height = 500")
    notebook.tab.wait_for_function("document.querySelector('.saccade-frame').clientHeight === 500")


def test_another_display_of_the_widget(notebook):
    notebook.run_cell(1)
    notebook.drawn("pattern", cell=1)
    notebook.output(1).get_by_role("link", name="Heads").click()
    for cell in (0, 1):
        notebook.drawn("heads", cell)
    notebook.until("print(w.view)", "/heads?site=4&head=1")


def test_a_text_that_is_typed_in_is_read_by_the_kernel(notebook):
    box = notebook.output().get_by_role("textbox").first
    box.fill("She opened a bank account.")
    box.press("Enter")
    notebook.until('print([t["text"] for t in w._explorer.about()["texts"]][-1])', "She opened a bank account.")


def test_keys_are_the_pages_in_it_and_the_notebooks_around_it(notebook):
    cells = "jupyterapp.shell.currentWidget.content.widgets.length"
    notebook.run('w.view = "/heads"')
    notebook.drawn("heads")
    notebook.output().get_by_role("link", name="Heads").click()
    notebook.tab.keyboard.press("b")  # in JupyterLab: a new cell
    notebook.tab.keyboard.press("2")
    notebook.drawn("pattern")
    assert notebook.tab.evaluate(cells) == len(CELLS)
    notebook.select(2)
    notebook.do("notebook:enter-command-mode")
    notebook.tab.keyboard.press("b")
    notebook.tab.wait_for_function(f"{cells} === {len(CELLS) + 1}")
    notebook.tab.keyboard.press("1")
    notebook.drawn("pattern")


BUSY = """
import time
stop = time.monotonic() + 60
while "site=5" not in w.view and time.monotonic() < stop:
    time.sleep(0.01)
print(w.view)
"""


def test_answers_while_a_cell_runs(notebook):
    notebook.output().get_by_role("link", name="Heads").click()
    notebook.drawn("heads")
    notebook.until("print(w.view.partition('?')[0])", "/heads")  # ipykernel answers where it was last spoken to
    notebook.begin(BUSY)
    notebook.output().get_by_role("link", name="Lines").click()
    notebook.drawn("lines")
    notebook.output().get_by_role("combobox", name="Layer").select_option("5")
    view, _, state = notebook.ended().partition("?")
    assert view == "/lines"
    assert "site=5" in state.split("&")  # beside what other tests left there


STYLES = """() => {
    const outside = [...document.querySelectorAll("*")].filter((one) => !one.closest(".saccade-frame"));
    const [button, link] = ["button", "a"].map((name) => {
        const probe = document.querySelector(".saccade").appendChild(document.createElement(name));
        const { borderRadius, textDecorationLine, color } = getComputedStyle(probe);
        probe.remove();
        return { borderRadius, textDecorationLine, color };
    });
    const ours = [...document.styleSheets].filter((sheet) => !sheet.href && [...sheet.cssRules].some(
        (rule) => rule.selectorText === ".saccade"));
    const selectors = (rules) => [...rules].flatMap((rule) =>
        rule.selectorText ? [rule.selectorText] : rule.name ? [] : selectors(rule.cssRules ?? []));
    const all = ours.flatMap((sheet) => selectors(sheet.cssRules));
    const leaking = all.filter((selector) => outside.some((one) => one.matches(selector)));
    const looks = [button.borderRadius, link.textDecorationLine, link.color];
    return { count: all.length, leaking, looks };
}"""


def test_styles_stay_apart(notebook):
    found = notebook.tab.evaluate(STYLES)
    assert found["count"] > 100
    assert found["leaking"] == []
    assert found["looks"] == ["8px", "underline", "rgb(18, 103, 124)"]


def test_a_widget_that_is_closed_is_gone(notebook):
    notebook.run("w.close()")
    notebook.tab.wait_for_function("!document.querySelector('.saccade')")
    assert (
        notebook.run("print(sum(t.name.startswith('saccade-') for t in __import__('threading').enumerate()))").strip()
        == "0"
    )
