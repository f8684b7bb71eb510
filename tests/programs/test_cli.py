"The `mrhd` command as a shell sees it: exit status, one-line errors, files"
import json, os, subprocess, sys
import numpy as np
import pandas as pd
from mrhd_nb.programs.cli import COMMANDS, main


def mrhd(*words, **options):
    "Run `mrhd` in a process of its own"
    command = [sys.executable, "-c", "import sys; from mrhd_nb.programs.cli import main; sys.exit(main())", *map(str, words)]
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
    assert refused(mrhd("train", "--preset", "tr_detr", "--set", "model.widht=3", "--out", tmp_path/"run"), "widht", "width")
    assert not (tmp_path/"run").exists()
    assert refused(mrhd("download", "imagenet", "--out", tmp_path/"data"), "imagenet", "qvhighlights") and not (tmp_path/"data").exists()


def test_evaluates_a_released_submission(shared, tmp_path):
    reference = shared/"reference"
    truth, given = reference/"annotations/qvhighlights/highlight_val_release.jsonl", reference/"submissions"/"tr_detr_val.jsonl"
    done = mrhd("evaluate", "--submission", given, "--annotations", truth, "--out", tmp_path/"deep"/"M.json")
    expected = json.loads((reference/"submissions"/"tr_detr_val.metrics.json").read_text())
    assert done.returncode == 0 and json.loads(done.stdout) == expected["brief"], done.stderr
    assert json.loads((tmp_path/"deep"/"M.json").read_text()) == expected


def test_evaluates_with_intervals_a_table_and_a_ledger(tmp_path, monkeypatch, capsys):
    from mrhd_nb.data.annotations import as_json
    from mrhd_nb.evaluation.ledger import read_ledger
    from mrhd_nb.evaluation.metrics import averages, evaluate
    from mrhd_nb.evaluation.statistics import random_answers
    from mrhd_nb.data.synthetic import make
    truth, given = [as_json(r) for r in make(2, train=1, val=30).val], tmp_path/"s.jsonl"
    answers, ledger = random_answers(truth), tmp_path/"mine_test.ledger.jsonl"
    (tmp_path/"mine_test.jsonl").write_text("".join(json.dumps(v)+"\n" for v in truth))
    given.write_text("".join(json.dumps(v)+"\n" for v in answers))
    monkeypatch.setenv("MRHD_LEDGER", "")
    words = ["evaluate", "--submission", str(given), "--annotations", str(tmp_path/"mine_test.jsonl")]
    official = evaluate(answers, truth)
    assert main([*words, "--out", str(tmp_path/"M.json")]) == 0 and json.loads((tmp_path/"M.json").read_text()) == official
    said = capsys.readouterr()
    assert json.loads(said.out) == official["brief"] and "scoring 1 " in said.err and said.err.count("\n") == 1
    assert main([*words, "--intervals", "--per-query", str(tmp_path/"q.parquet"), "--out", str(tmp_path/"I.json")]) == 0
    said, written = capsys.readouterr(), json.loads((tmp_path/"I.json").read_text())
    assert "scoring 2 " in said.err and "1 different submission " in said.err and said.out.splitlines()[-1].startswith("95 % intervals")
    block = written.pop("intervals")
    assert written == official and list(block["metrics"]) == list(official["brief"])
    assert all(r["low"] <= r["value"] <= r["high"] and r["value"] == official["brief"][k] for k, r in block["metrics"].items())
    assert {k: round(v, 2) for k, v in averages(pd.read_parquet(tmp_path/"q.parquet")).items()} == official["brief"]
    assert [line["metrics"] for line in read_ledger(ledger)] == [official["brief"]]*2
    assert main([*words, "--ledger", "off"]) == 0 and "not recorded" in capsys.readouterr().err and len(read_ledger(ledger)) == 2


def test_parity_fails_without_files_and_with_an_altered_number(shared, tmp_path, capsys):
    assert main(["parity", str(tmp_path)]) == 1
    source = shared/"golden"/"trdetr_txtpad.npz"
    with np.load(source, allow_pickle=False) as z: numbers = {k: z[k] for k in z.files}
    np.savez(tmp_path/"same.npz", **numbers)
    assert main(["parity", str(tmp_path)]) == 0
    numbers["out/saliency_scores"][0, 0] += 1e-3
    np.savez(tmp_path/"same.npz", **numbers)
    capsys.readouterr()
    assert main(["parity", str(tmp_path)]) == 1 and capsys.readouterr().out.splitlines()[-1] == "1 files, 1 failed"


