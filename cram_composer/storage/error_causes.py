"""Classification of storage errors by provider error code, HTTP status and exception class name.

Matching names instead of types avoids importing the clients of unused providers.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Cause = Literal["missing", "credentials", "bucket", "unreachable", "disk-full", "too-large", "other"]


@dataclass(frozen=True)
class StorageFailure:
    """A classified storage error.

    Attributes:
        cause: what is wrong.
        summary: the error in a few words.
    """

    cause: Cause
    summary: str


_LOCAL_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE)
_CAUSE_BY_CODE: dict[Cause, Sequence[str]] = {
    "missing": ("NoSuchKey", "BlobNotFound"),
    "bucket": (
        *("NoSuchBucket", "InvalidBucketName", "ContainerNotFound", "PermanentRedirect"),
        *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    ),
    "unreachable": (
        *("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestThrottled", "InternalError"),
        *("ServiceUnavailable", "OperationAborted", "BadDigest", "ServerBusy", "TooManyRequests", "PreconditionFailed"),
        *("OperationTimedOut", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    ),
    "credentials": (
        *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        *("ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed", "AccountProblem"),
        *("AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"),
    ),
}
_CAUSE_BY_CLASS: dict[Cause, Sequence[str]] = {
    "bucket": ("MissingBucketError",),
    "credentials": (
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
        *("TokenRetrievalError", "SSOError", "MetadataRetrievalError", "ClientAuthenticationError"),
        *("DefaultCredentialsError", "RefreshError", "CredentialUnavailableError"),
    ),
    "unreachable": (
        *("HTTPClientError", "ConnectionError", "TimeoutError", "IncompleteReadError", "ResponseStreamingError"),
        *("RetriesExceededError", "RetriesExceeded", "TransportError", "RequestException", "ServiceRequestError"),
        *("ServiceResponseError", "HTTPError", "HTTPException", "EndpointConnectionError"),
    ),
    "too-large": ("TooLargeError",),
}
_SUMMARIES = {
    "InvalidAccessKeyId": "the access key is unknown",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AccessDenied": "access denied",
    "NoCredentialsError": "no credentials",
}


def classify_error(error: BaseException) -> StorageFailure:
    """Classify an error of any provider by the first exception of its chain of causes that is recognised."""
    for link in exception_chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFailure("disk-full", "the disk is full")
        if isinstance(link, OSError) and link.errno in _LOCAL_ERRNOS:
            return StorageFailure("other", f"{link.filename}: {link.strerror}")
        cause = _classify(link)
        if cause is not None:
            return StorageFailure(cause, _summarize(link))
    return StorageFailure("other", _summarize(error))


def _classify(error: BaseException) -> Cause | None:
    code, status = error_code(error), _http_status(error)
    for cause, codes in _CAUSE_BY_CODE.items():
        if code in codes:
            return cause
    if status in (401, 403):
        return "credentials"
    if status == 404:
        return "bucket" if "bucket does not exist" in str(error) else "missing"
    if status is not None and (status in (408, 425, 429) or status >= 500):
        return "unreachable"
    if status is None:
        names = {kind.__name__ for kind in type(error).__mro__}
        for cause, classes in _CAUSE_BY_CLASS.items():
            if names & set(classes):
                return cause
        if isinstance(error, FileNotFoundError) and error.filename is not None:  # of a folder, not a store's wrapper
            return "missing"
    return None


def error_code(error: BaseException) -> str | None:
    """Return the provider's error code: botocore keeps it in `response`, the other clients in an attribute."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    for found in (code, getattr(error, "error_code", None), getattr(error, "code", None)):
        if isinstance(found, str):
            return str(getattr(found, "value", found))
    return None


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for found in (
        status,
        getattr(error, "status_code", None),
        getattr(error, "status", None),
        getattr(error, "code", 0),
    ):
        if isinstance(found, int) and found >= 300:
            return int(found)
    return None


def _summarize(error: BaseException) -> str:
    code = error_code(error)
    name = code if code and not code.isdigit() else type(error).__name__
    text = " ".join(str(error).split())[:200]
    if name in _SUMMARIES:
        return f"{_SUMMARIES[name]} ({name})"
    if name == "NotFound":
        return name  # of Google's client, whose text repeats the request
    return code if name == code and code else (f"{text} ({name})" if text else name)


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its chain of causes, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
