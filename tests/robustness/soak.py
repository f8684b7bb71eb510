"""Does anything grow? Run by test_soak.py in small, or by hand:

    python tests/robustness/soak.py train FOLDER              # 45200 steps, which are 200 epochs of QVHighlights, at a small size: half an hour
    python tests/robustness/soak.py train FOLDER --full --epochs 2   # QVHighlights' and the preset's own size
    python tests/robustness/soak.py stores FOLDER             # stores of 1000, 10000 and 100000 videos

`train` makes a store of random features in QVHighlights' shape and trains on it; every line of FOLDER/soak.csv is what the process holds and what a step takes
after so many steps. `stores` packs stores of growing size, keeps them, and starts a training run on each in a process of its own."""
import argparse, contextlib, gc, json, multiprocessing, os, shutil, statistics, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from typing import Any
import numpy as np
import pandas as pd
from mrhd_nb.learning import training
from mrhd_nb.data.annotations import Record, write_annotations
from mrhd_nb.data.batches import planted_batch
from mrhd_nb.core.config import DataConfig, RunConfig, StreamConfig, to_dict
from mrhd_nb.core.presets import data_config, run_config
from mrhd_nb.core.files import rng, write_json
from mrhd_nb.data.store import pack

CLIPS = 75
FULL = {"train": 7218, "val": 1550, "test": 1542} # queries of QVHighlights, each on a video of its own: 226 batches of 32
QUARTER = {"train": 1804, "val": 388, "test": 386} # 226 batches of 8
SMALL = {"training.batch_size": 8, "model.width": 16, "model.ffn": 32, "model.heads": 2, "model.fusion_layers": 1, "model.encoder_layers": 1, "model.decoder_layers": 1}


def record(i:int, draw)->Record:
    "One query with one window, rated by three"
    first = int(draw.integers(CLIPS-8))
    clips = range(first, first+1+int(draw.integers(8)))
    return Record(i, "something happens here", 2*CLIPS, f"video{i}", ((2*clips.start, 2*clips.stop),), tuple(clips), tuple(map(tuple, draw.integers(0, 5, (len(clips), 3)).tolist())))


def make_store(root:Path, queries:dict[str, int], wide:bool)->DataConfig:
    "Records and features, packed; the loose files are removed again"
    data = replace(data_config("qvhighlights"), name="soak", root=str(root), annotations=(), **{s: f"{s}.jsonl" for s in queries})
    if not wide: data = replace(data, streams=data.streams[1:]) # CLIP alone
    draw, first = rng(0, "soak"), 0
    tables = {s.name: draw.standard_normal((20_000, s.dim), np.float32).astype(np.float16) for s in (*data.streams, data.text)}
    for split, n in queries.items():
        records = [record(first+i, draw) for i in range(n)]
        write_annotations(root/f"{split}.jsonl", records)
        for r in records:
            for stream in (*data.streams, data.text):
                rows = CLIPS if stream in data.streams else int(draw.integers(4, 33))
                start, path = int(draw.integers(20_000-rows)), root/stream.files[0].format(vid=r.vid, qid=r.qid)
                path.parent.mkdir(exist_ok=True)
                np.savez(path, **{stream.key: tables[stream.name][start:start+rows]})
        first += n
    pack(data, root/"store", dtype="float16")
    for stream in (*data.streams, data.text): shutil.rmtree(root/Path(stream.files[0]).parent)
    return replace(data, store="store")


def held()->dict[str, float]:
    "What this process holds now"
    resident = int(Path("/proc/self/statm").read_text().split()[1])*os.sysconf("SC_PAGE_SIZE")
    return {"resident_mb": resident/2**20, "open_files": len(os.listdir("/proc/self/fd")), "objects": len(gc.get_objects())}


def time_young(pipe, config:RunConfig)->None:
    "In a process of its own: how long 20 steps of a fresh state take, whenever it is asked. What slows both down is the machine, not age"
    lengths = [CLIPS]*config.training.batch_size, [32]*config.training.batch_size
    batch, seconds = planted_batch(0, *lengths, config.model.video_dim, config.model.text_dim), []
    state = training.State(config)
    while (feedback := pipe.recv()) is not None:
        for _ in range(20):
            start = time.perf_counter()
            training.train_step(state, batch, config.training, feedback=feedback)
            seconds.append(time.perf_counter()-start)
        pipe.send(1000*statistics.median(seconds))
        seconds.clear()


@contextlib.contextmanager
def young(config:RunConfig):
    "A function that says what a step, with or without feedback, takes in a young process now, in ms"
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=time_young, args=(end, config), daemon=True)
    process.start()
    end.close()                                                        # a young process that fails is an EOFError here
    try: yield lambda feedback: pipe.send(feedback) or pipe.recv()
    finally: pipe.send(None), process.join()


def watch(path:Path, every:int, young_ms)->None:
    "From now on, write a line every so many steps"
    run, seconds, steps = training.train_step, [], 0
    path.write_text("step,step_ms,young_ms,resident_mb,open_files,objects\n")
    def step(*arguments, **options):
        nonlocal steps
        start = time.perf_counter()
        terms = run(*arguments, **options)
        seconds.append(time.perf_counter()-start)
        steps += 1
        if steps % every == 0:
            now = held()
            with open(path, "a") as file: file.write(f"{steps},{statistics.median(seconds)*1000:.2f},{young_ms(options['feedback']):.2f},{now['resident_mb']:.1f},{now['open_files']},{now['objects']}\n")
            seconds.clear()
        return terms
    training.train_step = step


