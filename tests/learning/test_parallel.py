"Two processes train what one trains; they share an evaluation; when one dies, the others end, and the run goes on from what was saved"
import json, multiprocessing, os, signal, socket, threading, time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
import numpy as np
import pytest
from mrhd_nb.programs.cli import main
from mrhd_nb.learning.checkpoints import read_tensors
from mrhd_nb.core.presets import run_config
from mrhd_nb.programs.notebooks import check_run
from mrhd_nb.learning.parallel import LostProcess
from mrhd_nb.learning.runs import hold_folder, read_history
from mrhd_nb.learning.training import train

SMALL = {"data.train_queries": 17, "data.val_queries": 12, "data.test_queries": 7, "model.width": 16, "model.ffn": 32, "model.moment_queries": 4, "model.dropout": 0., "model.input_dropout": 0.,
         "training.epochs": 2, "training.batch_size": 8, "training.eval_batch_size": 5, "training.eval_every": 1, "training.save_every": 2, "training.ema_decay": 0.9}
# batches of 8, 8 and 1 samples, evaluations of 5, 5 and 2: nothing divides evenly, and the last batch has fewer samples than there are processes


def config(preset:str="taskweave_both", **changes): return run_config(preset, "synthetic", overrides=SMALL | changes)


def free_port()->int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(count:int, *calls):
    "Call functions one after the other in so many forks of this process, with the environment that torchrun would give them"
    ports, children = [free_port() for _ in calls], []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            for port, call in zip(ports, calls):
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "forks", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                call()
            status = 0
        finally: os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0]*count


def weights(folder:Path)->dict[str, np.ndarray]:
    return {n: t.numpy() for n, t in read_tensors(folder/"last.safetensors")[0].items()}


def answers(folder:Path)->list[dict]:
    return [json.loads(line) for line in (folder/"submission_last.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory)->dict[tuple[str, int], Path]:
    "Both systems, with one, two and three processes"
    out = tmp_path_factory.mktemp("runs")
    for preset in ("tr_detr", "taskweave_both"): train(config(preset), out/f"{preset}1", progress=False)
    for count in (2, 3): together(count, *(partial(train, config(preset), out/f"{preset}{count}", progress=False) for preset in ("tr_detr", "taskweave_both")))
    return {(preset, count): out/f"{preset}{count}" for preset in ("tr_detr", "taskweave_both") for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("preset", ["tr_detr", "taskweave_both"])
def test_several_processes_train_what_one_trains(preset, count, runs):
    "Every term of every step, every weight, and every metric, up to rounding"
    one, other = (read_history(runs[preset, n]/"history.jsonl") for n in (1, count))
    assert len(one) == len(other) == 2
    for a, b in zip(one, other):
        assert a["terms"].keys() == b["terms"].keys() and a["step"] == b["step"]
        np.testing.assert_allclose([b["terms"][n] for n in a["terms"]], list(a["terms"].values()), rtol=2e-4, atol=1e-5)
        for name in ("moment_loss", "saliency_loss"): np.testing.assert_allclose(b[name], a[name], rtol=2e-4)
        for task in a.get("weights", ()): np.testing.assert_allclose(b["weights"][task], a["weights"][task], rtol=1e-3, atol=1e-6)
    one, other = weights(runs[preset, 1]), weights(runs[preset, count])
    for name in one: np.testing.assert_allclose(other[name], one[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("preset", ["tr_detr", "taskweave_both"])
def test_an_evaluation_is_shared(preset, runs):
    "Each query is answered once, in the order of the records, as one process answers it"
    one = answers(runs[preset, 1])
    for count in (2, 3):
        found = answers(runs[preset, count])
        assert [a["qid"] for a in found] == [a["qid"] for a in one] and len(one) == 7
        for a, b in zip(one, found): np.testing.assert_allclose(b["pred_saliency_scores"], a["pred_saliency_scores"], atol=5e-3)


def test_the_first_process_writes_a_complete_run(runs):
    for (_, count), folder in runs.items():
        check_run(folder)
        assert json.loads((folder/"environment.json").read_text())["processes"] == count and not list(folder.glob(".*.tmp"))


def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path):
    "One of two is killed in the middle of an epoch; two more go on, and end with the bits of a run that was never stopped"
    run, out, killed = config(**{"training.epochs": 3, "training.eval_every": 3, "model.dropout": 0.1}), tmp_path/"killed", []

    def kill():
        while not (out/"resume.pt").exists(): time.sleep(0.01)
        killed.extend(multiprocessing.active_children())
        os.kill(killed[-1].pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(LostProcess, match="^process [01] of 2 was killed by SIGKILL; the others were ended; what was saved is kept: run it again to go on$"):
        train(run, out, progress=False, processes=2)
    assert not any(child.is_alive() for child in killed) and not (out/"done.json").exists()
    with hold_folder(out): pass
    together(2, *(partial(train, run, folder, progress=False) for folder in (out, tmp_path/"whole")))
    for a, b in zip(weights(out).values(), weights(tmp_path/"whole").values()): assert np.array_equal(a, b)
    for name in ("submission_best.jsonl", "submission_last.jsonl"): assert (out/name).read_bytes() == (tmp_path/"whole"/name).read_bytes()


def test_the_command_under_torchrun(tmp_path):
    "As `torchrun --nproc_per_node=2 --no-python mrhd train` calls it: no notebook, one table"
    words = ["train", "--preset", "taskweave_both", *(word for n, v in SMALL.items() for word in ("--set", f"{n}={v}")), "--out", str(tmp_path/"run")]

    def command():
        with open(tmp_path/"said", "a") as said, redirect_stdout(said), redirect_stderr(said): assert main(words) == 0

    together(2, command)
    check_run(tmp_path/"run")
    assert (tmp_path/"said").read_text().count("run folder") == 1 and not list((tmp_path/"run").glob("*.ipynb"))
