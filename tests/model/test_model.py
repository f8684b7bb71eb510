"The model against the released implementation's numbers, and each sample's independence of its batch"
import json
from dataclasses import replace
from functools import lru_cache
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from mrhd_nb.core.presets import PRESETS, preset
from mrhd_nb.core.config import ExpertConfig, Quirks, override
from mrhd_nb.core.files import generator
from mrhd_nb.core.testing import small_model
from mrhd_nb.data.batches import Batch, planted_batch
from mrhd_nb.model.layers import clip_positions, drop, max_pool, prelu
from mrhd_nb.model.model import MomentModel
from mrhd_nb.model.released import UNUSED_KEYS, WEIGHTING_KEYS, released_names

SIZES = {"model.video_dim": 10, "model.text_dim": 8, "model.width": 32, "model.heads": 4, "model.ffn": 48}


def golden_model(meta:dict, arrays)->MomentModel:
    "The model that a golden file describes, with its weights"
    cfg, taskweave = meta["cfg"], meta["kind"] == "tw"
    quirks = replace(Quirks.released(), tiled_attention_mask=not meta["mask_fix"])
    config = replace(preset(f"taskweave_{meta['feedback']}" if taskweave else "tr_detr").model, quirks=quirks,
        video_dim=arrays["in/src_vid"].shape[-1], text_dim=arrays["in/src_txt"].shape[-1], width=cfg["hidden_dim"], heads=cfg["nheads"],
        ffn=cfg["dim_feedforward"], fusion_layers=cfg["enc_layers"], encoder_layers=cfg["enc_layers"], decoder_layers=cfg["dec_layers"],
        moment_queries=cfg["num_queries"], dropout=cfg["dropout"], input_dropout=cfg["input_dropout"])
    model, names = MomentModel(config), released_names(config)
    assert {k[6:] for k in arrays if k.startswith("param/")} == {*names.values(), *UNUSED_KEYS, *(WEIGHTING_KEYS if taskweave else ())}
    model.load_state_dict({own: torch.from_numpy(arrays[f"param/{key}"]) for own, key in names.items()})
    return model.eval()


def golden_outputs(prediction)->dict:
    "A prediction under the keys of a golden file"
    p = prediction
    outputs = {"pred_logits": p.final_logits, "pred_spans": p.final_spans, "saliency_scores": p.saliency}
    for k in range(len(p.logits)-1): outputs |= {f"aux_{k}/pred_logits": p.logits[k], f"aux_{k}/pred_spans": p.spans[k]}
    if p.negative_saliency is not None: outputs["saliency_scores_neg"] = p.negative_saliency
    if p.taps is not None:
        outputs |= {"src_vid_ed": p.taps.clips, "src_txt_ed": p.taps.tokens, "src_vid_cls_ed": p.taps.clip_pool, "src_txt_cls_ed": p.taps.token_pool}
    return {f"out/{k}": v for k, v in outputs.items()} | {"out/video_mask": p.clip_mask.float()}


@pytest.mark.parametrize("maps", (False, True))
def test_golden_outputs(shared, maps):
    files = sorted((shared/"golden").glob("*.npz"))
    assert files
    for file in files:
        arrays = dict(np.load(file))
        meta = json.loads(str(arrays["meta"]))
        clips, clip_mask, tokens, token_mask = (torch.from_numpy(arrays[f"in/src_{k}"]) for k in ("vid", "vid_mask", "txt", "txt_mask"))
        batch = Batch(clips, clip_mask > 0, tokens, token_mask > 0, None, (), 2.)
        model = golden_model(meta, arrays)
        on = meta["epoch_i"] is None or meta["epoch_i"] >= 100
        with torch.no_grad(): outputs = golden_outputs(model(batch, feedback=on, negatives=model.config.negative_pairs, maps=maps))
        assert outputs.keys() == {k for k in arrays if k.startswith("out/")}, file.name
        for key, value in outputs.items(): assert np.abs(value.numpy()-arrays[key]).max() < 1e-5, (file.name, key)


@lru_cache
def shaken(name:str, site:str, seed:int)->MomentModel:
    "A small model whose weights are random, not only the first ones"
    model = MomentModel(override(preset(name), SIZES | {"model.feedback.site": site}), generator(seed, "model")).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()): p.add_(.1*torch.randn(p.shape, generator=generator(seed, "shake", i)))
    return model


def random_batch(lengths:list[int], words:list[int], seed:int)->Batch:
    g, L, T = generator(seed, "batch"), max(lengths), max(words)
    clip_mask, token_mask = (torch.arange(n) < torch.tensor(x)[:,None] for n, x in ((L, lengths), (T, words)))
    video, tokens = torch.randn(len(lengths), L, 10, generator=g), torch.randn(len(words), T, 8, generator=g)
    return Batch(video*clip_mask[...,None], clip_mask, tokens*token_mask[...,None], token_mask, None, (), 2.)


