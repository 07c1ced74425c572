from __future__ import annotations

import json

import pytest

from cram_composer.data.pipeline.stages.counts import StageCounts


def test_counts_add_up():
    counts = StageCounts("quality", 3, 2, 300, 200, {"short-words": 1})
    counts.merge(StageCounts("quality", 5, 3, 50, 30, {"bullet-lines": 1, "short-words": 1}))
    assert counts == StageCounts("quality", 8, 5, 350, 230, {"short-words": 2, "bullet-lines": 1})


def test_as_dict_does_not_show_the_order_of_merging():
    one, other = StageCounts("a", reasons={"x": 1}), StageCounts("a", reasons={"b": 2})
    forward, backward = StageCounts("a"), StageCounts("a")
    for counts, parts in ((forward, (one, other)), (backward, (other, one))):
        for part in parts:
            counts.merge(part)
    assert json.dumps(forward.as_dict()) == json.dumps(backward.as_dict())
    assert StageCounts(**forward.as_dict()) == forward
    assert one.reasons == {"x": 1}


def test_other_stages_are_not_added():
    with pytest.raises(ValueError, match="length"):
        StageCounts("quality").merge(StageCounts("length"))
