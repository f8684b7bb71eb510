"The `mrhd` command as a shell sees it: exit status, one-line errors, files"
import json, os, re, shlex, shutil, signal, subprocess, sys, time
import numpy as np
import pandas as pd, pytest
from mrhd_nb.core.files import InputError, packaged
from mrhd_nb.programs.cli import COMMANDS, main

SIZES = ["data.train_queries=24", "data.val_queries=12", "data.test_queries=12", "model.width=16", "model.ffn=16", "training.epochs=2", "training.eval_every=1"]
SMALL = [word for size in SIZES for word in ("--set", size)]


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
    written = json.loads((tmp_path/"deep"/"M.json").read_text())
    extra, line = written.pop("extra"), written.pop("signature")
    assert written == expected and list(extra)[0] == "MR-full-R1@0.3" and line in done.stderr and done.stderr.count("\n") == 1


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
    assert main([*words, "--out", str(tmp_path/"M.json")]) == 0
    said, written = capsys.readouterr(), json.loads((tmp_path/"M.json").read_text())
    assert "|looks:1|" in written.pop("signature") and written == official
    doubt, ledger_line, signature = said.err.splitlines()
    assert json.loads(said.out) == official["brief"] and "not sorted by score" in doubt and "scoring 1 " in ledger_line and "|rules:qvhighlights|" in signature
    assert main([*words, "--intervals", "--per-query", str(tmp_path/"q.parquet"), "--out", str(tmp_path/"I.json")]) == 0
    said, written = capsys.readouterr(), json.loads((tmp_path/"I.json").read_text())
    assert "scoring 2 " in said.err and "1 different submission " in said.err and said.out.splitlines()[-1].startswith("95 % intervals")
    block, signature = written.pop("intervals"), written.pop("signature")
    assert signature == said.out.splitlines()[-2] and written == official and list(block["metrics"]) == list(official["brief"])
    assert all(r["low"] is None or r["low"] <= r["value"] <= r["high"] for r in block["metrics"].values()) # none where all are equal
    assert all(r["value"] == official["brief"][k] for k, r in block["metrics"].items())
    assert {k: round(v, 2) for k, v in averages(pd.read_parquet(tmp_path/"q.parquet")).items()} == official["brief"]
    assert [line["metrics"] for line in read_ledger(ledger)] == [official["brief"]]*2
    assert main([*words, "--ledger", "off"]) == 0 and "not recorded" in capsys.readouterr().err and len(read_ledger(ledger)) == 2


def test_scores_by_both_protocols_as_the_golden_files_do(shared, tmp_path):
    reference = shared/"reference"
    given, truth = reference/"submissions"/"moment_detr_gmr_test.jsonl", reference/"annotations/soccer_gmr/soccer_gmr_test.jsonl"
    done = mrhd("evaluate", "--protocol", "gmr", "--submission", given, "--annotations", truth, "--out", tmp_path/"G.json")
    assert done.returncode == 0 and json.loads(done.stdout) == json.loads((tmp_path/"G.json").read_text())["brief"] == json.loads((reference/"submissions"/"moment_detr_gmr_test.gmr.json").read_text())["brief"]
    given, truth = reference/"submissions"/"tr_detr_val.jsonl", reference/"annotations/qvhighlights/highlight_val_release.jsonl"
    done = mrhd("evaluate", "--protocol", "multi", "--submission", given, "--annotations", truth, "--out", tmp_path/"M.json", "--format", "latex", "--columns", "MR-mR3")
    expected, written = json.loads((reference/"submissions"/"tr_detr_val.multi.json").read_text()), json.loads((tmp_path/"M.json").read_text())
    assert done.returncode == 0 and {k: written[k] for k in expected} == expected and "tr\\_detr\\_val & 32.00" in done.stdout
    assert done.stdout.splitlines()[-1] == f"% {written['signature']}" and "|rules:multi|" in written["signature"]
    said = mrhd("compare", tmp_path/"M.json", tmp_path/"G.json")
    assert refused(said, "cannot be compared: split f17accdea93c and 0867f3c2bb42", "rules multi and gmr", "M.json", "G.json")


