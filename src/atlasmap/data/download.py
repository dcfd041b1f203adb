"""Download one file with retries, resume and checksum; it is moved to its path when complete."""

import ftplib
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
import urllib3
from tqdm import tqdm

from atlasmap.errors import AtlasmapError, check_url

log = logging.getLogger("atlasmap")
# At INFO pooch advises on arguments of pooch.retrieve, which users here never see.
pooch.get_logger().setLevel(logging.WARNING)
CHUNK = 1 << 16  # bytes per write; at most this much is lost when a connection breaks
MISSING = ("DOWNLOAD_NOT_FOUND", "correct the URL in the sheet; the file may have moved")
REFUSED = ("DOWNLOAD_REFUSED", "put a login in ~/.netrc, or download by hand and give its path")
FINAL = {401: REFUSED, 403: REFUSED, 404: MISSING, 410: MISSING, "530": REFUSED, "550": MISSING}
AGAIN = "check the network, then run again: it resumes where it stopped if the server allows it"


@dataclass(frozen=True)
class Download:
    """The finished file, its sha256 (64 hex digits) and its size in bytes."""

    path: Path
    sha256: str
    n_bytes: int


class Interrupted(Exception):
    """A failed attempt that is worth repeating."""


def check_answer(status: int | str, answer: str, url: str) -> None:
    """Raise DOWNLOAD_NOT_FOUND or DOWNLOAD_REFUSED for a status that a retry cannot change.

    `status` is an HTTP status code or an FTP reply code (text).
    """
    if status in FINAL:
        code, mend = FINAL[status]
        raise AtlasmapError(code, expected=f"a file at {url}", found=answer, mend=mend)


def validator(response: requests.Response) -> str:
    """Return the strong ETag, else Last-Modified, else empty, for use in If-Range.

    If-Range does not accept weak ETags.
    """
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def continues(response: requests.Response, have: int, facts: dict) -> bool:
    """Whether a 206 response continues the partial file (`have` bytes) in the same version."""
    part = response.headers.get("Content-Range", "")
    right = part.startswith(f"bytes {have}-") and part.endswith(f"/{facts.get('total')}")
    return right and validator(response) in ("", facts["validator"])


