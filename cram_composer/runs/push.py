"""Upload of a run's exported model, with its card and report, to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cram_composer.errors import CramError
from cram_composer.runs.folder import EVALUATIONS, FINISHED, RECORD, RunFolder

_REPLACED = (".py", ".safetensors")  # files of an earlier export that this one may lack


def push_run(path: Path, repo: str, private: bool, revision: str | None) -> str:
    """Upload the export and the report of a run to the hub in one commit; create what does not exist.

    The commit replaces the weights and the code of an earlier export; other files on the hub stay.

    Args:
        path: a run folder.
        repo: NAMESPACE/NAME, or NAME for the namespace of the token's owner.
        private: create a private repository.
        revision: branch to upload to; None for the main branch.

    Returns:
        The address of the model's page.

    Raises:
        CramError: no export yet, no token, or the hub refuses the upload or cannot be reached.
    """
    files = _files(path)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise CramError(f"{repo}: no token of the hub; run 'hf auth login' or set HF_TOKEN to one that may write")
    api = HfApi(library_name="cram-composer")
    with _one_line(repo, api.endpoint):
        page = api.create_repo(repo, private=private or None, exist_ok=True)
        full_name = page.repo_id
        if private and not api.model_info(full_name).private:
            raise CramError(f"{full_name}: exists and is public; make it private in its settings, or omit --private")
        if revision is not None:
            api.create_branch(full_name, branch=revision, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(full_name, revision=revision)
            if name not in files and "/" not in name and name.endswith(_REPLACED)
        ]
        operations = [CommitOperationAdd(name, file) for name, file in files.items()]
        api.create_commit(
            full_name,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"Upload {path.resolve().name} with cram-composer",
            revision=revision,
        )
    return str(page) if revision is None else f"{page}/tree/{revision}"


def _files(path: Path) -> dict[str, Path]:
    """Return the files to upload by their names on the hub."""
    record = RunFolder(path).read_record()
    if record is None:
        raise CramError(f"{path}: not a run folder, because it has no {RECORD}; give RUNS_DIR/RUN_NAME")
    export, report = path / "export", path / "report.html"
    if not (export / "config.json").is_file():
        state = "" if record["status"] in FINISHED else f" (it is {record['status']})"
        raise CramError(f"{path}: the run has no export yet{state}; run: cram export {path}")
    files = {file.name: file for file in sorted(export.iterdir()) if file.is_file()}
    return files | ({report.name: report} if report.is_file() else {})


def lacks_evaluations(path: Path) -> bool:
    """Return True if the run was evaluated after its card was written."""
    card, evaluations = path / "export" / "README.md", path / EVALUATIONS
    return evaluations.is_file() and card.is_file() and evaluations.stat().st_mtime > card.stat().st_mtime


@contextmanager
def _one_line(repo: str, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except CramError:
        raise
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise CramError(f"'{repo}' is not a name of a repository: {reason}; give NAMESPACE/NAME") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        causes = {
            401: "the hub rejects the token; run 'hf auth login' or set HF_TOKEN to a valid one",
            403: "the token may not write there; create one with write access, or give a namespace of yours",
            404: "no such repository or namespace, or the token may not see it; check the name",
        }
        raise CramError(f"{repo}: {causes.get(status, _reason(error))} (HTTP {status})") from None
    except Exception as error:  # of the transport, whose classes differ between versions of the client
        raise CramError(
            f"{repo}: cannot reach {endpoint}: {_reason(error)}; check the network and HF_ENDPOINT"
        ) from None


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
