"""`LanguageSearch`: from nothing to a decoder's best policy for any budget.

Each kind of layers is first measured by itself: that says by how much estimates of its errors are wrong. The
search then begins where others end, with the dynamic programme over errors, and with what that programme
gives if errors were other than that. How they add up in truth is learned from measured policies.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.language import storage_of
from plait.compression.language_cost import Tabled, kv_bytes, memory_bytes, weight_bytes
from plait.compression.language_features import ErrorConfig, error_config
from plait.compression.language_rules import additive, llama_rule, tilted, uniform
from plait.compression.optimiser import Budget
from plait.compression.predictor import Predictor, PredictorConfig
from plait.compression.process import ProcessConfig
from plait.compression.search import Chosen, Search, SearchConfig
from plait.compression.space import Ints, Space
from plait.compression.targets import TARGETS
from plait.compression.tasks.language import LEAST_KL, Language, Reader
from plait.spec.policy import Knob


@dataclass(frozen=True, slots=True)
class LanguageSearchConfig:
    """How many policies are measured for each budget."""

    labels: int = 28
    """For each budget, beside two of each kind of layers; what is known is not measured again."""
    first: int = 14
    """Of them those that rules and dynamic programmes came to."""
    batch: int = 4
    finalists: int = 4
    seed: int = 0

    def of(self, errors: ErrorConfig) -> SearchConfig:
        """The search's settings, with a predictor that reads errors."""
        members = ((errors, ProcessConfig(clip=3.0)), (errors, ProcessConfig(smooth=False, clip=3.0)))
        return SearchConfig(
            labels=self.labels,
            first=self.first,
            batch=self.batch,
            promising=0.75,
            finalists=self.finalists,
            fidelity=Fidelity.L0,
            seed=self.seed,
            predictor=PredictorConfig(members),
        )


class LanguageSearch:
    """One decoder, its labels and its searches."""

    def __init__(self, task: Language, labels: Path, config: LanguageSearchConfig | None = None) -> None:
        self.task, self.config = task, config or LanguageSearchConfig()
        self.space: Space = task.space
        self.evaluator = Evaluator(task, self.space.digest, Labels(labels), EvaluatorConfig(processes=0))
        self.reader: Reader = self.evaluator.measurer

    @cached_property
    def errors(self) -> ErrorConfig:
        """Errors of all levels of all genes, as estimated; kept beside what they were estimated from."""
        path = self.task.cache / f"errors-{self.task.rounded}-{self.space.digest}.json"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(error_config(self.space, self.reader.carver))))
            partial.rename(path)
        told = json.loads(path.read_text())
        return ErrorConfig(tuple(map(tuple, told["errors"])), tuple(told["kinds"]), tuple(told["sizes"]))

    @cached_property
    def measured_errors(self) -> ErrorConfig:
        """The same, multiplied for each kind of layers by what measurements of it alone say: at its lowest
        level, where errors no longer add up as estimated, and at the one above."""
        top_D, kinds = self.space.count_D - 1, sorted(set(self.errors.kinds))
        kind_D = np.array(self.errors.kinds)
        second_D = np.minimum(1, top_D - 1)  # of two levels the upper one is no change
        probes = [(kind, low_D) for kind in kinds for low_D in (0 * top_D, second_D)]
        index_ND = np.stack([top_D, *(np.where(kind_D == kind, low_D, top_D) for kind, low_D in probes)])
        labels = self.evaluator.measure(
            [self.space.decode(index_D) for index_D in index_ND], Fidelity.L0, self.config.seed
        )
        floor, *kl = (label.metric["kl"] for label in labels)
        base, *told = self.errors.of(self.space).total(self.space.z_of(index_ND))
        factors: dict[str, list[float]] = {kind: [] for kind in kinds}
        for (kind, _), real, estimated in zip(probes, kl, told, strict=True):
            factors[kind].append(max(real - floor, LEAST_KL) / (estimated - base))
        return self.errors.scaled(factors)

    @cached_property
    def size(self) -> Tabled:
        """Bytes of all weights."""
        storage = storage_of(self.task.choice, TARGETS[self.task.target])
        return weight_bytes(self.space, self.task.decoder, storage, self.reader.carver.order)

    @cached_property
    def memory(self) -> Tabled:
        """Bytes of all weights in the engine's memory."""
        storage = storage_of(self.task.choice, TARGETS[self.task.target])
        return memory_bytes(self.space, self.task.decoder, storage, self.reader.carver.order)

    @cached_property
    def kv(self) -> Tabled:
        """Bytes of keys and values of one token."""
        return kv_bytes(self.space, self.task.decoder, self.reader.carver.order)

    def known(self, budgets: Sequence[Budget]) -> Ints:
        """What rules and dynamic programmes come to; none where costs of bits and cuts do not add up."""
        if len(budgets) > 1 or {gene.knob for gene in self.space.genes} != {Knob.WEIGHT_BITS}:
            return np.empty((0, len(self.space)), dtype=np.int64)
        rng = np.random.default_rng(self.config.seed)
        rules = [uniform(self.space, budgets[0]), llama_rule(self.space, self.task.decoder, budgets[0])]
        rules.append(additive(self.space, self.errors, budgets[0]))
        count = self.config.first - len(rules)
        return np.stack([*tilted(self.space, self.measured_errors, budgets[0], count, rng), *rules])

    def best(
        self, budgets: Sequence[Budget], noted: Callable[[Search], None] = lambda search: None
    ) -> tuple[Search, Predictor, Chosen]:
        """Search within the budgets; run again, it goes on with the labels that are there.

        Raises:
            UserError: no policy meets the budgets.
        """
        told = self.config.of(self.measured_errors)
        search = Search(self.space, self.evaluator, told, noted, self.known(budgets))
        predictor = search.learn(budgets)
        return search, predictor, search.choose(predictor, budgets)
