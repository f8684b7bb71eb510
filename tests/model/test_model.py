"The model against the released implementation's numbers, and each sample's independence of its batch"
import json
from dataclasses import replace
from functools import lru_cache
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from mrhd_nb.data.batches import Batch
from mrhd_nb.core.presets import PRESETS, preset
from mrhd_nb.core.config import Quirks, override
from mrhd_nb.core.files import generator
from mrhd_nb.model.released import UNUSED_KEYS, WEIGHTING_KEYS, released_names
from mrhd_nb.model.model import MomentModel

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
