"""Budgets of decoders: rules, dynamic programmes and searches use them up, and searches are resumed."""

import itertools

import numpy as np
import pytest

from plait.compression.complexity import at_levels
from plait.compression.evaluator import Fidelity
from plait.compression.language import DecoderConfig
from plait.compression.language_compress import read_budget
from plait.compression.language_rules import additive, llama_rule, tilted, uniform
from plait.compression.language_search import LanguageSearch, LanguageSearchConfig
from plait.compression.optimiser import Budget
from plait.compression.step_time import KERNELS, StepTime, fit, measure_steps, step_time
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy
from plait.spec.schemes import held_bits
from tests.compression.tiny_language import EVERYTHING, tiny_language

FEW = LanguageSearchConfig(labels=14, first=9, finalists=2)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    return LanguageSearch(tiny_language(root), root / "labels.jsonl", FEW)


def between(search: LanguageSearch, share: float) -> Budget:
    """So far from the least to the most."""
    least, most = search.size(np.stack([np.zeros(len(search.space)), np.ones(len(search.space))]))[0]
    return Budget(search.size, least + share * (most - least))


@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
def test_rules_use_the_budget_up_and_no_more(search, share):
    budget, space = between(search, share), search.space
    slack = float(np.diff(search.size(np.eye(len(space)))[0]).max())
    for index_D in (
        uniform(space, budget),
        llama_rule(space, search.task.decoder, budget),
        additive(space, search.errors, budget),
        *tilted(space, search.errors, budget, 4, np.random.default_rng(0)),
    ):
        used = float(at_levels(search.size, space, index_D)[0])
        assert budget.limit - max(slack, 0.05 * budget.limit) <= used <= budget.limit
    rule_D = llama_rule(space, search.task.decoder, budget)
    favoured = [g for g, gene in enumerate(space.genes) if "down_proj" in gene.name or "q_proj" in gene.name]
    assert rule_D[favoured].mean() > np.delete(rule_D, favoured).mean()


def test_the_programme_has_the_least_sum_of_errors(tmp_path):
    """Against all policies of a small space."""
    task = tiny_language(tmp_path, DecoderConfig(bits=(2.0, 4.0, 8.0)), num_hidden_layers=2)
    search = LanguageSearch(task, tmp_path / "labels.jsonl", FEW)
    budget, space = between(search, 0.4), search.space
    features = search.errors.of(space)
    every_ND = np.array(list(itertools.product(range(3), repeat=len(space))))
    total_N = features.total(space.z_of(every_ND))
    fits_N = at_levels(search.size, space, every_ND) <= budget.limit
    found = features.total(space.z_of(additive(space, search.errors, budget))[None])[0]
    # The programme's grid of bytes is rounded up, so a policy at the very edge may be missed.
    inside_N = at_levels(search.size, space, every_ND) <= 0.998 * budget.limit
    assert total_N[fits_N].min() <= found * (1 + 1e-9)
    assert found <= total_N[inside_N].min() * (1 + 1e-9)


def test_a_search_is_no_worse_than_what_it_began_with_and_is_resumed(search, tmp_path):
    budget, space = between(search, 0.3), search.space
    _, _, chosen = search.best([budget])
    began = [uniform(space, budget), additive(space, search.errors, budget)]
    labels = search.evaluator.measure([space.decode(i) for i in began], Fidelity.L0, 0)
    assert chosen.measured >= max(label.metric["score"] for label in labels)
    assert at_levels(search.size, space, space.encode(chosen.policy))[0] <= budget.limit
    told = search.evaluator.labels.path.read_text()
    again = LanguageSearch(search.task, search.evaluator.labels.path, FEW)
    assert again.best([budget])[2] == chosen
    assert again.evaluator.made == 0
    assert search.evaluator.labels.path.read_text() == told


