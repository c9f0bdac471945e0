"""What every metric promises, whatever it measures."""

import pickle
from copy import deepcopy

import pytest
import torch
from torchmetrics import MetricCollection

from sae_lightning import metrics
from tests.helpers.metrics import CASES, D_IN, D_SAE, N_CONCEPTS, Case, Samples, assert_same, feed, make_samples

UNEVEN = [1, 100, 0, 39, 7, 93]

every_metric = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_labels = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name not in ("DeadLatents", "Fidelity", "LatentOverlap", "TopExamples")],
    ids=lambda case: case.name,
)


def whole(case: Case, samples: Samples):
    return feed(case, samples, [len(samples.x)]).compute()


@every_metric
def test_class_equals_function(case):
    samples = make_samples(n=40)
    result, reference = whole(case, samples), case.twin(samples)
    if case.name == "ConceptDiscovery":  # within a label, the class orders samples by their hash
        result, reference = (r._replace(codes=r.codes.sort(dim=0).values) for r in (result, reference))
    assert_same(result, reference)


@pytest.mark.parametrize(
    ("case", "overlapping"),
    [(case, overlapping) for case in CASES for overlapping in sorted({False, case.overlapping})],
    ids=lambda value: getattr(value, "name", value),
)
def test_batches_do_not_matter(case, overlapping):
    samples = make_samples(overlapping=overlapping)
    assert_same(feed(case, samples, UNEVEN).compute(), whole(case, samples), case.exact)


@every_metric
def test_order_does_not_matter(case):
    samples = make_samples()
    shuffled = samples.part(torch.randperm(240, generator=torch.Generator().manual_seed(1)))
    assert_same(feed(case, shuffled, UNEVEN).compute(), whole(case, samples), case.exact)


@every_metric
def test_pickled_and_copied_in_the_middle(case):
    samples = make_samples()
    metric = feed(case, samples.part(slice(0, 100)), [60, 40])
    for copy in (pickle.loads(pickle.dumps(metric)), deepcopy(metric)):
        copy.update(*case.arguments(samples.part(slice(100, None))))
        assert_same(copy.compute(), whole(case, samples), case.exact)
        assert_same(pickle.loads(pickle.dumps(copy)).compute(), whole(case, samples), case.exact)


@every_metric
def test_forward_returns_the_batch_and_accumulates(case):
    samples = make_samples()
    samples.codes.requires_grad_()
    samples.x_hat.requires_grad_()
    metric = case.make()
    for rows in (slice(0, 90), slice(90, None)):
        part = samples.part(rows)
        assert_same(metric(*case.arguments(part)), whole(case, part), case.exact)
    result = metric.compute()
    assert_same(result, whole(case, samples), case.exact)
    assert not any(field.requires_grad for field in result)


@every_metric
def test_reset(case):
    metric = feed(case, make_samples(seed=5), [240])
    metric.compute()
    metric.reset()
    metric.update(*case.arguments(make_samples()))
    assert_same(metric.compute(), whole(case, make_samples()), case.exact)


@every_metric
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_widened_first(case, dtype):
    low = Samples(*(field.to(dtype) if field.is_floating_point() else field for field in make_samples()))
    wide = Samples(*(field.float() if field.is_floating_point() else field for field in low))
    metric = feed(case, low, UNEVEN)
    expected = feed(case, wide, UNEVEN)
    assert_same(metric.compute(), expected.compute(), exact=dtype != torch.float64 and case.exact)


@every_metric
def test_autocast_changes_nothing(case):
    samples = make_samples(n=2400)  # counts beyond 256, which bfloat16 cannot hold
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = feed(case, samples, [2000, 400]).compute()
        twin = case.twin(samples.part(slice(0, 300)))
    assert_same(result, whole(case, samples), case.exact)
    assert_same(twin, case.twin(samples.part(slice(0, 300))), case.exact)


@every_metric
@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: torch.nn.Sequential(m).bfloat16()[0],
    ],
    ids=["to", "half", "float", "parent"],
)
def test_states_keep_their_dtype(case, convert):
    samples = make_samples()
    metric = feed(case, samples.part(slice(0, 100)), [100])
    metric = convert(metric)
    metric.update(*case.arguments(samples.part(slice(100, None))))
    assert_same(metric.compute(), whole(case, samples), case.exact)
    metric.reset()
    metric.update(*case.arguments(samples))
    assert_same(metric.compute(), whole(case, samples), case.exact)


@every_metric
def test_states_move_with_the_device(case):
    metric = torch.nn.Sequential(case.make()).to("meta")[0]
    assert {getattr(metric, name).device.type for name in metric._defaults} == {"meta"}
    assert metric.device.type == "meta"


@every_metric
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_data(case):
    result = case.make().compute()
    scalars = [field for field in result if field.ndim == 0 and field.is_floating_point()]
    assert scalars
    assert all(field.isnan() for field in scalars)
    empty = feed(case, make_samples().part(slice(0, 0)), [0])
    assert_same(empty.compute(), result, exact=True)
    assert_same(case.twin(make_samples().part(slice(0, 0))), result, exact=True)


