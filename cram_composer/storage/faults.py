"""What the errors of object stores mean, told by their code, HTTP status and class name.

So no provider's client is imported that is not used, and one table serves them all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

CAUSES = ("missing", "credentials", "bucket", "unreachable", "disk-full", "other")


@dataclass(frozen=True)
class Fault:
    """What an error means: one of CAUSES, and the error in a few words."""

    cause: str
    words: str


_LOCAL = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE)
_CODES = {
    "missing": ("NoSuchKey", "ObjectNotFound", "BlobNotFound"),
    "bucket": (
        *("NoSuchBucket", "InvalidBucketName", "BucketNotFound", "ContainerNotFound", "PermanentRedirect"),
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
        *("AuthenticationFailed", "AuthorizationFailure", "NotAuthenticated", "InvalidAuthenticationInfo"),
    ),
}
_CLASSES = {
    "credentials": (
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
        *("TokenRetrievalError", "SSOError", "MetadataRetrievalError", "ClientAuthenticationError"),
        *("DefaultCredentialsError", "RefreshError", "ConfigFileNotFound", "InvalidConfig"),
    ),
    "unreachable": (
        *("HTTPClientError", "ConnectionError", "TimeoutError", "IncompleteReadError", "ResponseStreamingError"),
        *("RetriesExceededError", "RetriesExceeded", "TransportError", "RequestException", "ServiceRequestError"),
        *("ServiceResponseError", "HTTPError", "HTTPException", "EndpointConnectionError"),
    ),
}
_WORDS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AccessDenied": "access denied",
    "NoCredentialsError": "no credentials",
}


def fault_of(error: BaseException) -> Fault:
    """What an error of any provider means, by the first link of its chain of causes that says."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return Fault("disk-full", "the disk is full")
        if isinstance(link, OSError) and link.errno in _LOCAL:
            return Fault("other", f"{link.filename}: {link.strerror}")
        cause = _cause(link)
        if cause is not None:
            return Fault(cause, _words(link))
    return Fault("other", _words(error))


def _cause(error: BaseException) -> str | None:
    code, status = code_of(error), _status(error)
    for cause, codes in _CODES.items():
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
        for cause, classes in _CLASSES.items():
            if names & set(classes):
                return cause
        if isinstance(error, FileNotFoundError) and error.filename is not None:  # of a folder, not a store's wrapper
            return "missing"
    return None


def code_of(error: BaseException) -> str | None:
    """A provider's own word for the error: botocore keeps it in `response`, the others in an attribute."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    for found in (code, getattr(error, "error_code", None), getattr(error, "code", None)):
        if isinstance(found, str):
            return str(getattr(found, "value", found))
    return None


def _status(error: BaseException) -> int | None:
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


def _words(error: BaseException) -> str:
    code = code_of(error)
    name = code if code and not code.isdigit() else type(error).__name__
    text = " ".join(str(error).split())[:200]
    if name in _WORDS:
        return f"{_WORDS[name]} ({name})"
    return code if name == code and code else (f"{text} ({name})" if text else name)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
