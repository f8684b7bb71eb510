"Metadata comes from settings.ini; a build also takes in the notebooks of nbs/experiments and nbs/tutorials"
import re
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(ROOT/"settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def long_description()->str:
    "README.md for a package index, which has no files beside it: pictures and links are absolute"
    text, page = (ROOT/"README.md").read_text(encoding="utf-8"), f"{settings['git_url']}/blob/{settings['branch']}/"
    picture = page.replace("github.com", "raw.githubusercontent.com").replace("/blob/", "/")
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)", rf"\1{picture}", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!\w+:|#)", rf"\1{page}", text)


class BuildWithNotebooks(build_py):
    "Copy the experiments and tutorials of nbs/ into the built package as mrhd_nb/notebooks; an editable install reads nbs/ itself"
    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib)/settings["lib_name"]/"notebooks"
        for source, folder in ((ROOT/"nbs"/"experiments", target), (ROOT/"nbs"/"tutorials", target/"tutorials")):
            for file in sorted(f for kind in ("*.ipynb", "*.yaml") for f in source.rglob(kind)):
                if any(part.startswith(".") for part in file.relative_to(source).parts): continue
                place = folder/file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                copy2(file, place)


setup(
    name=settings["lib_name"], version=settings["version"], description=settings["description"],
    long_description=long_description(), long_description_content_type="text/markdown",
    author=settings["author"], author_email=settings["author_email"], url=settings["git_url"],
    keywords=settings["keywords"].split(), license_expression="Apache-2.0", license_files=["LICENSE"],
    classifiers=["Intended Audience :: Science/Research", "Programming Language :: Python :: 3",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    python_requires=">="+settings["min_python"], install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split()
                    for extra in ("cluster", "dev", "docs", "export", "video")},
    packages=find_packages(include=[settings["lib_name"], f"{settings['lib_name']}.*"]),
    package_data={settings["lib_name"]: ["py.typed", "*.yaml", "view.js", "view.css", "weights/*"]},
    entry_points={"console_scripts": settings["console_scripts"].split("\n")},
    cmdclass={"build_py": BuildWithNotebooks}, zip_safe=False,
)
