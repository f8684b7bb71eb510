"""Search for an input that breaks a reader, guided by coverage:

    python tests/robustness/fuzz/search.py TARGET SECONDS [CORPUS]

Needs atheris (pip install atheris). TARGET `all` takes them by turns. An input that breaks a target is written to CORPUS, and the exit
status is not 0. Without arguments, the targets are listed."""
import sys
from pathlib import Path
import atheris
import pandas, torch # not instrumented: that would take a minute
with atheris.instrument_imports(include=["mrhd_nb"]): from targets import SEEDS, TARGETS


def every(data:bytes):
    "The first byte chooses the target"
    if data: list(TARGETS.values())[data[0] % len(TARGETS)](data[1:])


def main(name:str, seconds:str, corpus:str=""):
    folder = Path(corpus or f".fuzz/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = SEEDS | {"all": [bytes([i])+seed for i, n in enumerate(TARGETS) for seed in SEEDS[n]]}
    for i, seed in enumerate(seeds[name]): (folder/f"seed{i}").write_bytes(seed)
    options = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=20000", f"-max_total_time={seconds}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, str(folder)], (TARGETS | {"all": every})[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 3: sys.exit(f"{__doc__}\n\nTARGET is all or one of {', '.join(TARGETS)}")
    main(*sys.argv[1:])
