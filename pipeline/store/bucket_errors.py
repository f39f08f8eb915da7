"""What a bucket's failures mean: whether to try again, and what to tell a person.

A service's own words are never passed on: the body of an error may quote keys and session tokens.
"""

import re
from dataclasses import dataclass

from labelmill.pipeline.store.bucket_address import BucketAddress, endpoint_of

# The latter of one file among several that one request deletes.
_STATUS = re.compile(r"(?:status code: |\(code: )(\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_URL = re.compile(r"\w+://\S+")
# Where clients fetch credentials when the environment has none.
_CREDENTIALS = re.compile(r" https?://169\.254\.|/latest/(api/token|meta-data)|token request|AssumeRole")
_NO_REGION = "redirect without LOCATION"
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"}
_PASSING = {"RequestTimeout", "SlowDown", "ConditionalRequestConflict", "OperationAborted", "OperationTimedOut"}
_KEPT = "Finished work is kept: rerun the same command to resume"


@dataclass(frozen=True)
class Failure:
    """What an error of obstore says."""

    status: int | None
    """The HTTP status of the service's answer, None where there was none."""
    code: str | None
    """The service's name for the error."""
    is_about_credentials: bool
    """It was met on the way to credentials, before the bucket was asked."""
    is_about_connection: bool
    """The request, or its answer, did not get through."""
    words: str
    """The client's own, without addresses and without the service's."""

    @property
    def has_answered(self) -> bool:
        """Whether the service itself is there."""
        return self.status is not None and not self.is_about_credentials

    @property
    def is_missing_file(self) -> bool:
        """Whether the service has the bucket, but not the file in it; without a code nobody can tell."""
        return self.status == 404 and self.code not in _NO_BUCKET and not self.is_about_credentials

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        is_busy = self.status is not None and (self.status in (408, 429) or self.status >= 500)
        return is_busy or self.code in _PASSING or self.is_about_connection

    @property
    def summary(self) -> str:
        """In a few words."""
        if self.is_about_credentials:
            return "no credentials could be obtained"
        if self.status is not None:
            return f"the service answered {self.status}{f' {self.code}' if self.code else ''}"
        return "the service did not answer" if self.is_about_connection else self.words


def diagnose(error: Exception) -> Failure:
    """Read an error of obstore."""
    text = str(error)
    # A service's answer follows the status; what follows an empty line is a dump of the client's insides.
    headline = re.split(r"\n\n|<", text, maxsplit=1)[0]
    status = _STATUS.search(headline)
    code = _CODE.search(text.split("\n\nDebug source")[0])
    return Failure(
        status=int(status[1]) if status else 301 if _NO_REGION in headline else None,
        code=code[1] if code else None,
        is_about_credentials=_CREDENTIALS.search(headline) is not None,
        is_about_connection=status is None and "HTTP error" in headline and "builder error" not in headline,
        words=_URL.sub("...", headline.split("\n")[0]),
    )


def advice(failure: Failure, address: BucketAddress) -> str:
    """What failed and what to do about it, for a person."""
    if failure.is_about_credentials:
        profile = " (profiles: `eval $(aws configure export-credentials --format env)`)" * (address.scheme == "s3")
        return f"no credentials. Set {address.settings}{profile}, or work on a machine that has a role"
    if failure.code in _NO_BUCKET:
        return f"there is no bucket {address.bucket}. Check its name, or create it"
    if failure.status == 301 or failure.code in _WRONG_REGION:
        return f"bucket {address.bucket} is in another region. Set AWS_REGION to the bucket's"
    if failure.code in _EXPIRED:
        return f"the credentials have expired. Get new ones. {_KEPT}"
    if failure.code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong by minutes. Set it"
    if failure.status == 401 or failure.code in _UNKNOWN_KEY:
        return f"{failure.summary}: the credentials are not valid here. Check {address.settings}"
    if failure.status == 403:
        return (
            f"{failure.summary}: no permission. The credentials ({address.settings}) must be allowed to list the "
            f"bucket and to read, write and delete its objects"
        )
    if failure.is_about_connection:
        endpoint = endpoint_of(address.scheme)
        where = f"{endpoint[1]} ({endpoint[0]})" if endpoint else "the service"
        return f"{where} cannot be reached. Check the network and the address. {_KEPT}"
    if failure.may_pass:
        return f"{failure.summary}, repeatedly. {_KEPT} once the service works again"
    return f"{failure.summary}"
