"""Policies for a byte budget by rules and by dynamic programming: where searches begin, and what they are
held against. All use the budget up: what a rule leaves over is spent on single levels in its own order.

Legend: D genes, V levels, K kinds.
"""

from collections.abc import Sequence

import numpy as np

from plait.compression.baselines import knapsack
from plait.compression.complexity import Table, at_levels, table
from plait.compression.language import Decoder
from plait.compression.language_features import ErrorConfig
from plait.compression.optimiser import Budget, check, shares
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError
from plait.spec.policy import Knob

STEPS = 5
"""Tempers, from none to whole."""
SPREAD = 0.4
"""Standard deviation of the logarithm of a kind's factor."""


def uniform(space: Space, budget: Budget) -> Ints:
    """The highest level that all genes can have; then one level more for the first blocks."""
    check(space, [budget])
    level_ND = np.minimum(np.arange(space.count_D.max())[:, None], space.count_D - 1)
    fits_N = shares([budget], space.z_of(level_ND))[0] <= 1
    return filled(space, budget, level_ND[fits_N][-1], range(len(space)))


def llama_rule(space: Space, decoder: Decoder, budget: Budget) -> Ints:
    """As llama.cpp's Q4_K_M and its like: a level more for what writes values and for the feed-forward
    layer's last product, in the first and the last eighth of the blocks and in every third between."""
    check(space, [budget])
    more = [_more_bits(space, decoder, gene) for gene in range(len(space))]
    level_ND = np.arange(space.count_D.max())[:, None] + np.array(more, dtype=np.int64)
    level_ND = np.minimum(level_ND, space.count_D - 1)
    fits_N = shares([budget], space.z_of(level_ND))[0] <= 1
    # Where not even the rule's lowest form fits, the units that it favours are all that is raised.
    base_D = level_ND[fits_N][-1] if fits_N.any() else np.zeros(len(space), dtype=np.int64)
    return filled(space, budget, base_D, sorted(range(len(space)), key=lambda gene: not more[gene]))


def additive(space: Space, config: ErrorConfig, budget: Budget, factor_D: Floats | None = None) -> Ints:
    """The least sum of layers' errors within the budget, by dynamic programming.

    Args:
        factor_D: what each gene's errors are multiplied by; None: they count as they are.

    Raises:
        UserError: the cost of one gene depends on others, or no policy fits.
    """
    if len({gene.knob for gene in space.genes}) > 1:
        raise UserError("a dynamic programme needs costs that add up: search for bits alone", "budget")
    gain_DV = np.zeros(space.levels_DV.shape)
    for gene, row in enumerate(config.errors):
        gain_DV[gene] = -np.array([*row, *[row[-1]] * (gain_DV.shape[1] - len(row))])
    if factor_D is not None:
        gain_DV *= factor_D[:, None]
    found = knapsack(space, gain_DV, Budget(_table(space, budget), budget.limit))
    return filled(space, budget, found, range(len(space)))


def tilted(space: Space, config: ErrorConfig, budget: Budget, count: int, rng: np.random.Generator) -> Ints:
    """Policies that would be best if errors were other than estimated: the first for errors as they are, then
    tempered ever more, then tempered at random with factors for each kind, drawn log-normally."""
    kinds = sorted(set(config.kinds))
    kind_D = np.array([kinds.index(kind) for kind in config.kinds])
    factors = [config.tempered(temper) for temper in np.linspace(1, 0, STEPS)[:count]]
    while len(factors) < count:
        drawn_K = np.exp(SPREAD * rng.standard_normal(len(kinds)))
        factors.append(config.tempered(rng.uniform()) * drawn_K[kind_D])
    return np.stack([additive(space, config, budget, factor_D) for factor_D in factors])


def filled(space: Space, budget: Budget, index_D: Ints, order: Sequence[int]) -> Ints:
    """One level more for each gene in order, again and again, while the budget allows it."""
    index_D, moved = index_D.copy(), True
    while moved:
        moved = False
        for gene in order:
            if index_D[gene] + 1 < space.count_D[gene]:
                index_D[gene] += 1
                fits = at_levels(budget.cost, space, index_D)[0] <= budget.limit
                moved |= bool(fits)
                index_D[gene] -= not fits
    return index_D


def _table(space: Space, budget: Budget) -> Table:
    """The cost as a table: what each level of each gene adds to the most compressed policy."""
    base_D = np.zeros(len(space), dtype=np.int64)
    least = float(at_levels(budget.cost, space, base_D)[0])

    def cost(gene: int, level: int) -> float:
        index_D = base_D.copy()
        index_D[gene] = level
        return float(at_levels(budget.cost, space, index_D)[0]) - least

    return table(budget.cost.name, budget.cost.unit, space, cost, least)


def _more_bits(space: Space, decoder: Decoder, gene: int) -> bool:
    slot = space.genes[gene].slots[0]
    kinds = {s.unit.rpartition(".")[2] for s in space.genes[gene].slots}
    if slot.knob is not Knob.WEIGHT_BITS or not kinds & {"v_proj", "down_proj"}:
        return False
    block = int(slot.unit.removeprefix(f"{decoder.blocks}.").split(".")[0])
    eighth = decoder.count // 8
    return block < eighth or block >= decoder.count - eighth or (block - eighth) % 3 == 2
