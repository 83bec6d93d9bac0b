"""Every metric of a report, in the order in which they are computed.

To add one: write its class (``metric.Metric``), name it here, and describe its fields in docs/metrics.md.
"""

from evaluate.absorption.first_letter import FirstLetterAbsorption
from evaluate.metrics.baselines import Baselines
from evaluate.metrics.concentration import Concentration
from evaluate.metrics.fvu import Fvu
from evaluate.metrics.language_model import SplicedLoss
from evaluate.metrics.metric import Metric
from evaluate.metrics.redundancy import Redundancy
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts

METRICS: tuple[type[Metric], ...] = (
    Fvu,
    Sparsity,
    Concentration,
    Baselines,
    Redundancy,
    TopContexts,
    FirstLetterAbsorption,
    SplicedLoss,
)
