"""Turn errors of the storage libraries into one line, and tell whether a retry can help."""

from __future__ import annotations

import errno
import http.client
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pyarrow
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError

from ray_learngene.errors import UserError
from ray_learngene.io.options import options_for
from ray_learngene.io.s3_settings import endpoint_host
from ray_learngene.io.schemes import SCHEMES, words_of


class Unavailable(UserError):
    """The storage did not answer, or failed, until the time for retries was over.

    Attributes:
        retry_after: Seconds that the server asked to wait; 0 where it did not say.
        answered: It said that it is overloaded or failing: the address is right.
    """

    retry_after = 0.0
    answered = False

    status = 4

    @property
    def condition(self) -> str:
        """What is the matter, without what to do about it."""
        return str(self).partition(": ")[0]


class Denied(UserError):
    """The credentials do not allow the request."""


class CredentialsRenewed(ConnectionError):
    """A request was refused because its credentials had expired, and there are others now: make it again."""


class LoginFailed(BotoCoreError):
    """Credentials that expire cannot be had. The cause is what the service that gives them, or its client, raised."""

    fmt = "no credentials"


def client_error(error: BaseException | None) -> ClientError | None:
    """Return what botocore raised for an answer of the server; s3fs translates it, once or twice."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return error


def _retried(answer: ClientError | None) -> bool:
    """Check whether an HTTP status allows a retry."""
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if answer else 0
    return status in (408, 429) or (status >= 500 and status not in (501, 505, 507))


def _retry_after(answer: ClientError | None) -> float:
    """Return the seconds that the server asks to wait, by a number or by a date; 0 where it does not."""
    headers = answer.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}) if answer else {}
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return 0.0


def s3_code(error: BaseException) -> str:
    """Return the S3 error code of what pyarrow, s3fs or botocore raised, in capitals without separators.

    It is empty if there is none.
    """
    if (answer := client_error(error)) is not None:
        return _plain(answer.response.get("Error", {}).get("Code", ""))
    match = re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?", str(error))
    return _plain(match[2] or match[1]) if match else ""


def _plain(code: Any) -> str:
    return str(getattr(code, "value", code)).replace("_", "").upper()  # Azure's client has an enumeration


SECRET_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "HF_TOKEN"),
)
REJECTED = "{server} does not accept the credentials for {uri}: set {keys}"
DENIED = "access to {uri} is denied: check {keys}, and that this key may {right} there"
EXPIRED = "the credentials for {uri} have expired: renew them (AWS_SESSION_TOKEN, AWS_PROFILE)"
RENEWED = "the credentials for {uri} expired during a request, and others were found: run the command again"
NO_ROLE = "no credentials for {uri} ({detail}): check AWS_PROFILE, and its role, token or program{hint}"
NO_SSO = "the SSO login for {uri} is missing or has expired: run aws sso login{profile}"
LOGIN_SILENT = "no answer from the service that gives credentials for {uri} ({detail}): check the network{hint}"
LOGIN_HINT = "; AWS_ENDPOINT_URL is asked for credentials, too: set AWS_ENDPOINT_URL_S3 instead"
NO_KEYS = "no S3 credentials for {uri}: set {keys}"
NO_LOGIN = "no credentials for {uri}: set {keys}"
NO_BUCKET = "the bucket of {uri} does not exist: create it, or correct the name or {address}"
REGION = "the bucket of {uri} is in another region: set AWS_REGION{region}"
REDIRECTED = "{server} sends requests for {uri} elsewhere: set AWS_REGION to the bucket's region, or correct {address}"
UNREACHABLE = "no answer from {server}{endpoint} for {uri}: check {address} and the network"
OFFLINE = "the Hugging Face hub is not asked for {uri} while HF_HUB_OFFLINE is set: unset it"
UNTRUSTED = "the certificate of {server}{endpoint} for {uri} is not trusted: name its authority in AWS_CA_BUNDLE"
FAILING = "{server} of {uri} is overloaded or failing: run the command again later"
REFUSED = "{server} refuses a request for {uri} (status 400): the credentials may have expired; check {keys}"
SERVER_FULL = "{server} has no space left for {uri}: free some, or use another bucket"
CLOCK = "{server} of {uri} refuses this machine's clock: set the time"
NOTHING = "nothing is at {uri}: check the name"
FORBIDDEN = "no permission for {uri}: choose another place or change the permissions"
FULL = "the disk of {uri} is full: free space and run the command again"
NO_FOLDER = "{uri} cannot be a folder: a file stands in its way; choose another place"
A_FOLDER = "{uri} is a folder: name a file"
IN_THE_WAY = "a folder that is not empty stands at {uri}: remove it or choose another place"

# What IAM calls the right to make a request; requests that write parts need the right to write the object.
RIGHTS = {
    **{
        "ListObjectsV2": "s3:ListBucket",
        "GetObject": "s3:GetObject",
        "AbortMultipartUpload": "s3:AbortMultipartUpload",
    },
    **dict.fromkeys(("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "s3:PutObject"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects"), "s3:DeleteObject"),
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
BY_CODE = {
    **dict.fromkeys(("INVALIDACCESSKEYID", "SIGNATUREDOESNOTMATCH", "INVALIDCLIENTTOKENID", "INVALIDTOKEN"), REJECTED),
    **dict.fromkeys(("UNRECOGNIZEDCLIENT", "INVALIDSIGNATURE", "INVALIDTOKENID", "401"), REJECTED),
    **dict.fromkeys(("ACCESSDENIED", "ALLACCESSDISABLED", "FORBIDDEN", "403"), DENIED),
    **dict.fromkeys(("EXPIREDTOKEN", "TOKENREFRESHREQUIRED"), EXPIRED),
    **dict.fromkeys(("PERMANENTREDIRECT", "AUTHORIZATIONHEADERMALFORMED"), REGION),
    "ILLEGALLOCATIONCONSTRAINTEXCEPTION": REGION,
    **dict.fromkeys(("TEMPORARYREDIRECT", "REDIRECT", "301", "302", "303", "307", "308"), REDIRECTED),
    # What AWS, GCS and Azure say to retry; a code that is not here counts by its HTTP status.
    **dict.fromkeys(("SLOWDOWN", "SERVICEUNAVAILABLE", "SERVERBUSY", "INTERNALERROR", "INTERNALFAILURE"), FAILING),
    **dict.fromkeys(("THROTTLING", "THROTTLINGEXCEPTION", "REQUESTTHROTTLED", "REQUESTLIMITEXCEEDED"), FAILING),
    **dict.fromkeys(("BANDWIDTHLIMITEXCEEDED", "TOOMANYREQUESTS", "OPERATIONTIMEDOUT"), FAILING),
    **dict.fromkeys(("OPERATIONABORTED", "CONDITIONALREQUESTCONFLICT", "409"), FAILING),
    **dict.fromkeys(("408", "429", "500", "502", "503", "504"), FAILING),
    **dict.fromkeys(("NOSUCHKEY", "RESOURCENOTFOUND", "404"), NOTHING),
    **dict.fromkeys(("507", "INSUFFICIENTSTORAGE", "QUOTAEXCEEDED", "XMINIOSTORAGEFULL"), SERVER_FULL),
    **dict.fromkeys(("400", "BADREQUEST"), REFUSED),
    "MISSINGAUTHENTICATIONTOKEN": NO_KEYS,
    **dict.fromkeys(("NOSUCHBUCKET", "INVALIDBUCKETNAME"), NO_BUCKET),
    **dict.fromkeys(("CONTAINERNOTFOUND", "INVALIDRESOURCENAME"), NO_BUCKET),  # Azure's
    **dict.fromkeys(("AUTHENTICATIONFAILED", "INVALIDAUTHENTICATIONINFO"), REJECTED),
    **dict.fromkeys(("NOAUTHENTICATIONINFORMATION", "PUBLICACCESSNOTPERMITTED"), NO_LOGIN),
    "NETWORKCONNECTION": UNREACHABLE,
    "REQUESTTIMEOUT": UNREACHABLE,
    **dict.fromkeys(("REQUESTTIMETOOSKEWED", "REQUESTEXPIRED"), CLOCK),
}
BY_TYPE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((NoCredentialsError, PartialCredentialsError), NO_KEYS),
    (ProfileNotFound, "AWS_PROFILE names a profile that does not exist: correct it for {uri}"),
    (SSLError, UNTRUSTED),
    (CredentialsRenewed, RENEWED),
    ((NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError), UNREACHABLE),
    ((ConnectionError, TimeoutError), UNREACHABLE),
    (http.client.HTTPException, UNREACHABLE),
    (FileNotFoundError, NOTHING),
    (PermissionError, FORBIDDEN),
)
BY_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), NO_FOLDER),
    errno.EISDIR: A_FOLDER,
    errno.ENOTEMPTY: IN_THE_WAY,
    errno.EROFS: FORBIDDEN,
}
# What the clients of other schemes raise, by module; the clients are imported only where a URI needs them.
OTHERS = {
    "gcsfs.retry": (("HttpError", None), ("ChecksumError", UNREACHABLE)),
    "google.auth.exceptions": (("TransportError", UNREACHABLE), ("GoogleAuthError", NO_LOGIN)),
    "azure.core.exceptions": (
        *(("ServiceRequestError", UNREACHABLE), ("ServiceResponseError", UNREACHABLE), ("AzureError", None)),
        ("ClientAuthenticationError", NO_LOGIN),
    ),
    "requests.exceptions": (("ConnectionError", UNREACHABLE), ("Timeout", UNREACHABLE)),
    **dict.fromkeys(("httpx", "httpx2"), (("TransportError", UNREACHABLE), ("HTTPError", None))),
    "aiohttp": (("ClientError", UNREACHABLE),),
    "huggingface_hub.errors": (("OfflineModeIsEnabled", OFFLINE),),
    "safetensors": (("SafetensorError", None),),
}


def storage_errors() -> tuple[type[BaseException], ...]:
    """Return all that the storage libraries in use and the operating system raise."""
    ours = (OSError, pyarrow.ArrowException, BotoCoreError, ClientError, ResponseParserError, http.client.HTTPException)
    return ours + tuple(kind for kind, _ in _others())


def _others() -> Iterator[tuple[type[BaseException], str | None]]:
    for module, named in OTHERS.items():
        if loaded := sys.modules.get(module):
            yield from ((getattr(loaded, name), text) for name, text in named)


def status_of(error: BaseException) -> int:
    """Return the HTTP status that the client of another scheme than S3 hands on; 0 where it does not."""
    found = getattr(error, "status_code", None) or getattr(error, "code", None) or getattr(error, "status", None)
    found = found or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and str(error).startswith("Forbidden:"):  # gcsfs
        return 403
    return int(str(found)) if str(found).isdecimal() else 0


def explain(error: BaseException, uri: str) -> UserError:
    """Return one line: what went wrong at `uri`, and which variable or place to change."""
    if isinstance(error, LoginFailed):
        return _explain_login(error.__cause__, uri)
    answer = client_error(error)
    code = s3_code(error) or _plain(getattr(error, "error_code", None) or "")
    text = BY_CODE.get(code) or (FAILING if _retried(answer) else None)
    if text is None and (status := status_of(error)):
        text = BY_CODE.get(str(status))
    text = text or next((text for kind, text in _others() if text and isinstance(error, kind)), None)
    text = text or next((text for types, text in BY_TYPE if isinstance(error, types)), None)
    if text is None and isinstance(error, OSError):
        text = BY_ERRNO.get(error.errno or 0)
    if text is None:
        detail = without_secrets(" ".join(str(error).split())) or type(error).__name__
        return UserError(f"{uri} cannot be read or written: {detail[:300]}")
    words = words_of(uri, error)
    endpoint = f" {endpoint_host(options_for(uri))}" if "{endpoint}" in text and words is SCHEMES["s3"] else ""
    known = {"server": words.server, "keys": words.keys, "address": words.address, "region": _region(answer)}
    known["right"] = (answer and RIGHTS.get(answer.operation_name)) or "list and read (and for a store write)"
    line = text.format(uri=uri, endpoint=endpoint, **known)
    if text not in (UNREACHABLE, FAILING, RENEWED):
        return (Denied if text in (DENIED, NO_KEYS, NO_LOGIN) else UserError)(line)
    unavailable = Unavailable(line)
    unavailable.retry_after, unavailable.answered = _retry_after(answer), text is FAILING
    return unavailable


def _explain_login(cause: BaseException | None, uri: str) -> UserError:
    if isinstance(cause, (SSOError, TokenRetrievalError)):
        profile = options_for(uri).get("profile") or os.environ.get("AWS_PROFILE")
        return Denied(NO_SSO.format(uri=uri, profile=f" --profile {profile}" if profile else ""))
    unreadable = isinstance(cause, ResponseParserError)
    detail = "it is not STS that answers" if unreadable else without_secrets(" ".join(str(cause).split()))
    services = ("AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_SSO")
    shared = "AWS_ENDPOINT_URL" in os.environ and not any(name in os.environ for name in services)
    known = {"uri": uri, "detail": detail[:300] or type(cause).__name__, "hint": LOGIN_HINT if shared else ""}
    silent = isinstance(cause, (NoConnection, HTTPClientError, ConnectionError, TimeoutError))
    if silent or _retried(client_error(cause)):
        return Unavailable(LOGIN_SILENT.format(**known))
    return Denied(NO_ROLE.format(**known))


def _region(answer: ClientError | None) -> str:
    """Where the bucket is, as an answer of the server says, to be put after AWS_REGION; "" if it does not."""
    if answer is None:
        return ""
    headers = answer.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    error: dict[str, Any] = dict(answer.response.get("Error", {}))
    found = str(headers.get("x-amz-bucket-region") or error.get("Region") or "")
    return f"={found}" if re.fullmatch(r"[a-z0-9-]+", found) else ""


def without_secrets(text: str) -> str:
    """Return a text of the server or of a library without the credentials that it may repeat."""
    for name in SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"<{name}>")
    return text


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Turn errors of the storage libraries and the operating system into a UserError about `uri`."""
    try:
        yield
    except storage_errors() as error:
        raise explain(error, uri) from error