def soak_config(folder:Path, preset:str, epochs:int, queries:dict[str, int]=QUARTER, full:bool=False)->RunConfig:
    "A run on a store that is made now"
    return run_config(preset, make_store(folder, queries, full), overrides=({} if full else SMALL) | {"training.epochs": epochs})


def train(folder:Path, config:RunConfig, every:int=200)->pd.DataFrame:
    "Train, evaluate and save as a run does; the lines of soak.csv"
    with young(config) as young_ms:
        watch(folder/"soak.csv", every, young_ms)
        training.train(config, folder/"run", progress=False)
    return pd.read_csv(folder/"soak.csv")


def describe(lines:pd.DataFrame)->str:
    "Tenths of a run; `age` is how much longer a step takes than in a young process at the same time"
    tenth, lines = (lines.index*10//len(lines)).rename("tenth"), lines.assign(age=lines.step_ms/lines.young_ms)
    return lines.groupby(tenth).agg({"step": "max", "step_ms": "median", "young_ms": "median", "age": "median", "resident_mb": "median", "open_files": "max", "objects": "median"}).round(2).to_string()


START = """
import sys, time
begun = float(sys.argv[1])                                             # when this process was asked for
from mrhd_nb.learning import training
from mrhd_nb.core.config import read_config
found, step, steps = {"imports_s": time.time()-begun}, training.train_step, 0
def note(when):
    pages, shared = map(int, open("/proc/self/statm").read().split()[1:3])
    size = os.sysconf("SC_PAGE_SIZE")/2**20
    return {f"{when}_s": time.time()-begun, f"{when}_private_mb": (pages-shared)*size, f"{when}_file_mb": shared*size}
def first_step(state, batch, *more, **options):
    "The first is a step as ever; after it, the epoch only reads"
    global steps, terms
    steps += 1
    if steps == 1:
        found.update(note("first_batch") | {"needless": [m for m in NEEDLESS if m in sys.modules]})
        terms = step(state, batch, *more, **options)
        found.update(note("first_step"))
    if len(batch.records) < config.training.batch_size or steps*config.training.batch_size == int(sys.argv[4]):
        print(json.dumps(found | note("pass")))
        sys.stdout.flush()
        os._exit(0)
    return terms
import json, os
NEEDLESS = ("matplotlib", "torch.distributed.elastic", "papermill")
training.train_step, config = first_step, read_config(sys.argv[2])
training.train(config, sys.argv[3], progress=False)
"""


def make_many(root:Path, videos:int)->DataConfig:
    "Pack a store of so many small videos with one query each: eight tenths to train on, one to validate, one to report"
    splits = {split: f"{split}.jsonl" for split in ("train", "val", "test")}
    data = DataConfig("many", "qvhighlights", (StreamConfig("clips", ("clips/{vid}.npy",), 8),), StreamConfig("words", (), 16), root=str(root), **splits)
    if not (root/"store").exists():
        (root/"clips").mkdir(parents=True)
        draw, rows = rng(0, "many"), rng(0, "rows").standard_normal((videos+CLIPS, 8), np.float32)
        records = [record(i, draw) for i in range(videos)]
        for i, r in enumerate(records): np.save(root/"clips"/f"{r.vid}.npy", rows[i:i+CLIPS])
        parts = records[:videos*8//10], records[videos*8//10:videos*9//10], records[videos*9//10:]
        for part, name in zip(parts, splits.values()): write_annotations(root/name, part)
        pack(data, root/"store")
        shutil.rmtree(root/"clips")
    return replace(data, store="store")


def start_on(root:Path, videos:int)->dict[str, Any]:
    """What a user waits for who trains on so many videos, in a new process: seconds from its start to the end of the imports, to the first
    batch, and to the end of the first step; memory of its own and of mapped files then, and after all batches of an epoch"""
    data = make_many(root, videos)
    write_json(root/"config.json", to_dict(run_config("taskweave_both", data, overrides=SMALL | {"training.batch_size": 32, "training.epochs": 1})))
    shutil.rmtree(root/"run", ignore_errors=True)
    command = [sys.executable, "-c", START, str(time.time()), str(root/"config.json"), str(root/"run"), str(videos*8//10)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"videos": videos, "store_bytes_mb": sum(p.stat().st_size for p in (root/"store").iterdir())/2**20} | json.loads(done.stdout)


def stores(folder:Path, sizes:list[int])->pd.DataFrame:
    "A row per size"
    return pd.DataFrame([start_on(folder/str(n), n) for n in sizes]).set_index("videos").round(2)


def main()->None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "stores"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="taskweave_both")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--full", action="store_true", help="QVHighlights' and the preset's own size")
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000, 100_000], help="of the stores")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "stores": print(stores(given.folder, given.videos).T.to_string())
    else: print(describe(train(given.folder, soak_config(given.folder, given.preset, given.epochs, FULL if given.full else QUARTER, given.full))))


if __name__ == "__main__": main()