def test_says_in_one_line_what_is_doubtful(tmp_path, capsys):
    "The numbers stay the official ones"
    truth = [dict(qid=i, query=f"query {i}", duration=40, vid=f"v{i}", relevant_windows=[[10*i, 10*i+6]], relevant_clip_ids=[1], saliency_scores=[[4, 4, 4]]) for i in range(3)]
    sound = [dict(qid=i, query=f"query {i}", vid=f"v{i}", pred_relevant_windows=[[10*i, 10*i+6, .9], [0, 2, .1]], pred_saliency_scores=[0, 1]) for i in range(3)]
    other = [dict(s, **{k: sound[(i+1)%3][k] for k in ("vid", "query")}) for i, s in enumerate(sound)]
    lacks = [{k: v for k, v in sound[0].items() if k != "pred_saliency_scores"}, *sound[1:]]
    mixed = [dict(s, pred_relevant_windows=s["pred_relevant_windows"][::-1]) for s in sound[:2]]+sound[2:]
    empty = [dict(truth[0], relevant_windows=[], relevant_clip_ids=[], saliency_scores=[]), *truth[1:]]
    for given, labels, said in ((sound, truth, []), (other, truth, ["s.jsonl:1: field 'vid': 'v1', but 'v0'", "3 of 3 lines"]), (lacks, truth, ["s.jsonl:1: field 'pred_saliency_scores': missing", "2 of 3"]),
                                (mixed, truth, ["s.jsonl:1: field 'pred_relevant_windows': not sorted by score", "2 of 3"]), (sound, empty, ["a.jsonl: 1 of 3 queries have no moment"])):
        for name, lines in (("s", given), ("a", labels)): (tmp_path/f"{name}.jsonl").write_text("".join(json.dumps(v)+"\n" for v in lines))
        assert main(["evaluate", "--submission", str(tmp_path/"s.jsonl"), "--annotations", str(tmp_path/"a.jsonl")]) == 0
        shown = capsys.readouterr()
        *doubts, signature = shown.err.splitlines()
        assert len(doubts) == bool(said) and all(word in doubts[0] for word in said), shown.err
        assert json.loads(shown.out)["MR-full-R1@0.5"] == (33.33 if given is mixed else 100) and ("HL-min-Fair-mAP" in shown.out) == (given is not lacks)


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
    from mrhd_nb.data.synthetic import example_input
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
    run = tmp_path/"run"
    assert main(["train", "--preset", "tr_detr", *SMALL, "--seed", "3", "--out", str(run)]) == 0
    table, said = capsys.readouterr()
    assert said.splitlines()[0] == f"tr_detr on synthetic, seed 3, epochs: 2, run folder: {run}"
    assert "{" not in said and max(map(len, re.split(r"[\r\n]", said)[1:])) < 80 # no page of JSON, a bar that fits a terminal
    assert "MR-full-mAP" in table and all((run/name).is_file() for name in ("train.ipynb", "train.html", "done.json"))
    weights, again = (run/"last.safetensors").read_bytes(), ["--config", str(run/"config.json"), "--out", str(run)] # refused if it were another run
    (run/"done.json").unlink()                                   # as if it had been stopped before its end
    for words in (["--resume", str(run)], again):
        assert main(["train", *words]) == 0 and capsys.readouterr().out == table
        assert (run/"done.json").is_file() and (run/"last.safetensors").read_bytes() == weights
    assert main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run/"metrics.json").read_text())["last"]["metrics"]["brief"]
    assert main(["evaluate", str(run), "--protocol", "multi", "--format", "text", "--columns", "MR-mR1", "--out", str(tmp_path/"M.json")]) == 0
    said, written = capsys.readouterr().out, json.loads((tmp_path/"M.json").read_text())
    assert "|rules:multi|" in said and f"{written['brief']['MR-mR1']:.2f}" in said
    truth = tmp_path/"truth.jsonl"                               # the same as of its submission file
    from mrhd_nb.core.config import read_config
    from mrhd_nb.data.annotations import write_annotations
    from mrhd_nb.data.batches import split_records
    write_annotations(truth, split_records(read_config(run/"config.json"), "test"))
    assert main(["evaluate", "--submission", str(run/"submission_last.jsonl"), "--annotations", str(truth), "--protocol", "multi"]) == 0
    assert json.loads(capsys.readouterr().out) == written["brief"]
    assert main(["train", *again, "--seed", "4"]) == 2 and "holds another run: seed" in capsys.readouterr().err


def test_a_folder_s_name_is_taken_literally(tmp_path):
    "Braces are no pattern of Papermill, signs of equality no parameter"
    out = "{seed} exp{ lr=1e-4 %d"
    done = mrhd("train", "--preset", "tr_detr", *SMALL, "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith(f"run folder: {out}\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out] and (tmp_path/out/"done.json").is_file() and "KeyboardInterrupt" not in done.stderr


