"Where the features lie changes no bit of a training: folders, stores, memory; alone and as one of two processes"
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pytest
from mrhd_nb.annotations import Record, write_annotations
from mrhd_nb.checkpoints import read_tensors
from mrhd_nb.config import DataConfig, InputError, StreamConfig, override, rng, run_config, write_json
from mrhd_nb.store import pack
from mrhd_nb.training import train

SMALL = {"model.width": 16, "model.ffn": 16, "model.heads": 2, "model.encoder_layers": 1, "training.epochs": 2, "training.batch_size": 5,
         "training.eval_every": 1, "training.eval_batch_size": 4, "training.bucket": 2}


def bits(folder:Path)->dict[str, bytes]:
    "What a training ends with"
    found = {n: t.numpy().tobytes() for n, t in read_tensors(folder/"last.safetensors")[0].items()}
    return found | {n: (folder/n).read_bytes() for n in ("submission_best.jsonl", "submission_last.jsonl")}


@pytest.fixture(scope="module")
def features(tmp_path_factory)->Path:
    "Four videos of one to thirty clips, three queries of one to twelve tokens for each; a data file for the folder and one for its store"
    root, draw, lengths = tmp_path_factory.mktemp("features"), rng(0, "devices"), (30, 7, 1, 12)
    data = DataConfig("mine", "qvhighlights", (StreamConfig("clips", ("clips/{vid}.npy",), 6),), StreamConfig("words", ("words/{qid}.npy",), 5),
                      root=str(root), train="train.jsonl", val="train.jsonl", test="train.jsonl", max_clips=20, max_tokens=9)
    records = [Record(q, "words", 2*lengths[q%4], f"v{q%4}", ((0, 2),), (0,), ((1, 2, q%4),)) for q in range(12)]
    write_annotations(root/"train.jsonl", records)
    for folder, tables in {"clips": {f"v{i}": (n, 6) for i, n in enumerate(lengths)}, "words": {r.qid: (1+r.qid, 5) for r in records}}.items():
        (root/folder).mkdir()
        for name, shape in tables.items(): np.save(root/folder/f"{name}.npy", draw.standard_normal(shape).astype(np.float32))
    pack(data, root/"store")
    for name, store in (("folder", ""), ("store", "store")): write_json(root/f"{name}.json", asdict(replace(data, store=store)))
    return root


@pytest.mark.parametrize("source", ["folder", "store", "memory"])
def test_resident_features_train_the_same_bits(source, features, tmp_path):
    small = SMALL | ({"data.train_queries": 17, "data.val_queries": 9, "data.test_queries": 5} if source == "memory" else {})
    config = run_config("taskweave_both", "synthetic" if source == "memory" else str(features/f"{source}.json"), overrides=small)
    for name in ("plain", "resident"): train(override(config, {"training.resident": name == "resident"}), tmp_path/name, progress=False)
    assert bits(tmp_path/"plain") == bits(tmp_path/"resident")


def test_a_device_that_is_not_here_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="^device 'cuda:99': is not here; torch .* finds [0-9]+ GPUs and the processor$"):
        train(run_config("tr_detr", "synthetic"), tmp_path/"run", device="cuda:99", progress=False)
    assert not (tmp_path/"run").exists()
