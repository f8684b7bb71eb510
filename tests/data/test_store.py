"A packed store gives what its folder gives, bit for bit, and whatever goes wrong ends in one line and nothing half-written"
import json, os, resource, shutil, signal, threading
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pytest
import torch
from mrhd_nb.data import batches, features as module
from mrhd_nb.data.annotations import Record, write_annotations
from mrhd_nb.data.batches import MomentDataset, has_split, iterate, open_split, read_split
from mrhd_nb.programs.cli import main
from mrhd_nb.core.files import InputError, generator, rng, write_json
from mrhd_nb.core.testing import refusal
from mrhd_nb.core.config import StreamConfig
from mrhd_nb.core.presets import data_config, run_config
from mrhd_nb.data.features import FeatureFolder, read_stream
from mrhd_nb.data.store import PackedStore, open_features, pack, read_manifest, verify
from mrhd_nb.data.synthetic import make, write
from mrhd_nb.learning.training import shuffle_queries, train

VIDEOS = 6
LAYOUTS = ("qvhighlights", "qvhighlights_audio", "charades", "tvsum", "tvsum_audio", "youtube", "words by domain")


def save(path:Path, rows, key:str):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy": np.save(path, rows)
    else: np.savez_compressed(path, **{key: rows, "pooler_output": rows[0]})


