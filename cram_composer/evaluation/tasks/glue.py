"""The tasks of GLUE (Wang et al. 2018, arXiv 1804.07461): columns and labels of the hub, official sizes, metrics."""

from __future__ import annotations

from cram_composer.evaluation.tasks.task import Task

_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews",),
            {"train": 8551, "validation": 1043},
        ),
        Task(
            "sst2",
            "SST-2",
            ("sentence",),
            ("negative", "positive"),
            ("accuracy",),
            {"train": 67349, "validation": 872},
        ),
        Task(
            "mrpc",
            "MRPC",
            _PAIR,
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            {"train": 3668, "validation": 408},
        ),
        Task(
            "stsb",
            "STS-B",
            _PAIR,
            (),
            ("pearson", "spearman"),
            {"train": 5749, "validation": 1500},
            score_range=(0.0, 5.0),
        ),
        Task(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            {"train": 363846, "validation": 40430},
        ),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
            scored=("validation_matched", "validation_mismatched"),
        ),
        Task(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILMENT,
            ("accuracy",),
            {"train": 104743, "validation": 5463},
        ),
        Task("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",), {"train": 2490, "validation": 277}),
        Task("wnli", "WNLI", _PAIR, _ENTAILMENT[::-1], ("accuracy",), {"train": 635, "validation": 71}),
    )
}