@with_labels
def test_nothing_labelled(case):
    samples = make_samples()._replace(concepts=torch.full((240,), -1))
    result = whole(case, samples)
    for name in ("per_concept", "top_n_mean", "concept_cosine", "cross_concept", "adjusted_rand"):
        if name in result._fields:
            assert getattr(result, name).isnan().all()


@pytest.mark.parametrize("n_concepts", [0, 1])
def test_few_concepts_keep_their_shape(n_concepts):
    samples = make_samples()
    concepts = samples.concepts.clamp(max=n_concepts - 1)
    l0 = metrics.L0(n_concepts)
    l0.update(samples.codes, concepts)
    assert l0.compute().per_concept.shape == (n_concepts,)
    for metric in (
        metrics.ConceptF1(D_SAE, n_concepts),
        metrics.Monosemanticity(D_SAE, n_concepts),
        metrics.CodeSimilarity(D_SAE, n_concepts),
        metrics.LatentSimilarity(D_SAE, n_concepts),
    ):
        metric.update(samples.codes, concepts)
        metric.compute()
    mse = metrics.NormalizedMSE(D_IN, n_concepts)
    mse.update(samples.x, samples.x_hat, concepts)
    assert mse.compute().per_concept.shape == (n_concepts,)


def test_metrics_that_count_the_same_share_their_states():
    samples = make_samples()
    both = MetricCollection([metrics.ConceptF1(D_SAE, N_CONCEPTS), metrics.Monosemanticity(D_SAE, N_CONCEPTS)])
    both.update(samples.codes, samples.concepts)
    assert both.compute_groups == {0: ["ConceptF1", "Monosemanticity"]}
    both.update(samples.codes, samples.concepts)
    assert both["Monosemanticity"].members.sum() == 2 * (samples.concepts >= 0).sum()


@with_labels
@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (torch.tensor([0, 1, N_CONCEPTS]), rf"`concepts` must hold labels in -1..{N_CONCEPTS - 1} .*got {N_CONCEPTS}"),
        (torch.tensor([0, 1, -2]), r"`concepts` must hold labels .*got -2"),
        (torch.tensor([0, 1]), r"`concepts` must have one entry per sample \(3\), got 2"),
        (torch.tensor([[0], [1], [2]]), r"`concepts` of dtype int64 must have shape \[batch\], got \[3, 1\]"),
        (torch.tensor([0.0, 1.0, 2.0]), r"`concepts` must be int64 labels .* got torch.float32"),
        (torch.ones(3, N_CONCEPTS + 1, dtype=torch.bool), r"`concepts` .*bool"),
        (torch.ones(3, dtype=torch.bool), r"`concepts` .*bool"),
    ],
)
def test_bad_concepts(case, concepts, message):
    samples = make_samples(n=3)._replace(concepts=concepts)
    with pytest.raises(ValueError, match=message):
        case.make().update(*case.arguments(samples))


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "Fidelity"], ids=lambda case: case.name)
def test_bad_matrices(case):
    samples = make_samples(n=3)
    wide = Samples(*(torch.cat([f, f], dim=1) if f.ndim == 2 else f for f in samples))
    integer = Samples(*(f.long() for f in samples))
    if case.name != "L0":  # which does not ask for d_sae
        with pytest.raises(ValueError, match=r"`(codes|x)` must have shape \[batch, \d+\], got \[3, \d+\]"):
            case.make().update(*case.arguments(wide))
    with pytest.raises(ValueError, match=r"`(codes|x)` must be a floating point tensor, got torch.int64"):
        case.make().update(*case.arguments(integer))
    with pytest.raises(ValueError, match=r"`(codes|x)` must have shape"):
        case.make().update(*case.arguments(samples._replace(codes=samples.codes[0], x=samples.x[0])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.L0(-1), "`n_concepts` must be an integer >= 0, got -1"),
        (lambda: metrics.DeadLatents(0), "`d_sae` must be an integer >= 1, got 0"),
        (lambda: metrics.NormalizedMSE(0, 1), "`d_in` must be an integer >= 1, got 0"),
        (lambda: metrics.NormalizedMSE(2.0, 1), "`d_in` must be an integer >= 1, got 2.0"),
        (lambda: metrics.ConceptF1(4, 2, top_n=0), "`top_n` must be an integer >= 1, got 0"),
        (lambda: metrics.ConceptF1(4, 2, top_n=5), "`top_n` must be at most d_sae=4, got 5"),
        (lambda: metrics.TopExamples(4, n=0), "`n` must be an integer >= 1, got 0"),
        (lambda: metrics.ConceptDiscovery(4, 2, max_samples=0), "`max_samples` must be an integer >= 1, got 0"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