samples = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 12)), min_size=2, max_size=4)

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([*((name, "input") for name in PRESETS), ("taskweave_both", "memory")]), samples, st.integers(0, 3))
def test_a_sample_does_not_depend_on_its_batch(system, samples, seed):
    model, (lengths, words) = shaken(*system, seed), zip(*samples)
    batch = random_batch(lengths, words, seed)
    with torch.no_grad():
        whole = model(batch)
        for i, (n, t) in enumerate(samples):
            one = model(Batch(batch.video[i:i+1,:n], batch.clip_mask[i:i+1,:n], batch.tokens[i:i+1,:t], batch.token_mask[i:i+1,:t], None, (), 2.))
            for a, b in ((one.logits[:,0], whole.logits[:,i]), (one.spans[:,0], whole.spans[:,i]), (one.saliency[0], whole.saliency[i,:n])):
                assert a.isfinite().all() and (a-b).abs().max() < 1e-5


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("fidelity", ("corrected", "released"))
def test_one_clip_and_one_word(name, fidelity):
    model = MomentModel(override(preset(name, fidelity), SIZES), generator(0, "model"))
    prediction = model(random_batch([1], [1], 0))
    assert all(x.isfinite().all() for x in (prediction.logits, prediction.spans, prediction.saliency))
    prediction.spans.sum().backward()


def test_a_moment_that_starts_below_zero_scores_like_one_at_zero():
    for name in ("tr_detr", "taskweave_mr2hd"):
        model, batch, scores = shaken(name, "input", 0), random_batch([9, 6], [4, 4], 0), []
        for centre, width in ((.1, .6), (.2, .4)): # both end at 0.4; the first starts at -0.2
            spans = torch.tensor([centre, width]).expand(2, 2, 10, 2)
            handle = model.moment_head.register_forward_hook(lambda module, inputs, output: (output[0], spans))
            with torch.no_grad(): scores.append(model(batch).saliency)
            handle.remove()
        torch.testing.assert_close(*scores)


def shake(model:MomentModel)->MomentModel:
    "Random weights instead of initial ones"
    with torch.no_grad():
        for i, p in enumerate(model.parameters()): p.add_(.1*torch.randn(p.shape, generator=generator(0, "shake", i)))
    return model


def build(name:str, fidelity:str="corrected", **changes)->MomentModel:
    "A small model with random weights"
    return shake(MomentModel(small_model(name, fidelity, **changes), generator(0, "model"))).eval()


