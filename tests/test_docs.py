"The site is built from the notebooks: no warning, no unresolved link, nothing that would have to be fetched"
import re, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip("myst_nb", reason="the extra `docs` is not installed")


def build(root:Path, out:Path)->Path:
    "Build the site as `make docs` does, where every warning is an error"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(out/"doctrees"), str(root/"docs"), str(out/"html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out/"html"


def every_notebook_has_a_page(site, root):
    notebooks = [p for p in (root/"nbs").rglob("*.ipynb") if p.name != "index.ipynb" and ".ipynb_checkpoints" not in p.parts]
    for path in notebooks: assert (site/"_pages"/path.relative_to(root)).with_suffix(".html").is_file(), path


def nothing_is_fetched_to_show_a_page(site):
    "Scripts, styles, pictures and equations come from the site itself"
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=[\"'](?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]+rel=[\"'](?:stylesheet|preload)[\"'][^>]+href=[\"'](?:https?:)?//", text), page


def links_inside_the_site_lead_somewhere(site):
    for page in site.rglob("*.html"):
        for target in re.findall(r"<a [^>]*href=\"([^\"#?]+)", page.read_text()):
            assert "://" in target or target.startswith("mailto:") or (page.parent/target).exists(), f"{page.relative_to(site)}: {target}"


def equations_directives_and_tests(site):
    "Equations are MathML, directives of nbdev are gone, tests are folded"
    page = (site/"_pages/nbs/3_model/03_experts.html").read_text()
    assert "<math" in page and "#|" not in re.sub(r"<[^>]+>", "", page) and "<details" in page


def test_site(root, tmp_path):
    "One test, since every build writes `docs/_pages`"
    site = build(root, tmp_path)
    every_notebook_has_a_page(site, root)
    nothing_is_fetched_to_show_a_page(site)
    links_inside_the_site_lead_somewhere(site)
    equations_directives_and_tests(site)