def test_predicts_from_the_packaged_checkpoint():
    shown, plain = mrhd("predict", "--example", 3), mrhd("predict", "--json", "--example", 1)
    assert shown.returncode == plain.returncode == 0, shown.stderr+plain.stderr
    assert "moment 1" in shown.stdout and "truth" in shown.stdout and "synthetic" in shown.stdout.splitlines()[0]
    answer = json.loads(plain.stdout)
    assert len(answer["saliency"]) == len(answer["highlight"]) and answer["true_windows"] and "synthetic" in answer["example"] and all(s <= e for s, e, _ in answer["windows"])


def test_the_packaged_checkpoint_answers_sensibly():
    "Its best window hits more often than a window of the best constant answer does"
    from mrhd_nb.programs.cli import example_input
    from mrhd_nb.inference.predictor import Predictor
    from mrhd_nb.learning.checkpoints import weights_path
    predictor, hits, count = Predictor(weights_path("taskweave_mr2hd")), 0, 40
    for index in range(count):
        record, streams, tokens = example_input(index, predictor.data.seed)
        start, end, _ = predictor.predict(streams, tokens)["windows"][0]
        hits += any(min(e, end)-max(s, start) >= 0.5*(max(e, end)-min(s, start)) for s, e in record.windows)
    assert hits > 0.4*count


def test_predicts_from_files_of_ones_own(tmp_path):
    from mrhd_nb.data.synthetic import make
    made = make(5, train=1, val=1)
    np.savez(tmp_path/"v.npz", features=made.streams[made.val[0].vid][0])
    np.savez(tmp_path/"q.npz", last_hidden_state=made.tokens[made.val[0].qid])
    done = mrhd("predict", "--features", tmp_path/"v.npz", "--query-features", tmp_path/"q.npz", "--query", made.val[0].query, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["query"] == made.val[0].query, done.stderr
    assert refused(mrhd("predict", "--features", tmp_path/"no.npz", "--query-features", tmp_path/"q.npz"), "no.npz")
    assert refused(mrhd("predict", "--video", "v.mp4", "--query", "a dog"), "no encoder makes 'clip' (64 channels)")
    assert refused(mrhd("predict"), "--video", "--features", "--example")
    lines = mrhd("predict", "--features", tmp_path/"v.npz", "--query", made.val[0].query, "--query", "a chef lifts a lamp", "--lines").stdout.splitlines()
    assert [json.loads(line)["qid"] for line in lines] == [1, 2] and json.loads(lines[0])["vid"] == "v"
    assert json.loads(lines[0])["pred_relevant_windows"] == json.loads(done.stdout)["windows"]


def test_a_run_is_trained_resumed_and_repeated(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")                              # a scheduler's: only that of torchrun silences a process
    sizes = ["data.train_queries=24", "data.val_queries=12", "data.test_queries=12", "model.width=16", "model.ffn=16", "training.epochs=2", "training.eval_every=1"]
    run = tmp_path/"run"
    assert main(["train", "--preset", "tr_detr", *(w for s in sizes for w in ("--set", s)), "--seed", "3", "--out", str(run)]) == 0
    table = capsys.readouterr().out
    assert "MR-full-mAP" in table and all((run/name).is_file() for name in ("train.ipynb", "train.html", "done.json"))
    weights, again = (run/"last.safetensors").read_bytes(), ["--config", str(run/"config.json"), "--out", str(run)] # refused if it were another run
    (run/"done.json").unlink()                                   # as if it had been stopped before its end
    for words in (["--resume", str(run)], again):
        assert main(["train", *words]) == 0 and capsys.readouterr().out == table
        assert (run/"done.json").is_file() and (run/"last.safetensors").read_bytes() == weights
    assert main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run/"metrics.json").read_text())["last"]["metrics"]["brief"]
    assert main(["train", *again, "--seed", "4"]) == 2 and "holds another run: seed" in capsys.readouterr().err