def labelled(dataset:str, i:int, clips:int)->Record:
    "A record in a data set's own form; i odd: a second query of the video before"
    labels = {"tvsum": lambda: rng(i, "label").integers(1, 6, (clips, 20)), "youtube": lambda: rng(i, "label").integers(0, 2, (clips, 1)) | (np.arange(clips) < 1)[:, None]}
    fields = {"labels": labels[dataset]()} if dataset in labels else {"windows": ((0, 4), (6, 9))[:1+(dataset == "qvhighlights")]}
    if dataset == "qvhighlights": fields = {"windows": ((0, 4), (6, 10)), "clip_ids": (0, 1, 3, 4), "saliency": ((1, 2, 3), (4, 4, 4), (0, 1, 0), (2, 2, 2))}
    name = f"v{i//2*2}_{i//2*30}.0_x"
    return Record(name if dataset in labels else i, "a dog runs", clips*2, name, domain=("dog", "surfing")[i//2 % 2] if dataset in labels else None, dataset=dataset, **fields)


def folder(root:Path, layout:str):
    "A small folder in a released layout, rows of odd types and orders among them; its configuration and records"
    data = replace(data_config(layout if layout in LAYOUTS[:-1] else "youtube"), name="mine", root=str(root), annotations=(), train="train.jsonl", val="val.jsonl", test="")
    if layout == "words by domain": data = replace(data, text=StreamConfig("words", ("words/{domain}.npz",), 8, "token"))
    draw = rng(0, layout)
    records = [labelled(data.dataset, i, 8+3*(i//2*2)) for i in range(0, 2*VIDEOS, 1 if data.dataset in ("qvhighlights", "charades") else 2)]
    for n, record in enumerate(records):
        for s, stream in enumerate(data.streams):
            for f, file in enumerate(stream.files):
                rows = 5*draw.standard_normal((int(record.duration)//2-(s+f+n)%2, stream.dim//len(stream.files)))
                rows = (rows.astype(np.float16), rows, np.asfortranarray(rows.astype(np.float32)), rows.round().astype(np.int8))[n//2 % 4]
                save(root/file.format(vid=record.vid, qid=record.qid), rows, stream.key)
        for file in data.text.files:
            save(root/file.format(qid=record.qid, domain=record.domain), 3*draw.standard_normal((3+7*n % 40, data.text.dim)).astype(np.float16), data.text.key)
    write_annotations(root/"train.jsonl", records[:-2]); write_annotations(root/"val.jsonl", records[-2:])
    return data, records


def same(a, b):
    "Two batches are the same bits"
    tensors = lambda x: [x.video, x.clip_mask, x.tokens, x.token_mask, *x.targets.spans, x.targets.saliency, x.targets.positive, x.targets.negative, x.targets.relevant]
    return [r.qid for r in a.records] == [r.qid for r in b.records] and all(p.shape == q.shape and p.numpy().tobytes() == q.numpy().tobytes() for p, q in zip(tensors(a), tensors(b), strict=True))


def compare(data, records, exact:PackedStore, half:PackedStore, batch_size:int=5):
    "Every record alone and in batches; half precision within its stated error"
    files = FeatureFolder(data)
    for record in records:
        for kind in ("video", "tokens"):
            expected, rounded = getattr(files, kind)(record), getattr(half, kind)(record)
            assert getattr(exact, kind)(record).tobytes() == expected.tobytes(), (kind, record.qid)
            assert (np.abs(rounded.astype(float)-expected) <= np.maximum(2.**-11*np.abs(expected), 2.**-25)).all(), (kind, record.qid)
    order = {"generator": generator(3, "order"), "shuffle": True, "bucket": 2}
    for room in (batches.CACHE_BYTES, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "CACHE_BYTES", room)
            pairs = [list(iterate(MomentDataset(records, source, data), batch_size, **order | {"generator": generator(3, "order")})) for source in (files, exact)]
        assert all(map(same, *pairs)) and len(pairs[0]) == len(pairs[1]) == -(-len(records)//batch_size)


def contents(path:Path)->dict: return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    "A folder, its configuration and records, its store"
    root = tmp_path_factory.mktemp("packed")
    data, records = folder(root/"features", "qvhighlights")
    pack(data, root/"store")
    return data, records, root/"store"


@pytest.fixture
def copy(packed, tmp_path):
    "The same with a copy of the store, to be damaged"
    shutil.copytree(packed[2], tmp_path/"store")
    return *packed[:2], tmp_path/"store"


# The same tensors

@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_gives_what_its_folder_gives(tmp_path, layout):
    data, records = folder(tmp_path/"features", layout)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"features").rglob("*"))
    manifest = pack(data, tmp_path/"exact")
    pack(data, tmp_path/"half", dtype="float16")
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"features").rglob("*")) == before
    assert {p.name for p in tmp_path.iterdir()} == {"features", "exact", "half"}
    assert [s.stream for s in manifest.streams] == [*data.streams]+[data.text]*bool(data.text.files)
    shutil.move(tmp_path/"features", tmp_path/"moved")                                # nothing is read from the folder any more
    for changed in (data, replace(data, max_clips=9, max_tokens=4), replace(data, tef=False), replace(data, max_clips=None)):
        stores = [PackedStore(tmp_path/name, changed) for name in ("exact", "half")]
        compare(replace(changed, root=str(tmp_path/"moved")), records, *stores)


def test_every_real_feature(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    sample, video = shared/"features/qvhighlights_sample", shared/"features/charades_video"
    clip = data_config("charades_clip")
    cases = {name: data_config(name) for name in ("charades_clip", "tvsum_audio", "tvsum/BK")} | {
        "sample": replace(data_config("qvhighlights"), root=str(sample), train="annotations.jsonl", val="", test=""),
        "one video": replace(clip, root=str(video), train="annotations.jsonl", val="", test="", clip_length=2., streams=(StreamConfig("clip", ("clip_2s.npz",), 512, "features"),), text=StreamConfig("words", (), 16))}
    for name, data in cases.items():
        records = [r for split in ("train", "val", "test") if has_split(data, split) for r in read_split(data, split)]
        stores = [PackedStore(tmp_path/dtype/name, data) for dtype in ("float32", "float16")[:1+(len(records) < 100)] if pack(data, tmp_path/dtype/name, dtype=dtype)]
        assert sum(len(s.rows) for s in stores[0].manifest.streams) == {"charades_clip": 1334+3720, "tvsum_audio": 150, "tvsum/BK": 10, "sample": 3, "one video": 1}[name]
        verify(tmp_path/"float32"/name)
        if len(stores) == 2: compare(data, records, *stores)
        files, seen = FeatureFolder(data), set()
        for record in records:
            assert stores[0].tokens(record).tobytes() == files.tokens(record).tobytes()
            if record.vid in seen: continue
            assert stores[0].video(record).tobytes() == files.video(record).tobytes()
            seen.add(record.vid)


def test_training_from_a_store_gives_the_bits_of_the_folder(tmp_path):
    write(make(0, train=16, val=8), tmp_path/"features")
    data = replace(data_config("synthetic"), name="mine", root=str(tmp_path/"features"), train="highlight_train_release.jsonl", val="", test="highlight_val_release.jsonl")
    pack(data, tmp_path/"store")
    write_json(tmp_path/"mine.json", asdict(replace(data, store=str(tmp_path/"store"))))
    small = {"model.width": 16, "model.ffn": 16, "model.encoder_layers": 1, "training.epochs": 1, "training.batch_size": 8}
    for name, source in (("files", data), ("store", str(tmp_path/"mine.json"))): train(run_config("tr_detr", source, overrides=small), tmp_path/"runs"/name, progress=False)
    states = [torch.load(tmp_path/"runs"/name/"resume.pt", weights_only=True) for name in ("files", "store")]
    assert all(torch.equal(a, b) for a, b in zip(*(s["model"].values() for s in states), strict=True))
    assert (tmp_path/"runs/files/submission_last.jsonl").read_bytes() == (tmp_path/"runs/store/submission_last.jsonl").read_bytes()
    hashes = [json.loads((tmp_path/"runs"/name/"environment.json").read_text())["data"] for name in ("files", "store")]
    assert hashes[0] == hashes[1]


def test_queries_can_be_shuffled(packed):
    data, records, path = packed
    pair = [shuffle_queries(MomentDataset(records, source, data), 5) for source in (FeatureFolder(data), PackedStore(path, data))]
    assert all(same(a, b) for a, b in zip(*(iterate(dataset, 4) for dataset in pair), strict=True))


def test_validation_text_of_its_own(tmp_path):
    "Pre-training on subtitles: the same qid names a subtitle and a query"
    data, records = folder(tmp_path/"features", "qvhighlights")
    for record in records[:-2]: save(tmp_path/f"features/subs/qid{record.qid}.npz", np.full((2, 512), record.qid+1.), "last_hidden_state")
    queries, data = data.text, replace(data, text=replace(data.text, files=("subs/qid{qid}.npz",)), val_text=data.text.files)
    assert [s.stream.name for s in pack(data, tmp_path/"store").streams] == ["slowfast", "clip", "clip_text", "clip_text.val"]
    data = replace(data, store=str(tmp_path/"store"))
    for split, text in (("train", data.text), ("val", queries)):
        dataset, files = open_split(run_config("tr_detr", data, overrides={"training.select_on": "test"}), "train" if split == "train" else "test"), FeatureFolder(replace(data, text=text))
        for record in dataset.records: assert dataset.source.tokens(record).tobytes() == files.tokens(record).tobytes()
    (tmp_path/"features/subs/qid0.npz").unlink()
    assert f"subs/qid0.npz (for {tmp_path}/features/train.jsonl:1)" in refusal(pack, data, tmp_path/"again")


# Whole or not at all

@pytest.mark.parametrize("files", [3, 4, 9, 100])
def test_a_killed_pack_begins_again(packed, tmp_path, monkeypatch, capsys, files):
    "Killed after any file; the bytes are those of an undisturbed pack"
    data, _, whole = packed
    left = iter(range(files))

    def read(*arguments, **options):
        if next(left, None) is None: os.kill(os.getpid(), signal.SIGKILL)
        return read_stream(*arguments, **options)

    monkeypatch.setattr(module, "read_stream", read)
    if not (child := os.fork()):
        try: pack(data, tmp_path/"store")
        finally: os._exit(0)
    killed = files < 100
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL*killed
    assert (tmp_path/"store").exists() != killed == (tmp_path/"store.partial").exists()
    monkeypatch.undo()
    if killed: pack(data, tmp_path/"store")
    assert capsys.readouterr().out == f"{tmp_path}/store.partial: left by an interrupted pack; begins again\n"*killed
    assert contents(tmp_path/"store") == contents(whole) and [p.name for p in tmp_path.iterdir()] == ["store"]


def test_two_packs_at_once(packed, tmp_path, monkeypatch):
    data, _, whole = packed
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        inside.set()
        assert go_on.wait(60)
        return read_stream(*arguments, **options)

    monkeypatch.setattr(module, "read_stream", slow)
    first = threading.Thread(target=pack, args=(data, tmp_path/"store"))
    first.start()
    assert inside.wait(60)
    try: assert "another process" in refusal(pack, data, tmp_path/"store")
    finally: go_on.set(); first.join()
    assert contents(tmp_path/"store") == contents(whole) and "is already there" in refusal(pack, data, tmp_path/"store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("room", [1000, 300_000, 3_000_000])
def test_a_full_disk(packed, tmp_path, room):
    "A limit on the size of a file makes the system refuse to write more, in the middle of a file"
    data, _, whole = packed
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try: said = refusal(pack, data, tmp_path/"store") if room < max(p.stat().st_size for p in whole.iterdir()) else pack(data, tmp_path/"store") and "large"
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "large" in said and (tmp_path/"store").exists() == (room == 3_000_000)
    if not (tmp_path/"store").exists(): pack(data, tmp_path/"store")
    assert contents(tmp_path/"store") == contents(whole) and [p.name for p in tmp_path.iterdir()] == ["store"]


def test_every_missing_file_is_named_with_its_record(tmp_path):
    data, records = folder(tmp_path/"features", "tvsum")
    gone = sorted((tmp_path/"features/video_features").glob("*_opt.npy"))[:2]
    for path in gone: path.unlink()
    said = refusal(pack, data, tmp_path/"store")
    assert said.startswith("2 files are missing: ") and not (tmp_path/"store").exists()
    for path in gone:
        record = next(r for r in records if r.vid == path.name.removesuffix("_opt.npy"))
        where = f"train.jsonl:{records.index(record)+1}" if record in records[:-2] else f"val.jsonl:{records[-2:].index(record)+1}"
        assert f"{path} (for {tmp_path}/features/{where})" in said


def test_a_damaged_source_is_named(tmp_path, capsys):
    data, _ = folder(tmp_path/"features", "tvsum")
    write_json(tmp_path/"mine.json", asdict(data))
    victim = next((tmp_path/"features/video_features").glob("*_opt.npy"))
    content = victim.read_bytes()
    for damaged, says in ((content[:-7], "not a feature file"), (content[:-2]+b"\xff\x7f", "not finite"), (b"", "not a feature file")):
        victim.write_bytes(damaged)
        assert main(["pack", str(tmp_path/"mine.json"), "--out", str(tmp_path/"store")]) == 2
        said = capsys.readouterr().err
        assert victim.name in said and says in said and said.count("\n") == 1 and not (tmp_path/"store").exists()
    victim.write_bytes(content)
    assert pack(data, tmp_path/"store") == verify(tmp_path/"store")


# Damage

@pytest.mark.parametrize("name", ["slowfast.npy", "clip_text.npy"])
def test_a_damaged_byte_is_found_and_named(copy, name, capsys):
    data, _, store = copy
    content = (store/name).read_bytes()
    for at in (0, 20, 70, 128, len(content)//2, len(content)-1):
        (store/name).write_bytes(content[:at]+bytes([content[at] ^ 4])+content[at+1:])
        assert f"damaged: {name};" in refusal(verify, store)
    assert main(["pack", "--verify", "--out", str(store)]) == 2 and name in capsys.readouterr().err
    for wrong in (content[:-1], content[:100], b""):
        (store/name).write_bytes(wrong)
        assert name in refusal(PackedStore, store, data) and name in refusal(verify, store)
    (store/name).unlink()
    assert name in refusal(PackedStore, store, data) and name in refusal(verify, store)
    (store/name).write_bytes(content)
    assert verify(store) == read_manifest(store)


def test_damage_of_several_files_is_named_at_once(copy):
    for name in ("slowfast.npy", "clip.npy"): os.truncate(copy[2]/name, 200)
    assert "damaged: slowfast.npy, clip.npy; pack again" in refusal(verify, copy[2])


def test_a_broken_manifest_never_raises_anything_else(copy):
    data, records, store = copy
    path, draw = store/"manifest.json", rng(0, "fuzz")
    content, expected = path.read_bytes(), PackedStore(store, data).video(records[0])
    for _ in range(400):
        wrong = bytearray(content)
        for at in draw.integers(len(content), size=draw.integers(1, 4)): wrong[at] = draw.integers(256)
        if draw.random() < .3: wrong = wrong[:draw.integers(len(wrong))]
        path.write_bytes(wrong)
        try: found = PackedStore(store, data).video(records[0])
        except InputError as e: assert str(store) in str(e)
        else: assert (found == expected).all()                                        # another key or hash, or white space


def test_a_manifest_that_lies_is_refused(copy):
    data, records, store = copy
    path = store/"manifest.json"
    whole = json.loads(path.read_text())
    odd = [0, -1, 1, 7, 1 << 61, 1 << 80, 1.5, "", "clip", "../clip", "/etc/passwd", None, True, [], {}, ["{vid}"], "float16", {"a": 7}, {"a": "7"}, {"a": None}, {"a": [1]}]
    for number, stream in enumerate(whole["streams"]):
        for name in stream:
            for value in odd:
                if stream[name] == value: continue
                path.write_text(json.dumps(whole | {"streams": [s | {name: value} if i == number else s for i, s in enumerate(whole["streams"])]}))
                assert str(store) in refusal(lambda: [PackedStore(store, data), verify(store)]), (name, value)
    for schema in (0, 1, "2", None):                                                  # 1: a store of version 0.5
        path.write_text(json.dumps(whole | {"schema": schema}))
        assert f"{path}: field 'schema': is not 2; pack the features again" == refusal(PackedStore, store, data) == refusal(verify, store)


def test_a_batch_may_be_changed_and_the_store_may_not(copy):
    data, records, store = copy
    source = PackedStore(store, data)
    before = contents(store)
    source.video(records[0])[:] = 7
    source.tables[data.streams[0]][f"slowfast_features/{records[0].vid}.npz"][:] = 7
    assert contents(store) == before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_rows_of_a_store_are_not_memory_of_the_process(tmp_path):
    "The private memory of a mapped table stays small however many rows are read: the system can take their pages back"
    def private(path:Path)->int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
        return sum(1024*int(next(line for line in lines[i:] if line.startswith("Anonymous:")).split()[1]) for i in starts)

    draw, root, videos = rng(0, "memory"), tmp_path, 480
    (root/"clip").mkdir(parents=True)
    records = [Record(i, "a dog", 20, str(i), ((0, 2),), dataset="charades") for i in range(videos)]
    for i in range(videos): np.save(root/f"clip/{i}.npy", draw.standard_normal((20, 128), np.float32))
    write_annotations(root/"train.jsonl", records)
    data = replace(data_config("charades_clip"), root=str(root), annotations=(), streams=(StreamConfig("clip", ("clip/{vid}.npy",), 128),), text=StreamConfig("words", (), 4), train="train.jsonl", val="", test="")
    pack(data, root/"store")
    source = open_features(replace(data, store="store"))
    for record in records: source.video(record)
    assert (root/"store/clip.npy").stat().st_size > videos*20*128*4 and private(root/"store/clip.npy") < 1 << 17


# The command

def test_the_command_packs_checks_and_trains(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    out = str(tmp_path/"BK")
    for words in (["pack", "tvsum/BK", "--out", out, "--verify"], ["pack", "--out", out, "--verify"]): assert main(words) == 0
    said = capsys.readouterr().out
    assert "as it was packed" in said and "i3d" in said and "5 items" in said and f"data.store={out}" in said
    assert main(["pack", "tvsum/BK", "--out", out]) == 2 and "is already there" in capsys.readouterr().err
    assert main(["pack", "tvsum/XX", "--out", str(tmp_path/"XX")]) == 2 and "XX" in capsys.readouterr().err and not (tmp_path/"XX").exists()
    datasets = [open_split(run_config("tr_detr", "tvsum/BK", overrides={"data.store": store}), "test") for store in ("", out)]
    assert same(*(next(iterate(dataset, 9)) for dataset in datasets)) and isinstance(datasets[1].source, PackedStore)


def test_pack_names_a_split_that_is_not_there_and_writes_nowhere_else(tmp_path, capsys):
    data, _ = folder(tmp_path/"data", "charades")
    given = json.loads(json.dumps(asdict(data)))
    def packs(**changes): # status, what was said
        (tmp_path/"data.json").write_text(json.dumps(given | changes))
        status = main(["pack", str(tmp_path/"data.json"), "--out", str(tmp_path/"store")])
        return status, "".join(capsys.readouterr())
    status, said = packs(streams=[given["streams"][0] | {"name": "../outside"}, *given["streams"][1:]])
    assert status == 2 and "data.json.streams[0]: field 'name': '../outside' cannot name a file" in said and len(said.splitlines()) == 1
    for field in ("dim", "files"):
        status, said = packs(text={k: v for k, v in given["text"].items() if k != field})
        assert status == 2 and f"data.json.text: field '{field}': missing" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "data.json"]
    status, said = packs(train="trian.jsonl")
    assert status == 0 and f"train is left out: no file {tmp_path}/data/trian.jsonl" in said and "val is left out" not in said
