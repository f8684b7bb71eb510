"""The site: `make docs` builds it from the notebooks, the pages of this folder and the code's own signatures

Sphinx reads `docs/`; everything that is made from something else is written to `docs/_pages/` before it starts
(notebooks as they are read, figures, the references of the command line and of the public API).
"""
import ast
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

DOCS = Path(__file__).resolve().parent
ROOT, PAGES = DOCS.parent, DOCS/"_pages"
sys.path.insert(0, str(ROOT))
import mrhd_nb  # noqa: E402

project, author, copyright = "mrhd_nb", "The mrhd_nb authors", "2026 onwards, The mrhd_nb authors"
version = release = mrhd_nb.__version__
extensions = ["myst_nb", "sphinx.ext.githubpages"]
html_theme, html_title = "furo", f"mrhd_nb {version}"
exclude_patterns = ["_build", "README.md"]
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
nb_ipywidgets_js = {} # no page fetches a script
nb_execution_mode = "off"  # outputs are those that the notebooks keep
nb_code_prompt_show, nb_code_prompt_hide = "Test", "Hide the test"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]  # a notebook may skip a level of headings


# Notebooks

def is_test(source):
    "Does a cell only test?"
    kinds = (ast.Assert, ast.Raise)
    return any(isinstance(node, kinds) for node in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*", "", source))))


def read_cell(cell):
    "A notebook's cell as the site shows it; None where it is not shown"
    if cell.cell_type != "code": return cell
    flags = [line[2:].strip() for line in cell.source.splitlines() if line.startswith("#|")]
    if any(flag.split()[0] in ("hide", "default_exp") for flag in flags): return None
    cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    exported = any(flag.startswith("export") for flag in flags)
    tags = ["exported"] if exported else ["hide-input"] if is_test(cell.source) else []
    cell.metadata["tags"] = cell.metadata.get("tags", [])+tags
    return cell


def write_notebooks():
    "Copy every notebook without directives, with its tests folded; `nbs/` keeps its shape, so links between notebooks hold"
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.name == "index.ipynb": continue
        nb = nbformat.read(path, as_version=4)
        nb.cells = [cell for cell in map(read_cell, nb.cells) if cell is not None]
        target = PAGES/path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)


# References

def signature(node, lines):
    "The source of a definition up to its docstring, docments included; a dataclass with its fields"
    body = node.body
    if isinstance(node, ast.ClassDef):
        fields = [n for n in body if isinstance(n, ast.AnnAssign)]
        start = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        first = body[1] if ast.get_docstring(node) and len(body) > 1 else body[0]  # behind the docstring
        end = fields[-1].end_lineno if fields else start.body[0].lineno-1 if start else node.body[0].lineno-1
        return "\n".join([*lines[node.lineno-1:body[0].lineno-1], *lines[first.lineno-1:end]])
    return "\n".join(lines[node.lineno-1:body[0].lineno-1])


def write_api():
    "One page per package: every public name with its signature and its docstring"
    (PAGES/"api").mkdir(parents=True, exist_ok=True)
    for folder in sorted((ROOT/"nbs").glob("[1-9]_*")):
        package = folder.name.split("_", 1)[1]
        page = [f"# mrhd_nb.{package}\n"]
        for notebook in sorted(folder.glob("[0-9]*.ipynb")):
            room = notebook.stem.split("_", 1)[1]
            path = ROOT/"mrhd_nb"/package/f"{room}.py"
            if not path.exists(): continue
            text = path.read_text()
            tree, lines = ast.parse(text), text.splitlines()
            page += [f"## {package}.{room}\n", f"{ast.get_docstring(tree)}. See [the notebook](../nbs/{folder.name}/{notebook.name}).\n"]
            for node in tree.body:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
                page += [f"### {node.name}\n", f"```python\n{signature(node, lines)}\n```\n", f"{ast.get_docstring(node) or ''}\n"]
        (PAGES/"api"/f"{package}.md").write_text("\n".join(page))


def write_commands():
    "What `mrhd --help` and the help of every command say"
    from mrhd_nb.programs.cli import command_line
    os.environ["COLUMNS"] = "100"
    parser = command_line()
    commands = next(a for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict)).choices
    page = ["# The command line\n", f"```text\n{parser.format_help()}```\n"]
    for name, command in commands.items(): page += [f"## mrhd {name}\n", f"```text\n{command.format_help()}```\n"]
    (PAGES/"commands.md").write_text("\n".join(page))


def write_pages(app, config):
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    shutil.copytree(ROOT/"figures", PAGES/"figures", ignore=shutil.ignore_patterns("*.json*", "*.safetensors", "*.pdf"))
    write_notebooks()
    write_api()
    write_commands()
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"): shutil.copy(ROOT/name, PAGES)


# Equations: MathML, which browsers draw themselves, so that no script has to be fetched

def write_math(self, node, display):
    mathml = convert(node.astext(), display=display)
    if "<mi>\\" in mathml: raise ValueError(f"{node.source}: a command of this equation is unknown: {node.astext()}")
    self.body.append(f'<div class="math">{mathml}</div>' if display == "block" else mathml)
    raise SkipNode


def setup(app):
    app.connect("config-inited", write_pages)
    app.add_html_math_renderer("mathml", (lambda self, node: write_math(self, node, "inline"), None),
                               (lambda self, node: write_math(self, node, "block"), None))
