"Matching and losses at their edges: nothing to match, nothing relevant, scores beyond all measure, padding, batch mates, shares of a batch"
import math
from dataclasses import replace
import pytest, torch
import torch.nn.functional as F
from mrhd_nb.core.config import Quirks
from mrhd_nb.core.files import generator
from mrhd_nb.core.presets import preset
from mrhd_nb.core.testing import small_model
from mrhd_nb.data.batches import planted_batch
from mrhd_nb.learning.losses import (clip_alignment_loss, compute_losses, label_cross_entropy, label_focal, make_weighting, margin_loss,
                                     negative_loss, rank_loss, saliency_losses, span_giou_loss, span_l1, video_alignment_loss)
from mrhd_nb.learning.matching import match
from mrhd_nb.learning.parallel import take_share
from mrhd_nb.model.fusion import tap
from mrhd_nb.model.model import MomentModel, Prediction

B, N, L, T, D = 3, 6, 12, 6, 16
SYSTEMS = ["taskweave_mr2hd", "tr_detr"]
EMPTY = torch.zeros(0, 2)


@pytest.fixture
def g(): return generator(0, "test_losses")


@pytest.fixture
def batch(): return planted_batch()


@pytest.fixture
def made(g, batch)->Prediction:
    "Anything at all, of two decoder layers, with negative pairs and what the alignment reads"
    taps = tap(torch.randn(B, L, D, generator=g), torch.randn(B, T, D, generator=g), batch.clip_mask, batch.token_mask)
    score, other = torch.randn(2, B, L, generator=g)
    return Prediction(torch.randn(2, B, N, 2, generator=g), torch.rand(2, B, N, 2, generator=g), score, batch.clip_mask, other, taps)


def coefficients(name): return preset(name).training.losses


def windows(g, *counts): return tuple(torch.rand(n, 2, generator=g) for n in counts)


def of_sample(matched, b): return [(int(q), int(w)) for s, q, w in zip(*matched) if s == b]


def test_matching_does_not_depend_on_order_or_batch_mates(g, batch, made):
    logits, spans, losses = made.final_logits, made.final_spans, coefficients("tr_detr")
    targets = replace(batch.targets, spans=windows(g, 3, 1, 2))
    found, order = match(logits, spans, targets, losses), torch.randperm(N, generator=g)
    other = match(logits[:, order], spans[:, order], targets, losses)
    alone = match(logits[1:2], spans[1:2], replace(targets, spans=targets.spans[1:2]), losses)
    for b in range(B): assert set(of_sample(found, b)) == {(int(order[q]), w) for q, w in of_sample(other, b)}
    assert of_sample(alone, 0) == of_sample(found, 1)
    assert match(logits.bfloat16(), spans.bfloat16(), targets, losses)[1].dtype == torch.long


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (9, 9, 9)])
def test_windows_may_be_missing_or_more_than_queries(g, batch, made, counts):
    targets = replace(batch.targets, spans=windows(g, *counts))
    sample, query, window = match(made.final_logits, made.final_spans, targets, coefficients("tr_detr"))
    assert torch.bincount(sample, minlength=B).tolist() == [min(n, N) for n in counts]
    for b, n in enumerate(counts):
        pairs = of_sample((sample, query, window), b)
        assert len(dict(pairs)) == len({w for _, w in pairs}) == len(pairs) and all(w < n for _, w in pairs)
        assert [q for q, _ in pairs] == sorted(q for q, _ in pairs)
    for name in SYSTEMS: assert all(map(math.isfinite, compute_losses(made, targets, coefficients(name), Quirks()).asdict().values()))


def test_no_matched_query_costs_nothing_and_has_a_gradient():
    nobody = EMPTY.clone().requires_grad_()
    for f in (span_l1, span_giou_loss):
        loss = f(nobody, EMPTY)
        loss.backward()
        assert loss == 0


def test_sure_queries_cost_next_to_nothing_and_wrong_ones_stay_finite(g):
    foreground = torch.rand(3, 5, generator=g) < .3
    onehot = torch.stack((foreground, ~foreground), -1).float()
    assert label_focal((onehot-.5)*20, foreground, alpha=.25, gamma=2.) < 1e-8
    assert label_cross_entropy((onehot-.5)*40, foreground, background=.1) < 1e-8
    for far in (-1e4, 1e4):
        extreme = torch.full((2, 3, 2), far, requires_grad=True)
        everyone = torch.ones(2, 3) > 0
        (label_focal(extreme, everyone, alpha=.25, gamma=2.)+label_cross_entropy(extreme*torch.tensor([1., -1.]), everyone, background=.1)).backward()
        assert extreme.grad.isfinite().all()


def test_one_clip_against_itself_costs_the_margin():
    clip = torch.zeros(1, 1, dtype=torch.long)
    torch.testing.assert_close(margin_loss(torch.ones(1, 1), clip, clip, margin=.2), torch.tensor(.4))


def ranks(g):
    mask = torch.arange(8) < torch.tensor([8, 5, 1])[:, None]
    return torch.randn(3, 8, generator=g), torch.randint(0, 13, (3, 8), generator=g)*mask, mask


def test_rank_loss_ignores_shift_order_and_padding(g):
    saliency, rank, mask = ranks(g)
    loss, order = rank_loss(saliency, rank, mask, temperature=.5), torch.randperm(8, generator=g)
    wild = F.pad(saliency.masked_fill(~mask, 77.), (0, 4), value=9.)
    torch.testing.assert_close(rank_loss(saliency+3, rank, mask, temperature=.5), loss)
    torch.testing.assert_close(rank_loss(saliency[:, order], rank[:, order], mask[:, order], temperature=.5), loss)
    torch.testing.assert_close(rank_loss(wild, F.pad(rank, (0, 4)), F.pad(mask, (0, 4)), temperature=.5), loss)
    assert rank_loss(rank.float(), rank, mask, temperature=.5) < rank_loss(-rank.float(), rank, mask, temperature=.5)