def test_a_folder_of_one_s_own_is_refused(tmp_path):
    "Whatever lies in it; nothing is written"
    for name in ("config.json", "metrics.json", "notes.txt", "done.json"):
        (folder := tmp_path/name.replace(".", "_")).mkdir()
        (folder/name).write_text('{"my": "file"}')
        assert refused(mrhd("train", "--preset", "tr_detr", *SMALL, "--out", folder), f"{folder}: holds {name}, which this program did not write")
        assert [path.name for path in folder.iterdir()] == [name] and (folder/name).read_text() == '{"my": "file"}'
    (tmp_path/"sweep").mkdir()
    (tmp_path/"sweep"/"runs.csv").write_text("mine")
    assert refused(mrhd("sweep", "smoke", "--out", tmp_path/"sweep"), "holds runs.csv") and (tmp_path/"sweep"/"runs.csv").read_text() == "mine"
    (tmp_path/"report.html").write_text("mine")
    assert refused(mrhd("demo", "--out", tmp_path), "report.html")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_stdout_cannot_show_is_shown_in_ascii(encoding, tmp_path):
    (tmp_path/"train.jsonl").write_text(json.dumps({"qid": 1, "query": "x", "duration": 20, "vid": "视频", "relevant_windows": [[2, 60]]}, ensure_ascii=False)+"\n", encoding="utf-8")
    stream = {"files": ["f/{vid}.npy"], "dim": 16}
    (tmp_path/"data.json").write_text(json.dumps({"name": "u", "dataset": "charades", "train": "train.jsonl", "streams": [stream | {"name": "f"}], "text": {"name": "w", "files": [], "dim": 16}}))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    doctor = mrhd("doctor", tmp_path/"data.json", env=environment)
    assert doctor.returncode == 1 and r"\u89c6\u9891" in doctor.stdout, doctor.stderr
    code = "from mrhd_nb.programs.cli import *; import mrhd_nb.programs.cli as cli; cli.answer = lambda _: print('▁▇ ± é') or 0; main(['notebooks'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode(encoding).split() == [".#", "+/-" if encoding == "ascii" else "±", r"\xe9" if encoding == "ascii" else "é"]


def test_words_that_the_locale_cannot_read_are_refused():
    "Python reads the bytes that its locale does not know as lone surrogates"
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert refused(mrhd("predict", "--example", "0", "--query", "ein Frühstück", env=environment), "set PYTHONUTF8=1")


