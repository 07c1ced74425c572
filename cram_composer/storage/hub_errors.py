"""Refusals of the Hugging Face hub in one line: which repository, why, what to do."""

from __future__ import annotations

from cram_composer.storage.error_causes import exception_chain

_REASONS = {  # by the name of huggingface_hub's exception, which may be the cause of another library's
    "GatedRepoError": "gated: accept its terms on its page of the hub, then log in (hf auth login) or set HF_TOKEN",
    "RevisionNotFoundError": "no such revision on the hub",
    "RepositoryNotFoundError": "not found on the hub: check its name; if it is private, log in (hf auth login) or set "
    "HF_TOKEN",
}


def hub_refusal(error: BaseException) -> str | None:
    """Return why the hub refuses a repository, None for any other error, such as one of the network."""
    for link in exception_chain(error):
        names = [kind.__name__ for kind in type(link).__mro__]
        for name, reason in _REASONS.items():
            if name in names:
                return reason
    return None