def test_rank_loss_of_nothing_and_of_extreme_scores(g):
    saliency, rank, mask = ranks(g)
    for m, y in ((mask, rank*0), (mask & False, rank*0), (mask & False, rank)): assert rank_loss(saliency, y, m, temperature=.5) == 0
    assert rank_loss(saliency[:, :1], rank[:, :1], mask[:, :1], temperature=.5) < 1e-5 # a single clip competes with nobody
    for scale in (1e4, -1e4):
        extreme = (scale*saliency.sign()).requires_grad_()
        rank_loss(extreme, rank, mask, temperature=.5).backward()
        assert extreme.grad.isfinite().all()


def test_negative_pairs_overflow_in_the_released_form_alone():
    mask, high = torch.ones(1, 2) > 0, torch.full((1, 2), 1e4)
    assert negative_loss(high, mask) == 2e4 and negative_loss(high, mask & False) == 0
    assert negative_loss(high, mask, overflowing=True).isinf()


def test_alignment_ignores_padding_and_needs_no_clip(g, batch, made):
    taps, relevant = made.taps, batch.targets.relevant
    loss = clip_alignment_loss(taps, relevant, temperature=.07)
    wide = tap(F.pad(taps.clips, (0, 0, 0, 3), value=5.), F.pad(taps.tokens, (0, 0, 0, 2), value=5.),
               F.pad(batch.clip_mask, (0, 3)), F.pad(batch.token_mask, (0, 2)))
    torch.testing.assert_close(clip_alignment_loss(wide, F.pad(relevant, (0, 3)), temperature=.07), loss)
    pools, padded = ((t.clip_pool, t.token_pool) for t in (taps, wide))
    torch.testing.assert_close(video_alignment_loss(*padded, temperature=.07), video_alignment_loss(*pools, temperature=.07))
    nothing = tap(taps.clips, taps.tokens, batch.clip_mask & False, batch.token_mask & False)
    assert clip_alignment_loss(nothing, relevant, temperature=.07) == 0


def test_each_decoder_layer_is_matched_for_itself(batch, made):
    losses = coefficients("taskweave_mr2hd")
    both = compute_losses(made, batch.targets, losses, Quirks())
    for k in range(2):
        one = compute_losses(replace(made, logits=made.logits[k:k+1], spans=made.spans[k:k+1]), batch.targets, losses, Quirks())
        for name in ("span", "giou", "label", "class_error"): assert getattr(one, name)[0] == getattr(both, name)[k]
    assert both.asdict()["giou"] == both.giou[1] and both.asdict()["giou_0"] == both.giou[0]


def test_the_quirk_makes_the_rank_loss_smaller(batch, made):
    ours, released = (saliency_losses(made, batch.targets, coefficients("tr_detr"), q) for q in (Quirks(), Quirks(rank_over_twelve=True)))
    torch.testing.assert_close(released["rank"], ours["rank"]*11/12)


@pytest.mark.parametrize("moments", [True, False])
def test_a_data_set_without_windows_has_no_moment_terms(batch, made, moments):
    "Whether the model computed moments all the same or not"
    made = replace(made, logits=made.logits.requires_grad_(), saliency=made.saliency.requires_grad_())
    if not moments: made = replace(made, logits=None, spans=None)
    losses = coefficients("taskweave_mr2hd")
    terms = compute_losses(made, replace(batch.targets, spans=(EMPTY,)*B, has_moments=False), losses, Quirks())
    weighting = make_weighting(losses)
    weighting(terms).backward()
    assert terms.moments == 0 and not terms.moments.requires_grad and not terms.has_moments
    assert made.saliency.grad is not None and weighting.hd_log_var.grad is not None and weighting.mr_log_var.grad is None


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("parts", [False, True])
def test_shares_of_a_batch_add_up(batch, name, count, parts):
    "Five processes for three samples: two have none. The video alignment, which needs an exchange, is tested with processes"
    model = MomentModel(small_model(name, negative_pairs=True, proposals=parts, existence=parts, dropout=0., input_dropout=0.), generator(0, name))
    losses = replace(coefficients(name), video_alignment=0.)
    if parts: losses = replace(losses, classification="overlap")
    whole = compute_losses(model(batch), batch.targets, losses, Quirks()).asdict()
    shares = [take_share(batch, rank, count) for rank in range(count)]
    terms = [compute_losses(model(own), own.targets, losses, Quirks(), share) for own, share in shares]
    for n, v in whole.items(): assert math.isclose(sum(t.asdict()[n] for t in terms), v, rel_tol=1e-5, abs_tol=1e-6), n
    assert math.isclose(sum(t.constant for t in terms), 1)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_scores_beyond_all_measure_leave_every_term_finite(batch, made, name, scale):
    leaves = {n: (scale*getattr(made, n).sign()).requires_grad_() for n in ("logits", "saliency", "negative_saliency")}
    terms = compute_losses(replace(made, **leaves), batch.targets, coefficients(name), Quirks())
    assert all(map(math.isfinite, terms.asdict().values()))
    (terms.moments+terms.saliency).backward()
    assert all(x.grad.isfinite().all() for x in leaves.values())
