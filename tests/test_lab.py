"JupyterLab as `make lab` starts it: what its contents API serves and saves"
import contextlib, json, os, re, secrets, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
from urllib.parse import quote
import pytest

ROOT = Path(__file__).resolve().parent.parent
ALL = [ROOT/"README.md", *sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|<img[^>]*src=\"([^\"]+)\"")
MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w-]*\w") # what Markdown makes a mail link of


def prose(path:Path)->list[str]:
    "The Markdown of a page or a notebook, without code"
    text = path.read_text(encoding="utf-8")
    cells = [text] if path.suffix == ".md" else ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
    return [re.sub(r"`[^`]*`", "", re.sub(r"```.*?```|^ {4}.*$", "", cell, flags=re.S|re.M)) for cell in cells]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Asks a server with the settings of `make lab`: path -> status and content"
    home, token = tmp_path_factory.mktemp("home"), secrets.token_hex(8)
    command = re.search(r"^lab:.*\n\t@\$\(VENV\)/bin/jupyter (.*)$", (ROOT/"Makefile").read_text(), re.M)[1].split()
    options = ["--no-browser", "--ServerApp.port=0", f"--IdentityProvider.token={token}"]
    environment = os.environ | {"HOME": str(home), "JUPYTER_RUNTIME_DIR": str(home/"runtime"), "JUPYTER_CONFIG_DIR": str(home/"config")}
    server = subprocess.Popen([sys.executable, "-m", "jupyter", *command, *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"http://[\w.]+:(\d+)/", line): break
        else: pytest.fail("no server")
        port = int(found[1])
        for _ in range(100): # the line may come before the first reply
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1): break
            time.sleep(0.1)
        def ask(path, put=None, kind="api/contents"):
            data = None if put is None else json.dumps(put).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{kind}/{quote(path)}".rstrip("/"), data, {"Authorization": f"token {token}"}, method="PUT" if put else "GET")
            try:
                with urllib.request.urlopen(request, timeout=60) as reply: return reply.status, reply.read()
            except urllib.error.HTTPError as e: return e.code, b""
        yield ask
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_its_root_is_the_project(lab):
    assert {"README.md", "nbs", "figures"} <= {entry["name"] for entry in json.loads(lab("")[1])["content"]}
    assert json.loads(lab("nbs/index.ipynb")[1])["type"] == "notebook" and lab("index.ipynb")[0] == 404


def test_links_and_pictures_resolve(lab):
    "Every link of every notebook, from the folder that holds it"
    count = 0
    for path in ALL:
        for target in (a or b for cell in prose(path) for a, b in LINK.findall(cell)):
            if "://" in target: continue
            place = Path(os.path.relpath(path.parent/target, ROOT)).as_posix()
            assert lab(place, kind="files" if Path(target).suffix in (".png", ".svg") else "api/contents")[0] == 200, (path, target)
            count += 1
    assert count > 50


@pytest.mark.parametrize("name, outputs", [("nbs/experiments/train.ipynb", False), ("nbs/1_core/01_files.ipynb", True)])
def test_what_is_saved_after_running_is_what_git_has(name, outputs, lab):
    "An executed notebook comes back without counts and metadata, an experiment also without outputs"
    before = (ROOT/name).read_bytes()
    model = json.loads(lab(name)[1])
    for i, cell in enumerate(model["content"]["cells"]):
        if cell["cell_type"] != "code": continue
        cell["execution_count"] = i
        cell["metadata"] |= {"execution": {"iopub.execute_input": "now"}, "trusted": True}
        if not outputs: cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "42\n"}]
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result": output["execution_count"] = i
    try:
        assert lab(name, put={"type": "notebook", "format": "json", "content": model["content"]})[0] == 200
        assert (ROOT/name).read_bytes() == before
    finally: (ROOT/name).write_bytes(before)


def test_what_running_writes_is_ignored():
    "Experiments write below runs/, in whatever folder they are run"
    places = ["runs/a/config.json", "nbs/experiments/runs/a/config.json", "nbs/.ipynb_checkpoints/index.ipynb"]
    done = subprocess.run(["git", "check-ignore", *places], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128: pytest.skip("not a git checkout")
    assert done.stdout.splitlines() == places


@pytest.mark.parametrize("path", ALL[1:], ids=lambda p: p.stem)
def test_metric_names_are_no_mail_links(path):
    for cell in prose(path): assert not MAIL.search(cell), MAIL.search(cell)[0]
