"""Tasks of embeddings: pairs of GLUE with a degree of similarity, or that mean the same or not."""

from __future__ import annotations

from dataclasses import replace

from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.task import Task


def _pairs(name: str, similar_from: float, *metrics: str) -> Task:
    return replace(GLUE[name], head="embedding", similar_from=similar_from, metrics=metrics)


SIMILARITY: dict[str, Task] = {
    task.name: task
    for task in (
        _pairs("stsb", 4.0, "cosine_spearman"),  # 4 of 5: the two sentences differ in unimportant details
        _pairs("mrpc", 1.0, "ndcg@10", "mrr@10"),
        _pairs("qqp", 1.0, "ndcg@10", "mrr@10"),
    )
}
