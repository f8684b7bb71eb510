"The exported graph and torch give the same numbers at every length and batch size, padded or not"
import onnx, onnxruntime, pytest, torch
from mrhd_nb.core.files import generator
from mrhd_nb.core.testing import small_model
from mrhd_nb.model.model import MomentModel
from mrhd_nb.inference.onnx import ONNX_AXES, OPSET, write_onnx
from mrhd_nb.model.model import TensorModel


@pytest.mark.parametrize("name", ["taskweave_both", "tr_detr"])
def test_graph_equals_torch_from_1_to_300_clips(tmp_path, name):
    "As corrected; tests/learning/test_exchange.py exports a released model"
    draw = generator(3, name)
    config = small_model(name, encoder_layers=1, fusion_layers=1) # fewer nodes to trace
    model = MomentModel(config, draw).eval()
    for p in model.parameters(): p.data += .05*torch.randn(p.shape, generator=draw)
    # In a process of its own: torch's exporter keeps state, and after certain other tests it took the length that TR-DETR's GRU reads for fixed
    process = torch.multiprocessing.get_context("spawn").Process(target=write_onnx, args=(model, tmp_path/"m.onnx", {"preset": name}))
    process.start(), process.join()
    assert process.exitcode == 0
    graph = onnx.load(tmp_path/"m.onnx")
    onnx.checker.check_model(graph)
    assert [o.version for o in graph.opset_import if not o.domain] == [OPSET]
    session, plain, apart = onnxruntime.InferenceSession(tmp_path/"m.onnx"), TensorModel(model), 0.
    for batch, clips, tokens in ((1, 1, 1), (1, 2, 3), (3, 7, 2), (2, 12, 6), (5, 75, 32), (1, 151, 1), (2, 300, 40)):
        real = [torch.arange(n) < torch.tensor([[n], [-(-n//2)]*(batch > 1)][:batch]+[[n]]*(batch-2)) for n in (clips, tokens)]
        video, words = (torch.randn(batch, n, dim, generator=draw) for n, dim in ((clips, config.video_dim), (tokens, config.text_dim)))
        inputs = video*real[0][...,None], real[0], words*real[1][...,None], real[1]
        with torch.no_grad(): expected = plain(*inputs)
        found = session.run(None, {n: x.numpy() for n, x in zip(ONNX_AXES, inputs)})
        kept = [torch.ones(x.shape, dtype=bool) for x in expected[:2]]+[real[0]]
        apart = max(apart, *(float((torch.tensor(a)-b)[k].abs().max()) for a, b, k in zip(found, expected, kept)))
        assert all(a.shape == b.shape for a, b in zip(found, expected))
    print(f"{name}: {apart:.1e}")
    assert apart < 2e-5
