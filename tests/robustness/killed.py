"""Kill a training run at moments drawn by the clock and let it go on; run by test_resume.py, or by hand:

    python tests/robustness/killed.py FOLDER [MOMENTS] [SEED]

Each child is a fork of this process, so that torch is imported once. A byte of shared memory says what the child is doing."""
import json, mmap, os, random, signal, sys, tempfile, time, traceback
from pathlib import Path
import torch
from mrhd_nb.learning import training
from mrhd_nb.core.presets import run_config

KINDS = ("start", "epoch", "evaluation", "checkpoint", "end")
TINY = {"data.train_queries": 32, "data.val_queries": 12, "data.test_queries": 6, "model.width": 16, "model.ffn": 32, "model.moment_queries": 4, "model.dropout": 0.1,
        "training.epochs": 3, "training.batch_size": 8, "training.eval_every": 1, "training.save_every": 2, "training.ema_decay": 0.9,
        "training.ema_every": "step", "model.feedback.start": 0.5}
CONFIG = run_config("taskweave_both", "synthetic", overrides=TINY)
doing = mmap.mmap(-1, 1) # shared with the children


def marked(kind, function):
    "The function, which says what it is doing while it runs"
    def run(*arguments, **options):
        before, doing[0] = doing[0], KINDS.index(kind)
        try: return function(*arguments, **options)
        finally: doing[0] = before
    return run


for kind, names in {"epoch": ["train_step"], "evaluation": ["score"], "checkpoint": ["save_model", "write_json_lines"]}.items():
    for name in names: setattr(training, name, marked(kind, getattr(training, name)))
training.State.save = marked("checkpoint", training.State.save)


def start(folder)->int:
    "A child that trains in the folder"
    doing[0] = KINDS.index("start")
    child = os.fork()
    if child: return child
    try:
        training.train(CONFIG, folder, progress=False)
        doing[0] = KINDS.index("end")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(folder)->float:
    "Train to the end; seconds"
    began = time.monotonic()
    _, status = os.waitpid(start(folder), 0)
    assert status == 0, f"a child failed in {folder}"
    return time.monotonic()-began


def kill_after(folder, seconds)->str: # what it was doing
    "Start, wait, kill"
    child = start(folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KINDS[doing[0]]


def content(folder:Path)->dict[str, object]:
    "Everything that a run leaves behind, without what a clock wrote"
    plain = lambda value: {k: plain(v) for k, v in value.items() if not k.endswith("seconds")} if isinstance(value, dict) else value
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json": found[path.name] = plain(json.loads(path.read_text()))
        elif path.name == "history.jsonl": found[path.name] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
            found[path.name] = repr({k: plain(v) if k not in ("rows", "history") else [plain(r) for r in v] for k, v in state.items()
                                     if k not in ("model", "average", "weighting", "optimizer")})
            for part in ("model", "average", "weighting"): found |= {f"{part}.{n}": t.numpy().tobytes() for n, t in state[part].items()}
            for i, entry in state["optimizer"]["state"].items(): found |= {f"optimizer.{i}.{n}": t.numpy().tobytes() for n, t in entry.items()}
            found["optimizer.groups"] = state["optimizer"]["param_groups"]
        else: found[path.name] = path.read_bytes() if path.name != ".lock" else b""
    return found


def main(folder:Path, moments:int=20, seed:int|None=None):
    "Kill runs until there were enough moments, two of each kind; each run is killed up to three times and must end as the whole one"
    seed = time.time_ns() if seed is None else seed
    draw = random.Random(seed)
    print("seed", seed, flush=True)
    with tempfile.TemporaryDirectory() as warm: training.Run(CONFIG, Path(warm)) # what is imported and made here is there in every child
    seconds = finish(folder/"whole")
    wanted, kinds, runs = content(folder/"whole"), [], 0
    print(f"a whole run takes {seconds:.2f} s", flush=True)
    while len(kinds) < moments or min(map(kinds.count, KINDS[1:4])) < 2:
        out, runs = folder/f"killed{runs}", runs+1
        for _ in range(3):
            kind = kill_after(out, draw.uniform(0, seconds/2))
            if kind == "end": break
            kinds.append(kind)
        finish(out)
        found = content(out)
        differ = [name for name in wanted | found if wanted.get(name) != found.get(name)]
        if differ: sys.exit(f"seed {seed}, run {runs}, killed in {kinds[-3:]}: {', '.join(differ[:8])} differ")
        assert runs < 5*moments, f"only {kinds} in {runs} runs"
    print(len(kinds), "moments in", runs, "runs:", ", ".join(f"{kinds.count(k)} in {k}" for k in KINDS[:4]), "- all ended with the same bits", flush=True)


if __name__ == "__main__": main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
