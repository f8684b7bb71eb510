"The explorer in JupyterLab itself, in a browser"
import contextlib, os, shutil, socket, subprocess, sys, time, urllib.request
import nbformat, pytest
from mrhd_nb.core.files import generator
from mrhd_nb.core.presets import run_config
from mrhd_nb.data.batches import split_records
from mrhd_nb.learning.checkpoints import save_model
from mrhd_nb.model.model import MomentModel

SMALL = {"model.width": 32, "model.ffn": 32, "data.train_queries": 1, "data.val_queries": 1, "data.test_queries": 5}
CELL = "from mrhd_nb.programs.explorer import Explorer\nExplorer('one.safetensors', 'two.safetensors', video='films')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory, root, film):
    "The address of a JupyterLab whose folder holds two checkpoints, films and a notebook of one cell"
    pytest.importorskip("jupyterlab", reason="no jupyterlab: pip install jupyterlab")
    folder, config = tmp_path_factory.mktemp("lab"), run_config("taskweave_mr2hd", "synthetic", overrides=SMALL)
    for seed, name in enumerate(("one", "two")): save_model(folder/f"{name}.safetensors", MomentModel(config, generator(seed, "weights")), config)
    (folder/"films").mkdir()
    for record in split_records(config, "test"): shutil.copy(film, folder/"films"/f"{record.vid}.webm")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}),
                   folder/"look.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(tmp_path_factory.mktemp("own")) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}",
               "--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder/"log", "w") as log: server = subprocess.Popen(command, cwd=folder, env=os.environ | own | {"PYTHONPATH": str(root)}, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
                break
            assert server.poll() is None, (folder/"log").read_text()
            time.sleep(.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def test_draws_jumps_asks_and_steps(lab, browser):
    "One pass through JupyterLab, since it is slow to start"
    page, said = browser.new_page(viewport={"width": 1280, "height": 1400}), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{lab}/lab/tree/look.ipynb")
    page.locator(".jp-Notebook .jp-Cell .cm-content").first.click(timeout=60_000)
    page.wait_for_selector("[data-status=idle], .jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached", timeout=60_000)
    page.keyboard.press("Shift+Enter")
    widget = page.locator(".mrhd")
    widget.locator(".moment").first.wait_for(timeout=90_000)
    if place := os.environ.get("MRHD_SCREENSHOTS"): page.screenshot(path=f"{place}/lab.png")
    assert widget.locator(".legend span").all_inner_texts() == ["true", "one.safetensors", "two.safetensors"]

    time_is = lambda seconds: page.wait_for_function("t => Math.abs(document.querySelector('.mrhd video').currentTime-t) < .05", arg=float(seconds))
    page.wait_for_function("document.querySelector('.mrhd video')?.readyState > 0")
    moment = widget.locator(".moment").nth(2)
    moment.click()
    time_is(moment.get_attribute("data-start"))
    page.keyboard.press("ArrowRight") # from the moment that has the focus; JupyterLab must not take the key
    time_is(widget.locator(".moment").nth(3).get_attribute("data-start"))
    page.keyboard.press("m")
    widget.locator(".curve.ends").first.wait_for()
    assert page.locator(".jp-Notebook .jp-Cell").count() <= 2 # `m` and `a` are keys of JupyterLab as well

    widget.get_by_label("sentence").fill("a dog opens the door")
    page.keyboard.press("Enter")
    widget.get_by_text("“a dog opens the door”").wait_for(timeout=20_000)
    widget.get_by_label("sentence").fill("a cat sleeps")
    widget.get_by_role("button", name="Ask", exact=True).click()
    widget.get_by_text("“a cat sleeps”").wait_for(timeout=20_000)
    if place: page.screenshot(path=f"{place}/lab-asked.png")
    widget.get_by_label("record").select_option(index=3)
    page.wait_for_function("document.querySelector('.mrhd .query').textContent.indexOf('a cat sleeps') < 0")
    widget.get_by_label("beside").select_option("")
    page.wait_for_function("document.querySelectorAll('.mrhd .legend span').length == 2")
    if place: page.screenshot(path=f"{place}/lab-record.png")
    assert said == []