def test_waiting_threads_sleep_unless_the_user_says_otherwise():
    "Importing the package sets it before torch is loaded, and leaves a value that is there"
    code = "import os, sys, mrhd_nb; assert 'torch' not in sys.modules; import mrhd_nb.programs.cli; print(os.environ['OMP_WAIT_POLICY'])"
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, said in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        assert subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True).stdout.strip() == said


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "mrhd_nb", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == mrhd("--version").stdout and done.stdout.startswith("mrhd_nb ")
    assert subprocess.run([sys.executable, "-m", "mrhd_nb", "trian"], capture_output=True).returncode == 2


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    "Ctrl-C reaches the kernel too; the state is kept, the unfinished run can be scored, and it goes on from there"
    code = "import sys; from mrhd_nb.programs.cli import main; sys.exit(main())"
    words = ["train", "--preset", "tr_detr", *SMALL, "--set", "training.epochs=500", "--set", "training.save_every=1", "--out", "a run"]
    with open(tmp_path/"err", "w") as err:
        process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, stderr=err, stdout=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        if "epoch 3/" in (tmp_path/"err").read_text() or process.poll() is not None: break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    status, said = process.wait(60), (tmp_path/"err").read_text()
    assert status == 130 and said.splitlines()[-1] == "mrhd: interrupted; go on with: mrhd train --resume 'a run'", said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    scored = mrhd("evaluate", "a run", cwd=tmp_path)
    assert scored.returncode == 0 and "a run: not finished; its best epoch so far is taken" in scored.stderr and "MR-full-mAP" in scored.stdout
    (tmp_path/"b run").mkdir()
    shutil.copy(tmp_path/"a run"/"config.json", tmp_path/"b run")
    assert "b run: no state was saved yet; starts with epoch 1" in mrhd("train", "--resume", "b run", "--set", "training.epochs=1", cwd=tmp_path).stderr
    with open(tmp_path/"err", "w") as err:
        process = subprocess.Popen([sys.executable, "-c", code, "train", "--resume", "a run"], cwd=tmp_path, stderr=err, stdout=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        if "goes on" in (tmp_path/"err").read_text() or process.poll() is not None: break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    assert re.search(r"^a run: goes on after epoch \d+ of 500, step \d+$", (tmp_path/"err").read_text(), re.M)


def tiny(folder, labels=6):
    "A data set of files with a test split of six queries, of which the last `labels` have labels"
    draw = np.random.default_rng(0)
    (folder/"f").mkdir(parents=True)
    for split, count in (("train", 16), ("test", 6)):
        lines = [{"qid": f"{split}{i}", "query": f"a person does thing {i}", "duration": 40, "vid": f"{split}{i//2}", "relevant_windows": [[4, 12]]} for i in range(count)]
        for line in lines: np.save(folder/"f"/f"{line['vid']}.npy", draw.standard_normal((20, 16), np.float32))
        if split == "test":
            for line in lines[:count-labels]: del line["relevant_windows"]
        (folder/f"{split}.jsonl").write_text("".join(json.dumps(line)+"\n" for line in lines))
    (folder/"data.json").write_text(json.dumps({"name": "tiny", "dataset": "charades", "train": "train.jsonl", "test": "test.jsonl", "max_clips": None, "round_to": None,
                                                "streams": [{"name": "f", "files": ["f/{vid}.npy"], "dim": 16}], "text": {"name": "w", "files": [], "dim": 16}}))
    return ["train", "--preset", "tr_detr", "--data", folder/"data.json", *(w for s in SIZES[3:] for w in ("--set", s)), "--out", folder/"run"]


def test_a_split_without_labels_is_answered_and_not_scored(tmp_path):
    done = mrhd(*tiny(tmp_path/"a", labels=0))
    assert done.returncode == 0 and done.stdout.startswith("not scored: the reported split has no labels"), done.stderr
    assert "Warning" not in done.stderr
    run = tmp_path/"a"/"run"
    assert len((run/"submission_last.jsonl").read_text().splitlines()) == 6 and json.loads((run/"metrics.json").read_text())["last"]["metrics"] is None
    scored = mrhd("evaluate", run)
    assert scored.returncode == 2 and scored.stderr.splitlines()[-1].endswith("split 'test' has no labels to score by")


def test_data_that_have_moved_are_named_anew(tmp_path):
    assert mrhd(*tiny(tmp_path/"a")).returncode == 0
    (tmp_path/"a").rename(tmp_path/"b")
    lost, run = mrhd("evaluate", tmp_path/"b"/"run"), tmp_path/"b"/"run"
    assert refused(lost, "test.jsonl: cannot be read", "where the data have moved: --set data.root=FOLDER")
    done = mrhd("evaluate", run, "--set", f"data.root={tmp_path/'b'}")
    assert done.returncode == 0 and json.loads(done.stdout) == json.loads((run/"metrics.json").read_text())["last"]["metrics"]["brief"], done.stderr


def test_what_would_end_a_run_at_its_end_is_refused_at_its_beginning(tmp_path):
    "A file of the test split that is missing, damaged or of another width, and labels that some of its queries lack"
    from mrhd_nb import run_config, train
    words = tiny(tmp_path/"a")
    (tmp_path/"a"/"f"/"test1.npy").unlink()
    done = mrhd(*words)
    assert done.returncode == 2 and "test1.npy: cannot be read" in done.stderr.splitlines()[-1], done.stderr
    def said(folder, hurt=lambda folder: None, labels=6):
        tiny(folder, labels)
        hurt(folder/"f")
        with pytest.raises(InputError) as caught: train(run_config("tr_detr", str(folder/"data.json"), overrides=SIZES[3:]), folder/"run", progress=False)
        return str(caught.value)
    assert "test2.npy: not a feature file" in said(tmp_path/"b", lambda f: (f/"test2.npy").write_bytes(b"x"))
    assert "9 channels" in said(tmp_path/"c", lambda f: np.save(f/"test0.npy", np.ones((20, 9), np.float32)))
    assert "test.jsonl:1: field 'relevant_windows': missing; other queries" in said(tmp_path/"d", labels=5)
    for run in tmp_path.glob("*/run"): assert not any((run/name).exists() for name in ("history.jsonl", "resume.pt", "best.safetensors"))


def test_diverged_training_names_itself(tmp_path):
    done = mrhd("train", "--preset", "tr_detr", *SMALL, "--set", "training.lr=1e30", "--out", tmp_path/"run")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("mrhd: training diverged in epoch 1 (steps done: 1): "), done.stderr
    assert "submission" not in done.stderr


DEAR = ("bench", "sweep", "demo")


def test_every_example_of_the_help_works(tmp_path, monkeypatch):
    "In an empty folder, as it stands but for the size of training; the dear ones are words that the parser takes"
    from mrhd_nb.programs.cli import command_line
    examples = packaged("examples.yaml")
    assert set(examples) == set(COMMANDS)
    for name, text in examples.items():
        place = tmp_path/("trained" if "mrhd train" in text else f"in {name}") # a finished run is not trained again
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert command_line().parse_args(shlex.split(text.splitlines()[-1])[1:]).command == name
        if name in DEAR: continue
        if name == "parity": shutil.copytree(os.path.join(os.path.dirname(__file__), "../golden"), place/"tests"/"golden")
        for line in text.replace("training.epochs=1", shlex.join(SMALL[1:])).splitlines():
            if line.startswith("mrhd "): assert main(shlex.split(line)[1:]) == 0, line
            else: subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True)
