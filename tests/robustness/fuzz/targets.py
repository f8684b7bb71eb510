"""What is fuzzed: each target takes bytes, hands them to a reader of this package, and lets nothing pass but a result or one clear line

A seed is a valid input; both the random edits of test_fuzz.py and the coverage-guided search of search.py begin with it."""
import io, json, tempfile, warnings
from dataclasses import asdict
from pathlib import Path
import numpy as np
from mrhd_nb.data.annotations import read_annotations
from mrhd_nb.learning.checkpoints import read_tensors
from mrhd_nb.model.released import read_released
from mrhd_nb.core.files import InputError, write_json
from mrhd_nb.core.config import StreamConfig, parse_overrides, read_config, to_dict
from mrhd_nb.core.presets import run_config
from mrhd_nb.data.features import UNPACKED_BYTES, load_array
from mrhd_nb.evaluation.metrics import evaluate
from mrhd_nb.learning.runs import read_history
from mrhd_nb.data.store import STORE_SCHEMA, Manifest, StoredStream, verify

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
        metrics = reads(path, evaluate, path, truth, dataset)
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


STORE = Manifest(STORE_SCHEMA, (StoredStream(StreamConfig("clip", ("clip/{vid}.npz",), 4), "float16", {"clip/a.npz": 9, "clip/b.npz": 2}, "0"*64),))


def manifest(data:bytes):
    written(data, "manifest.json")
    reads(SCRATCH, verify, SCRATCH)


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
    write_json(SCRATCH/"manifest.json", asdict(STORE))
    return {
        **{f"annotations_{n}": [lines(r), lines(r, r | {"qid": "other"})] for n, r in RECORDS.items()},
        **{f"submission_{n}": [lines(ANSWER | {"qid": r["qid"]})] for n, r in RECORDS.items()},
        "npz": [stored["npz"], stored["packed"]], "npy": [stored["npy"]], "overrides": [b"training.epochs=3,model.width=64", b'data.max_clips=null\nmodel.experts.mr="linear"'],
        "config": [json.dumps(to_dict(run_config("taskweave_both", "synthetic"))).encode()], "manifest": [(SCRATCH/"manifest.json").read_bytes()],
        "history": [lines({"epoch": 1, "terms": {"span": 1.5}})], "weights": [file_bytes({"a": torch.ones(2, 2)}, {"config": "{}"})], "released": [stored["ckpt"]]}


TARGETS = {
    **{f"annotations_{n}": annotations(n) for n in RECORDS}, **{f"submission_{n}": submission(n) for n in RECORDS},
    "npz": array("features"), "npy": array(""), "overrides": overrides, "config": config, "history": history,
    "manifest": manifest,
    "weights": weights, "released": released}
SEEDS = _seeds()