def test_bits_and_cuts_are_searched_together_within_two_budgets(tmp_path):
    search = LanguageSearch(tiny_language(tmp_path, EVERYTHING), tmp_path / "labels.jsonl", FEW)
    budgets = [between(search, 0.4), Budget(search.kv, 400.0)]
    with pytest.raises(UserError, match="search for bits alone"):
        additive(search.space, search.errors, budgets[0])
    _, predictor, chosen = search.best(budgets)
    index_D = search.space.encode(chosen.policy)
    for budget in budgets:
        assert at_levels(budget.cost, search.space, index_D)[0] <= budget.limit
    assert np.isfinite(predictor.predict(search.space.z_of(index_D)[None])[0]).all()
    with pytest.raises(UserError, match=r"no policy has size below .* ask for more"):
        search.best([Budget(search.size, 1000.0)])


def test_step_times_are_found_again(search, tmp_path):
    """From times that are made of the parts that the fit looks for."""
    truth = StepTime(2e5, (0.3, 0.25, 0.2), 0.0)
    carver, decoder = search.reader.carver, search.task.decoder

    def timed(folder):
        plan = carver.plan(CompressionPolicy.parse((folder / "policy.json").read_text()))
        total = truth.constant_ns
        for linear in (x for x in decoder.linears if x.block in plan.alive):
            kept = held_bits(plan.bits[linear.name])
            total += linear.outputs * linear.inputs * kept / 8 * truth.byte_ns[KERNELS.index(kept)]
        return total

    found = measure_steps(carver, search.task.folder, tmp_path / "steps", timed)
    assert found.worst < 1e-9
    assert found.constant_ns == pytest.approx(truth.constant_ns, rel=1e-6)
    assert found.byte_ns == pytest.approx(truth.byte_ns, rel=1e-6)
    cost = step_time(search.space, decoder, carver.order, found)
    weights = sum(x.outputs * x.inputs for x in decoder.linears)
    least, most = cost(np.stack([np.zeros(len(search.space)), np.ones(len(search.space))]))[0]
    assert least == pytest.approx(2e5 + weights / 2 * 0.3)
    assert most == pytest.approx(2e5 + weights * 0.25)


def test_a_budget_of_time_may_be_a_share_of_the_whole_step(search):
    times = StepTime(2e5, (0.3, 0.25, 0.2), 0.0)
    weights = sum(x.outputs * x.inputs for x in search.task.decoder.linears)
    assert read_budget(search, "step", 0.5, times).limit == pytest.approx((2e5 + weights * 2 * 0.2) / 2)
    assert read_budget(search, "tpot", 0.5, times).limit == 0.5e6
    with pytest.raises(UserError, match="no share"):
        read_budget(search, "step", 1.2, times)


def test_a_budget_of_memory_counts_3_bits_as_4(search):
    assert {3.0, 4.0} <= set(search.task.choice.bits)
    levels = {bits: [gene.levels.index(bits) for gene in search.space.genes] for bits in (3.0, 4.0)}
    three, four = (search.space.z_of(np.array(levels[bits]))[None] for bits in (3.0, 4.0))
    assert search.memory(three)[0] == search.memory(four)[0]
    assert search.size(three)[0] < search.size(four)[0] == search.memory(four)[0]


def test_times_that_would_be_negative_count_for_nothing():
    rows = np.array([[1.0, n, n * n, 0] for n in range(1, 8)])
    found = fit(rows, 100 - 2 * rows[:, 1])
    assert found.byte_ns == (0, 0, 0)
    assert 86 < found.constant_ns < 98
    assert found.worst > 0


def test_more_bits_are_never_faster(search):
    """Noise may say so of a model whose steps are short."""
    times = StepTime(1e5, (0.4, 0.1, 0.01), 0.3)
    cost = step_time(search.space, search.task.decoder, search.reader.carver.order, times)
    z_BD = np.random.default_rng(0).uniform(size=(20, len(search.space)))
    assert (cost(z_BD)[1] >= 0).all()
