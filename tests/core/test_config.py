"Configurations: whatever is wrong is refused by name, and plain data comes back as the same value"
import dataclasses, json
import pytest
from mrhd_nb.core.config import (
    DataConfig, FeedbackConfig, ModelConfig, RunConfig, StreamConfig, TrainingConfig, data_path, from_dict, override,
    parse_config, parse_overrides, to_dict)
from mrhd_nb.core.presets import DATA, PRESETS, data_config, run_config
from mrhd_nb.core.testing import refusal

CLIP = StreamConfig("clip", ("clip/{vid}.npz",), 512, "features")


@pytest.mark.parametrize("kind, values, words", [
    (ModelConfig, {"width": "64"}, ("config.width", "'64'", "int")), (ModelConfig, {"width": True}, ("width", "int")),
    (ModelConfig, {"experts": 3}, ("config.experts", "ExpertConfig")), (ModelConfig, {"experts": {"mr": "x"}}, ("config.experts", "'mr'")),
    (ModelConfig, {"heads": 3}, ("'width'", "multiple")), (ModelConfig, {"dropout": float("nan")}, ("'dropout'", "nan")),
    (TrainingConfig, {"lr": 10**400}, ("lr", "float")), (TrainingConfig, {"ema_decay": 1.}, ("ema_decay",)),
    (TrainingConfig, {"losses": {"margn": 1.}}, ("config.losses", "'margn'", "margin")),
    (FeedbackConfig, {"start": float("inf")}, ("'start'",)), (FeedbackConfig, {"kind": None}, ("kind", "str")),
    (StreamConfig, {"name": "a"}, ("'files': missing",)), (StreamConfig, {"name": "a", "files": [3], "dim": 1}, ("config.files[0]", "str")),
    (StreamConfig, {"name": "a", "files": [], "dim": 0}, ("'dim'",)), (StreamConfig, [], ("StreamConfig", "[]")),
    (DataConfig, {"name": "a", "dataset": "tacos", "streams": [dataclasses.asdict(CLIP)], "text": dataclasses.asdict(CLIP)}, ("'dataset'", "charades")),
    (DataConfig, {"name": "a", "dataset": "tvsum", "streams": [], "text": dataclasses.asdict(CLIP)}, ("'streams'", "empty"))])
def test_what_is_wrong_is_named(kind, values, words):
    said = refusal(from_dict, kind, values)
    assert said.startswith("config") and all(w in said for w in words), said


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "a\n"])
def test_a_stream_names_a_file(name): assert "name a file" in refusal(StreamConfig, name, ("x",), 4)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_run_comes_back_from_json(preset, data):
    for fidelity in ("corrected", "released"):
        config = run_config(preset, data, seed=3, fidelity=fidelity)
        assert parse_config(json.loads(json.dumps(to_dict(config)))) == config
        assert config.model.video_dim == config.data.video_dim and config.data.first_window == config.data.floored_windows == (fidelity == "released")


@pytest.mark.parametrize("text, words", [("width", ("'width'", "NAME=VALUE")), ("=3", ("NAME=VALUE",)), ("a=1,,b=2", ("NAME=VALUE",))])
def test_what_is_no_override(text, words): assert all(w in refusal(parse_overrides, text) for w in words)


@pytest.mark.parametrize("name, value, words", [
    ("model.wdth", 3, ("wdth", "width")), ("epochs", 3, ("'epochs'", "training")), ("training.epochs", 2.5, ("training.epochs", "int")),
    ("training.epochs.x", 2, ("no fields",)), ("model.width", 30, ("'width'", "30")), ("data.streams", "clip", ("data.streams", "tuple")),
    ("fidelity", "half", ("'fidelity'", "released"))])
def test_overrides_that_do_not_fit(name, value, words):
    said = refusal(run_config, "tr_detr", "synthetic", overrides={name: value})
    assert all(w.split(".")[-1] in said for w in words), said


def test_changes_are_checked_together():
    "Each alone would be refused"
    config = override(ModelConfig(), {"width": 60, "heads": 6, "experts.mr": "linear", "experts": {"hd": "cnn"}})
    assert (config.width, config.heads, config.experts.mr, config.experts.hd) == (60, 6, "linear", "cnn")
    assert "multiple" in refusal(override, ModelConfig(), {"heads": 6})


def test_another_schema_says_what_to_do():
    values = to_dict(run_config("tr_detr", "synthetic"))
    for schema in (0, 2, "1", None): assert "'schema'" in (said := refusal(parse_config, values | {"schema": schema}, "config.json")) and "make the run again" in said
    for wrong in ([], None, "x"): assert "config.json" in refusal(parse_config, wrong, "config.json")
    del values["preset"]
    assert refusal(parse_config, values, "config.json") == "config.json: field 'preset': missing"


def test_a_path_without_its_variable_says_so(monkeypatch):
    monkeypatch.delenv("MRHD_DATA", raising=False)
    assert "MRHD_DATA" in refusal(data_path, data_config("charades"), "x.jsonl")
    monkeypatch.setenv("MRHD_DATA", "/elsewhere")
    assert str(data_path(data_config("charades"))) == "/elsewhere/charades"


def test_a_run_config_is_hashable_and_frozen():
    config = run_config("tr_detr", "synthetic")
    assert isinstance(config, RunConfig) and hash(config) == hash(run_config("tr_detr", "synthetic"))
    with pytest.raises(dataclasses.FrozenInstanceError): config.seed = 1
