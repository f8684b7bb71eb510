"Post-processing against the released implementation's own output"
import json
import pytest, torch
from mrhd_nb.data.annotations import Record
from mrhd_nb.data.batches import Batch
from mrhd_nb.core.config import DataConfig, Quirks, StreamConfig
from mrhd_nb.learning.answers import postprocess
from mrhd_nb.model.model import Prediction

DATA = DataConfig("golden", "qvhighlights", (StreamConfig("clip", (), 1),), StreamConfig("words", (), 1))


@pytest.fixture(scope="module")
def golden(shared): return json.loads((shared/"golden/postprocess.json").read_text())


@pytest.fixture(scope="module")
def answer(golden):
    "The stored outputs as a prediction, and a batch of the stored lengths"
    saliency, lengths = torch.tensor(golden["saliency_scores"]), torch.tensor(golden["valid_lengths"])
    mask = torch.arange(saliency.shape[1]) < lengths[:, None]
    records = tuple(Record(m["qid"], m["query"], m["duration"], m["vid"]) for m in golden["meta"])
    empty = torch.zeros(len(records), 1, 1)
    batch = Batch(empty, mask, empty, empty[..., 0].bool(), None, records, DATA.clip_length)
    return Prediction(torch.tensor(golden["pred_logits"])[None], torch.tensor(golden["pred_spans"])[None], saliency, mask), batch


@pytest.mark.parametrize("nms", [None, "0.5", "0.7"])
def test_released_postprocessing_is_reproduced(golden, answer, nms):
    expected = golden["expected"] if nms is None else golden["expected_after_nms"][nms]
    assert postprocess(*answer, data=DATA, quirks=Quirks(duration_scale=True), nms=None if nms is None else float(nms)) == expected


def test_corrected_windows_end_with_the_video(answer):
    prediction, batch = answer
    for line, record in zip(postprocess(prediction, batch, data=DATA), batch.records):
        assert all(0 <= s <= e <= record.duration for s, e, _ in line["pred_relevant_windows"])