class Downloader:
    """A pooch downloader with retries, which keeps the partial file for later attempts and runs.

    `wait_s` (seconds) is the wait after the first attempt and doubles; `timeout_s` (seconds) is how
    long the server may be silent. `.NAME.partial` holds the received bytes, `.NAME.partial.json`
    their URL, total size and validator.
    """

    def __init__(self, out: Path, sha256: str, tries: int, wait_s: float, timeout_s: float):
        self.out, self.sha256 = out, sha256
        self.tries, self.wait_s, self.timeout_s = tries, wait_s, timeout_s
        self.partial = out.with_name(f".{out.name}.partial")
        self.facts = out.with_name(f".{out.name}.partial.json")
        self.total: int | None = None

    def __call__(self, url: str, output_file: str, _pooch=None) -> None:
        """Fetch `url` into `output_file`; raises DOWNLOAD_* errors."""
        once = self.ftp if url.startswith("ftp://") else self.http
        for k in range(1, self.tries + 1):
            try:
                once(url)
                break
            except Interrupted as error:
                found = f"{self.size()} of {self.total or 'unknown'} bytes: {error}"
                log.warning("try %d of %d for %s: %s", k, self.tries, url, found)
                if k == self.tries:
                    raise self.failed(url, f"{found} (try {k} of {k})", AGAIN) from error
                time.sleep(self.wait_s * 2 ** (k - 1))
        self.check_sum(url)
        self.check_data(url)
        os.replace(self.partial, output_file)
        self.facts.unlink(missing_ok=True)

    def failed(self, url: str, found: str, mend: str) -> AtlasmapError:
        """Return the error DOWNLOAD_FAILED."""
        return AtlasmapError("DOWNLOAD_FAILED", expected=f"all of {url}", found=found, mend=mend)

    def size(self) -> int:
        """Size of the partial file in bytes."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def discard(self) -> None:
        """Delete the partial file and its facts."""
        self.partial.unlink(missing_ok=True)
        self.facts.unlink(missing_ok=True)

    def remembered(self, url: str) -> dict:
        """Return url, total (bytes) and validator of a partial file that can be resumed.

        Otherwise discard the partial file and return {}.
        """
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
            # Without validator and checksum, parts of two versions could be joined unnoticed.
            sure = facts["validator"] or self.sha256
            if sure and facts["url"] == url and 0 < self.size() <= facts["total"]:
                return facts
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.discard()
        return {}

    def http(self, url: str) -> None:
        """One attempt by HTTP(S), resuming the partial file; raises Interrupted."""
        facts, headers = self.remembered(url), {"Accept-Encoding": "identity"}
        have, self.total = self.size(), facts.get("total")
        if facts and have == self.total:
            return
        if facts:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": facts["validator"]} if facts["validator"] else {}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=self.timeout_s) as answer:
                self.accept(answer, url, have, facts)
                self.receive(answer, url)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Interrupted(f"{type(error).__name__}: {error}") from error

    def accept(self, response: requests.Response, url: str, have: int, facts: dict) -> None:
        """Check status and headers of `response`, and empty the partial file if it starts anew.

        Raises Interrupted, DOWNLOAD_NOT_FOUND, DOWNLOAD_REFUSED, DOWNLOAD_FAILED.
        """
        status, answer = response.status_code, f"{response.status_code} {response.reason}"
        check_answer(status, answer, url)
        if status == 416 or (status == 206 and not continues(response, have, facts)):
            self.discard()
            raise Interrupted("the file on the server changed")
        if status not in (200, 206):
            raise Interrupted(f"the server answered {answer}")
        if status == 200:
            length = response.headers.get("Content-Length", "")
            self.total = int(length) if length.isdecimal() else None
            if self.total is None and not (response.raw.chunked or self.sha256):
                found = "a server that does not say how long the file is"
                raise self.failed(url, found, "give `sha256` in the sheet, to know it is whole")
            self.partial.write_bytes(b"")
            new = {"url": url, "total": self.total, "validator": validator(response)}
            self.facts.write_text(json.dumps(new), encoding="utf-8")

    def receive(self, response: requests.Response, url: str) -> None:
        """Append the body to the partial file; raises Interrupted if it is incomplete."""
        have, shown = self.size(), sys.stderr.isatty()
        if not shown:
            total = self.total if self.total is not None else "unknown"
            log.info("downloading %s from byte %d of %s", url, have, total)
        look = {"unit": "B", "unit_scale": True, "ncols": 79, "disable": not shown}
        with (
            open(self.partial, "ab") as file,
            tqdm(total=self.total, initial=have, **look) as progress,
        ):
            # Not decoded: a decoded body would not have the length in Content-Length.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                progress.update(len(chunk))
        if self.total is not None and self.size() != self.total:
            raise Interrupted("the connection closed early")

    def ftp(self, url: str) -> None:
        """One attempt by FTP, always from the start; raises Interrupted."""
        self.discard()
        shown = sys.stderr.isatty()
        if not shown:
            log.info("downloading %s", url)
        try:
            fetch = pooch.FTPDownloader(progressbar=shown, timeout=self.timeout_s, chunk_size=CHUNK)
            fetch(url, str(self.partial), None)
        except ftplib.all_errors as error:
            check_answer(str(error)[:3], str(error), url)
            raise Interrupted(f"{type(error).__name__}: {error}") from error

    def check_data(self, url: str) -> None:
        """Delete the file and raise DOWNLOAD_NOT_DATA if it is empty or an HTML page."""
        with open(self.partial, "rb") as file:
            begins = file.read(1024).lstrip().lower()
        page = begins.startswith((b"<!doctype html", b"<html"))
        if self.size() and not page:
            return
        found = "a page of HTML" if page else "nothing: a file of 0 bytes"
        self.discard()
        raise AtlasmapError(
            "DOWNLOAD_NOT_DATA",
            expected=f"a file of data at {url}",
            found=found,
            mend="give the URL that the page's download button leads to (open it in a browser: a "
            "login or a licence may come first), or download by hand and give the path",
        )

    def check_sum(self, url: str) -> None:
        """Delete the file and raise DOWNLOAD_CHECKSUM if its sha256 is not the expected one."""
        found = pooch.file_hash(str(self.partial))
        if self.sha256 in ("", found):
            return
        self.discard()
        self.out.unlink(missing_ok=True)
        raise AtlasmapError(
            "DOWNLOAD_CHECKSUM",
            expected=f"sha256 {self.sha256} of {url}",
            found=f"sha256 {found}",
            mend="run again in case it was damaged on the way; if it stays, correct `sha256` in "
            "the sheet, or empty it there to take the file as it is",
        )


def download(
    url: str,
    out: Path,
    sha256: str = "",
    *,
    tries: int = 5,
    wait_s: float = 2.0,
    timeout_s: float = 60.0,
) -> Download:
    """Download `url` (http, https, ftp) to `out`; returns path, sha256 and size.

    An existing `out` is kept if its checksum is `sha256`, or if `sha256` is empty. `wait_s`
    (seconds) is the wait after the first attempt and doubles; `timeout_s` (seconds) is how long a
    server may be silent.

    Raises URL_SCHEME, DOWNLOAD_NOT_FOUND, DOWNLOAD_REFUSED, DOWNLOAD_CHECKSUM, DOWNLOAD_NOT_DATA
    (empty, or an HTML page) and DOWNLOAD_FAILED (all attempts failed, or a disk error); after
    DOWNLOAD_FAILED the next call resumes.
    """
    check_url(url, "a file to download")
    out, sha256 = Path(out), sha256.lower()
    fetch = Downloader(out, sha256, tries, wait_s, timeout_s)
    try:
        pooch.retrieve(url, sha256 or None, fname=out.name, path=out.parent, downloader=fetch)
    except OSError as error:
        mend = f"make room, or make {out.parent} writable, then run again"
        raise fetch.failed(url, f"{fetch.size()} bytes, then: {error}", mend) from error
    return Download(out, sha256 or pooch.file_hash(str(out)), out.stat().st_size)
