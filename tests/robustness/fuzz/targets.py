"""What is fuzzed: each target takes bytes, hands them to a reader of this package, and lets nothing pass but a result or one clear line

A seed is a valid input; both the random edits of test_fuzz.py and the coverage-guided search of search.py begin with it."""
import io, json, tempfile, warnings
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
from mrhd_nb.data.annotations import read_annotations
from mrhd_nb.learning.checkpoints import read_tensors
from mrhd_nb.model.released import read_released
from mrhd_nb.core.files import InputError
from mrhd_nb.core.config import StreamConfig, from_dict, parse_overrides, read_config, to_dict
from mrhd_nb.core.presets import run_config
from mrhd_nb.data.features import UNPACKED_BYTES, load_array
from mrhd_nb.data.joined import Joined, read_joined
from mrhd_nb.evaluation.metrics import evaluate
from mrhd_nb.learning.runs import read_history
from mrhd_nb.data.store import Hashes, Manifest, StoredStream, hash_json, read_manifest, verify, write_signed

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz"))
RECORDS = {
    "qvhighlights": {"qid": 1, "query": "a dog runs", "duration": 20, "vid": "v_0", "relevant_windows": [[2, 6]],
                     "relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2, 3], [4, 4, 0]]},
    "charades": {"qid": "q1", "query": "a door opens", "duration": 7.5, "vid": "w", "relevant_windows": [[0, 3.5]]},
    "tvsum": {"qid": 1, "query": "dog", "duration": 6, "vid": "d", "label": [[1, 2, 5]]*3, "domain": "DS"},
    "youtube": {"qid": 1, "query": "dog", "duration": 6, "vid": "d", "label": [[1], [0], [1]], "domain": "dog"}}
ANSWER = {"qid": 1, "query": "a dog runs", "vid": "v_0", "pred_relevant_windows": [[0, 4, 0.9], [2, 6, 0.5]], "pred_saliency_scores": [0.1]*10}


def lines(*values)->bytes: return "".join(json.dumps(v)+"\n" for v in values).encode()


def written(data:bytes, name:str)->Path:
    path = SCRATCH/name
    path.write_bytes(data)
    return path


def refused(error:InputError, path)->None:
    "A refusal is one line and names the file"
    said = str(error)
    assert "\n" not in said and "\r" not in said and len(said) < 2000 and (path is None or str(path) in said), said


def reads(path, reader, *arguments):
    "The result of a reader, or None where it refuses"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(*arguments)
    except InputError as e: refused(e, path)


def annotations(dataset:str):
    def target(data:bytes):
        path = written(data, "a.jsonl")
        records = reads(path, read_annotations, path, dataset)
        assert records is None or all(r.duration > 0 for r in records)
    return target


def submission(dataset:str):
    truth = SCRATCH/f"{dataset}.jsonl"
    truth.write_bytes(lines(RECORDS[dataset]))
    def target(data:bytes):
        path = written(data, "s.jsonl")
        metrics = reads(path, evaluate, dataset, path, truth)
        assert metrics is None or all(0 <= v <= 100 for v in metrics["brief"].values() if v == v), metrics["brief"]
    return target


def array(key:str):
    def target(data:bytes):
        path = written(data, "f.npz")
        found = reads(path, load_array, path, key)
        assert found is None or found.nbytes <= max(UNPACKED_BYTES, 100*len(data))
    return target


def overrides(data:bytes):
    text = data.decode("utf-8", "surrogateescape")
    for given in (text, text.split("\n")):
        changes = reads(None, parse_overrides, given)
        if changes: reads(None, lambda: run_config("tr_detr", "synthetic", overrides=changes))


def config(data:bytes):
    path = written(data, "config.json")
    reads(path, read_config, path)


STREAM = StoredStream("clip", "clip", ("clip/{vid}.npz",), 4, "float16", True, 2, 9, 5, Hashes("0"*64, "1"*64, "2"*64))
STORE = Manifest(1, "0.1.0", "d", 2., "3"*64, (STREAM,))


def signed(name:str, kind:type, reader, *more):
    "As it is, and with a hash that fits it, so that what the hash guards is reached too"
    def target(data:bytes):
        write_signed(SCRATCH/"manifest.json", STORE)
        path = written(data, name)
        reads(path, reader, SCRATCH)
        try: values = {k: v for k, v in json.loads(data).items() if k != "sha256"}
        except (ValueError, AttributeError, RecursionError): return
        made = reads(None, from_dict, kind, values)
        if made is None: return
        write_signed(path, made)
        for read in (reader, *more): reads(None, read, SCRATCH)
    return target


def history(data:bytes):
    path = written(data, "history.jsonl")
    reads(path, read_history, path)


def weights(data:bytes):
    path = written(data, "w.safetensors")
    found = reads(path, read_tensors, path)
    assert found is None or sum(t.nbytes for t in found[0].values()) <= len(data)


def released(data:bytes):
    path = written(data, "best.ckpt")
    found = reads(path, read_released, path)
    assert found is None or sum(t.untyped_storage().nbytes() for t in found.values()) <= 100*len(data)+(1<<20)


def _seeds()->dict[str, list[bytes]]:
    "Valid inputs of each target"
    import torch
    from mrhd_nb.learning.checkpoints import file_bytes
    table, buffers = np.arange(12, dtype=np.float32).reshape(3, 4), {n: io.BytesIO() for n in ("npz", "packed", "npy", "ckpt")}
    np.savez(buffers["npz"], features=table)
    np.savez_compressed(buffers["packed"], features=table, other=table.astype(np.float16))
    np.save(buffers["npy"], table.T)
    torch.save({"model": {"a": torch.ones(2), "b": torch.zeros(1, dtype=torch.int64)}, "epoch": 3}, buffers["ckpt"])
    stored = {n: b.getvalue() for n, b in buffers.items()}
    described = {"manifest": STORE, "joined": Joined(1, hash_json(asdict(STORE)), (StreamConfig("clip", STREAM.files, 4),), True, 75, replace(STREAM, part="joined", width=6, dtype="float32"))}
    for name, value in described.items(): write_signed(SCRATCH/f"{name}.json", value)
    return {
        **{f"annotations_{n}": [lines(r), lines(r, r | {"qid": "other"})] for n, r in RECORDS.items()},
        **{f"submission_{n}": [lines(ANSWER | {"qid": r["qid"]})] for n, r in RECORDS.items()},
        "npz": [stored["npz"], stored["packed"]], "npy": [stored["npy"]], "overrides": [b"training.epochs=3,model.width=64", b'data.max_clips=null\nmodel.experts.mr="linear"'],
        "config": [json.dumps(to_dict(run_config("taskweave_both", "synthetic"))).encode()], **{name: [(SCRATCH/f"{name}.json").read_bytes()] for name in described},
        "history": [lines({"epoch": 1, "terms": {"span": 1.5}})], "weights": [file_bytes({"a": torch.ones(2, 2)}, {"config": "{}"})], "released": [stored["ckpt"]]}


TARGETS = {
    **{f"annotations_{n}": annotations(n) for n in RECORDS}, **{f"submission_{n}": submission(n) for n in RECORDS},
    "npz": array("features"), "npy": array(""), "overrides": overrides, "config": config, "history": history,
    "manifest": signed("manifest.json", Manifest, read_manifest, verify), "joined": signed("joined.json", Joined, read_joined),
    "weights": weights, "released": released}
SEEDS = _seeds()
