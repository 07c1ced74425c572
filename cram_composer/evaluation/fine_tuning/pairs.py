"""Scores of embeddings of pairs of texts: agreement with degrees of similarity, and retrieval of similar texts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

from cram_composer.evaluation.fine_tuning.encode import EncodedRows
from cram_composer.evaluation.tasks.task import Task

_TOP = 10  # ranks that count
_QUERIES = 256  # ranked together
_BELOW_ALL = -2.0  # less than any cosine


def pair_scores(task: Task, embeddings: torch.Tensor, rows: EncodedRows) -> dict[str, float]:
    """Compute every metric of a task in percent.

    Retrieval ranks the second texts of all pairs by their cosine with the first text of every similar pair, without
    that text itself. Several texts may be similar to one.

    Args:
        task: with `similar_from`.
        embeddings: fp32 [N, 2, H], of length 1.
        rows: whose `groups` [N, 2] number the texts, equal ones alike.
    """
    if task.metrics == ("cosine_spearman",):
        cosines = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=-1)
        if bool((cosines == cosines[0]).all()):
            return {"cosine_spearman": 0.0}
        return {"cosine_spearman": 100.0 * float(spearman_corrcoef(cosines, rows.labels))}
    found = [
        (retrieval_normalized_dcg(scores, right, _TOP), retrieval_reciprocal_rank(scores, right, _TOP))
        for scores, right in _rankings(task, embeddings, rows)
    ]
    ndcg, mrr = torch.tensor(found).mean(dim=0).tolist() if found else (0.0, 0.0)
    return {"ndcg@10": 100.0 * ndcg, "mrr@10": 100.0 * mrr}


def _rankings(task: Task, embeddings: torch.Tensor, rows: EncodedRows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield for every query the scores of all candidates, and which of them are similar to it."""
    firsts, seconds = rows.groups.unbind(dim=1)
    table = torch.zeros(int(rows.groups.max()) + 1, embeddings.shape[-1])
    table[rows.groups.flatten()] = embeddings.flatten(0, 1)
    candidates, column = seconds.unique(return_inverse=True)
    similar = (rows.labels >= task.similar_from) & (firsts != seconds)
    queries, row = firsts[similar].unique(return_inverse=True)
    right = torch.stack((row, column[similar]))
    for start in range(0, len(queries), _QUERIES):
        chunk = queries[start : start + _QUERIES]
        scores = table[chunk] @ table[candidates].T
        scores[candidates == chunk[:, None]] = _BELOW_ALL
        targets = torch.zeros(scores.shape, dtype=torch.bool)
        here = right[:, (right[0] >= start) & (right[0] < start + len(chunk))]
        targets[here[0] - start, here[1]] = True
        yield from zip(scores, targets, strict=True)
