"The `mrhd` command as a shell sees it: exit status, one-line errors, files"
import json, os, subprocess, sys, time
import numpy as np, pytest
from mrhd_nb.cli import COMMANDS

METRICS = "tr_detr_val"


def mrhd(*words, **options):
    "Run `mrhd` in a process of its own"
    command = [sys.executable, "-c", "import sys; from mrhd_nb.cli import main; sys.exit(main())", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def refused(done, *said):
    "Exit status 2 and one line that says all the words"
    return done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "" and all(s in done.stderr for s in said)


def test_help_needs_no_torch(tmp_path):
    (tmp_path/"torch.py").write_text("raise SystemExit('torch was imported')")
    done = mrhd("--help", env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 0 and done.stdout.startswith("usage: mrhd"), done.stderr
    assert all(f"    {name}" in done.stdout for name in COMMANDS)


def test_bad_input_is_refused_in_one_line(tmp_path):
    bad = tmp_path/"bad.jsonl"
    bad.write_text('{"qid": 1}\n{"qid": \n')
    assert refused(mrhd("evaluate", "--submission", bad, "--annotations", bad), f"{bad}:2")
    assert refused(mrhd("evaluate", tmp_path/"nothing"), "nothing")
    assert refused(mrhd("train", "--preset", "tr_detr", "--set", "model.widht=3", "--out", tmp_path/"run"), "widht", "width")
    assert not (tmp_path/"run").exists()


def test_evaluates_a_released_submission(shared, tmp_path):
    reference = shared/"reference"
    truth, given = reference/"annotations/qvhighlights/highlight_val_release.jsonl", reference/"submissions"/f"{METRICS}.jsonl"
    done = mrhd("evaluate", "--submission", given, "--annotations", truth, "--out", tmp_path/"deep"/"M.json")
    expected = json.loads((reference/"submissions"/f"{METRICS}.metrics.json").read_text())
    assert done.returncode == 0 and json.loads(done.stdout) == expected["brief"], done.stderr
    assert json.loads((tmp_path/"deep"/"M.json").read_text()) == expected


def test_parity_fails_without_files_and_with_an_altered_number(shared, tmp_path):
    assert mrhd("parity", tmp_path).returncode == 1
    source = shared/"golden"/"trdetr_txtpad.npz"
    with np.load(source, allow_pickle=False) as z: numbers = {k: z[k] for k in z.files}
    np.savez(tmp_path/"same.npz", **numbers)
    assert mrhd("parity", tmp_path).returncode == 0
    numbers["out/saliency_scores"] = numbers["out/saliency_scores"]+np.float32(1e-3)*(np.arange(numbers["out/saliency_scores"].size) == 0).reshape(numbers["out/saliency_scores"].shape)
    np.savez(tmp_path/"altered.npz", **numbers)
    done = mrhd("parity", tmp_path)
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "2 files, 1 failed", done.stdout+done.stderr


def test_predicts_from_the_packaged_checkpoint():
    began = time.perf_counter()
    shown, plain = mrhd("predict"), mrhd("predict", "--json", "--example", 1)
    assert shown.returncode == plain.returncode == 0, shown.stderr+plain.stderr
    assert "moment 1" in shown.stdout and "truth" in shown.stdout and time.perf_counter()-began < 60
    answer = json.loads(plain.stdout)
    assert len(answer["saliency"]) == len(answer["highlight"]) and answer["true_windows"] and all(s <= e for s, e, _ in answer["windows"])


def test_the_packaged_checkpoint_answers_sensibly():
    "Its best window hits more often than a window of the best constant answer does"
    from mrhd_nb.cli import example_input, packaged_checkpoint
    from mrhd_nb.inference import Predictor
    predictor, hits, count = Predictor(packaged_checkpoint()), 0, 40
    for index in range(count):
        shown, streams, tokens = example_input(index, predictor.data.seed)
        start, end, _ = predictor.predict(streams, tokens)["windows"][0]
        hits += any(min(e, end)-max(s, start) >= 0.5*(max(e, end)-min(s, start)) for s, e in shown["true_windows"])
    assert hits > 0.4*count


def test_predicts_from_files_of_ones_own(tmp_path):
    from mrhd_nb.synthetic import make
    made = make(5, train=1, val=1)
    np.savez(tmp_path/"v.npz", features=made.streams[made.val[0].vid][0])
    np.savez(tmp_path/"q.npz", last_hidden_state=made.tokens[made.val[0].qid])
    done = mrhd("predict", "--features", tmp_path/"v.npz", "--query-features", tmp_path/"q.npz", "--query", made.val[0].query, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["query"] == made.val[0].query, done.stderr
    assert refused(mrhd("predict", "--features", tmp_path/"no.npz", "--query-features", tmp_path/"q.npz"), "no.npz")
    assert refused(mrhd("predict", "--video", "v.mp4", "--query", "a dog"), "encoder", "--features")


@pytest.mark.parametrize("words", (["--resume"], ["--config"]))
def test_a_run_is_repeated_and_resumed(tmp_path, words):
    sizes = ["data.train_queries=24", "data.val_queries=12", "model.width=16", "model.ffn=16", "training.epochs=2", "training.eval_every=1"]
    first = mrhd("train", "--preset", "tr_detr", "--data", "synthetic", *(w for s in sizes for w in ("--set", s)), "--seed", 3, "--out", tmp_path/"a")
    assert first.returncode == 0 and "MR-full-mAP" in first.stdout, first.stderr
    if words == ["--resume"]:
        (tmp_path/"a"/"done.json").unlink()
        (tmp_path/"a"/"train.ipynb").unlink()
        again, folder = mrhd("train", "--resume", tmp_path/"a"), tmp_path/"a"
    else: again, folder = mrhd("train", "--config", tmp_path/"a"/"config.json", "--out", tmp_path/"b"), tmp_path/"b"
    assert again.returncode == 0 and again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1], again.stderr
    assert all((folder/name).is_file() for name in ("train.ipynb", "train.html", "done.json"))
