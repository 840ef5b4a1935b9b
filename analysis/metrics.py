"""The metrics that a table can show, each a column of the trials."""

from dataclasses import dataclass

from analysis.errors import ReportError


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the trials, how it is printed and which direction is better."""

    key: str
    name: str
    short: str
    decimals: int = 2
    lower_is_better: bool = False
    paper: str | None = None  # its name in paper_results.csv


METRICS = {
    metric.key: metric
    for metric in (
        Metric(key="test_top1", name="test top-1 accuracy (%)", short="Top-1 (%)", paper="top1"),
        Metric(key="test_top5", name="test top-5 accuracy (%)", short="Top-5 (%)", paper="top5"),
        Metric(key="test_nll", name="test NLL (nats)", short="NLL", decimals=3, lower_is_better=True),
        Metric(key="test_ece", name="test ECE (%)", short="ECE (%)", lower_is_better=True, paper="ece"),
        Metric(key="test_aurc", name="test AURC (× 1000)", short="AURC", lower_is_better=True, paper="aurc"),
        Metric(key="test_eaurc", name="test E-AURC (× 1000)", short="E-AURC", lower_is_better=True),
        Metric(key="val_acc", name="validation top-1 accuracy (%)", short="Val. (%)"),
        Metric(key="best_acc", name="top-1 accuracy of the best epoch (%)", short="Best epoch (%)"),
    )
}


def metric_named(key: str) -> Metric:
    """The metric of a column; ReportError lists the known ones."""
    if key not in METRICS:
        raise ReportError(f"unknown metric {key!r}; known: {', '.join(METRICS)}.")
    return METRICS[key]