@pytest.mark.parametrize("name", PRESETS)
def test_samples_that_share_a_video_get_what_each_gets_alone(name):
    "The video is projected once"
    batch = planted_batch()
    shared = replace(batch, video=batch.video[:2], clip_mask=batch.clip_mask[[0, 1, 0]], video_index=torch.tensor([0, 1, 0]), targets=None)
    apart = replace(shared, video=shared.per_sample(shared.video), video_index=None)
    model, projected = build(name), []
    model.video_projection.register_forward_hook(lambda part, given, made: projected.append(len(given[0])))
    one, three = model(shared), model(apart)
    assert projected == [2, 3]
    for a, b in ((one.logits, three.logits), (one.spans, three.spans), (one.saliency, three.saliency)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("feedback", (False, True))
@pytest.mark.parametrize("name", PRESETS)
def test_scores_alone_are_the_same_scores(name, feedback):
    "Nothing that leads to the moments is computed where the scores do not read them"
    batch, model = planted_batch(), build(name)
    scores = model(batch, feedback=feedback, moments=False)
    torch.testing.assert_close(scores.saliency, model(batch, feedback=feedback).saliency)
    reads = feedback and name != "taskweave_hd2mr"                     # MR->HD feedback
    assert (scores.logits is None) == (scores.spans is None) == (not reads)
    scores.saliency.sum().backward()
    unread = [n for n, p in model.named_parameters() if n.startswith(("decoder", "moment_head", "encoder.mr_")) and p.grad is not None]
    assert reads or not unread


def test_a_second_pass_is_the_only_one_that_needs_moments():
    "Binary HD->MR feedback at the input: the first pass stops at the scores, the second at the memory"
    model, asked = build("taskweave_hd2mr"), []
    for name in ("mr_map", "hd_map"):
        getattr(model.encoder, name).register_forward_hook(lambda *_, name=name: asked.append(name))
    model(planted_batch())
    assert asked == ["hd_map", "mr_map"]


def test_words_are_projected_once():
    "For the pass, for a second pass after feedback and for negative pairs"
    model, asked = build("taskweave_both"), []
    attention = model.fusion.layers[0].attention
    project = attention.project
    attention.project = lambda x, parts: asked.append(parts) or project(x, parts)
    model.train()(planted_batch())
    assert sorted(asked) == ["kv", "q", "q", "q"]


def learned(name:str, fidelity:str="corrected")->dict[str, float]:
    "Largest gradient of every parameter"
    batch, model = planted_batch(), build(name, fidelity)
    p = model(batch, negatives=True)
    parts = p.logits, p.spans, p.saliency[batch.clip_mask], p.negative_saliency, p.proposal_logits, p.proposal_spans, p.existence
    sum(x.square().sum() for x in parts if x is not None).backward()
    return {n: 0. if q.grad is None else float(q.grad.abs().max()) for n, q in model.named_parameters()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_gradient_reaches_every_parameter(name):
    "But for the first layer's attention among queries, which meets them before they have read anything"
    assert all(g > 0 for n, g in learned(name).items() if not n.startswith("decoder.layers.0.queries"))


def test_the_expert_learns_unless_it_is_the_released_one():
    conv = "encoder.mr_expert.conv.weight"
    assert learned("taskweave_mr2hd")[conv] > 1e-6 and learned("taskweave_mr2hd", "released")[conv] == 0


@pytest.mark.parametrize("experts", (ExpertConfig("transformer", "cnn"), ExpertConfig("linear", "linear"), ExpertConfig("identity", "transformer")))
def test_other_sizes_and_experts(experts):
    config = small_model("taskweave_both", decoder_layers=3, fusion_layers=1, moment_queries=1, width=24, heads=3)
    batch, model = planted_batch(), shake(MomentModel(replace(config, experts=experts))).eval()
    p = model(batch, maps=True)
    assert p.logits.shape == (3, 3, 1, 2) and p.maps.text_to_video.shape == (1, 3, 12, 6)
    torch.testing.assert_close(model(batch).saliency, p.saliency)      # with and without maps


def test_float64():
    batch, model = planted_batch(), build("tr_detr")
    single = model(batch).spans
    double = model.double()(replace(batch, video=batch.video.double(), tokens=batch.tokens.double()))
    torch.testing.assert_close(double.spans.float(), single)


@pytest.mark.parametrize("name", PRESETS)
def test_bfloat16(name):
    "Whatever leaves the model is float32, gradients as well, and near what float32 gives"
    batch, run = planted_batch(), override(preset(name), {"training.precision": "bfloat16"})
    exact, half = (MomentModel(c, generator(0, "model")).eval() for c in (small_model(name), replace(run, model=small_model(name))))
    assert exact.precision == "float32" and half.precision == "bfloat16"
    # with initial weights, rounding decides which moment is best, and the scores of TR-DETR depend on it
    a, b = (m(batch, negatives=True, maps=True, feedback=False) for m in (exact, half))
    shown = [v for v in vars(b.maps).values() if v is not None]
    shown += [x for x in (b.negative_saliency, b.proposal_spans, b.existence, b.negative_existence) if x is not None]
    assert all(x.dtype == torch.float32 for x in (b.logits, b.spans, b.saliency, *shown))
    alike = torch.corrcoef(torch.stack([p.saliency[batch.clip_mask].detach() for p in (a, b)]))[0,1]
    assert .99 < alike < 1 and (a.spans.sort(2).values-b.spans.sort(2).values).abs().max() < .001 # rounding may change their order
    (b.saliency.sum()+b.logits.sum()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters() if p.grad is not None)
    assert torch.equal(half(batch).saliency, half(batch).saliency)


def test_the_fast_formulations_compile_to_the_plain_ones():
    "`torch.compile` gets PyTorch's dropout and PReLU, and pools and places videos of any length"
    compiled = lambda function: torch.compile(function, backend="eager", fullgraph=True, dynamic=True)
    ones, slope = torch.ones(1000, 401), torch.tensor([.25])
    dropped = compiled(drop)(ones, .1)
    assert abs((dropped == 0).float().mean()-26/256) < 2e-3 and dropped.unique().tolist() == drop(ones, .1).unique().tolist()
    assert torch.equal(compiled(prelu)(-ones, slope), prelu(-ones, slope))
    x, mask = torch.randn(2, 8, 3, generator=generator(0, "pool")), torch.arange(8) < torch.tensor([[8], [5]])
    assert torch.equal(compiled(max_pool)(x, mask), max_pool(x, mask))
    assert torch.equal(compiled(clip_positions)(mask, 4), clip_positions(mask, 4))


def test_the_same_elements_are_dropped_in_any_precision():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        single = drop(torch.ones(100, 41), .1)
        torch.manual_seed(0)
        half = drop(torch.ones(100, 41).bfloat16(), .1)
    assert half.dtype == torch.bfloat16 and torch.equal(half == 0, single == 0)
    assert (single.roll(1, 1)*single).mean().sub(1).abs() < .05        # neighbours, which share a draw, are independent
