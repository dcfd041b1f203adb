"""Downloads from a real server on this machine that breaks off, changes and refuses on request."""

import ftplib
import hashlib
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pooch
import pytest
from parts import load_config, read_sheet

from atlasmap.data.download import download
from atlasmap.data.sources import fetch
from atlasmap.errors import AtlasmapError
from atlasmap.settings import SimulateSettings

CONTENT = np.random.default_rng(0).bytes(300_001)
OTHER = np.random.default_rng(1).bytes(300_001)
QUICK = {"tries": 3, "wait_s": 0.01, "timeout_s": 5}
MIDWAY = 200_000


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, breaking off where `server.cuts` says, request by request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        server.before(len(server.asked))
        if server.status != 200:
            self.send_error(server.status)
            return
        start, total = self.start_of_range(), len(server.content)
        self.send_response(206 if start else 200)
        body = server.content
        if start:
            start += server.shift
            body = body[start:][: server.most]
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.length == "told":
            self.send_header("Content-Length", str(len(body)))
        if server.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.close_connection = True

    def start_of_range(self):
        asked, server = self.headers.get("Range"), self.server
        if not asked or not server.ranges:
            return 0
        known = self.headers.get("If-Range")
        if server.heeds_if_range and known and known not in server.headers.values():
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.headers, made.status, made.cuts = CONTENT, {"ETag": '"one"'}, 200, []
    made.ranges = made.heeds_if_range = True
    made.shift, made.most, made.length = 0, None, "told"
    made.asked, made.before = [], lambda _: None
    made.handle_error = lambda *_: None
    made.url = f"http://127.0.0.1:{made.server_port}/cells.h5ad"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "cells.h5ad"


def assert_only(out, content=None):
    """`out` holds `content` and nothing is beside it; or, without content, the folder is empty."""
    assert os.listdir(out.parent) == ([out.name] if content is not None else [])
    assert content is None or out.read_bytes() == content


def raised(code, *args, **settings):
    with pytest.raises(AtlasmapError) as error:
        download(*args, **{**QUICK, **settings})
    assert error.value.code == code
    return error.value


def test_unknown_checksum_is_recorded_and_the_file_is_whole(server, out):
    got = download(server.url, out, **QUICK)
    assert (got.path, got.sha256, got.n_bytes) == (out, sha256(CONTENT), len(CONTENT))
    assert_only(out, CONTENT)
    assert "Range" not in server.asked[0]
    (out.parent / "usual").touch()
    assert out.stat().st_mode == (out.parent / "usual").stat().st_mode


def test_folder_is_made(server, out):
    out = out.parent / "new" / out.name
    download(server.url, out, **QUICK)
    assert_only(out, CONTENT)


@pytest.mark.parametrize(
    "content, said",
    [(b"", "0 bytes"), (b"\n <!DOCTYPE html><title>Log in</title>", "page of HTML"),
     (b"<html lang='en'>", "page of HTML")],
)  # fmt: skip
def test_nothing_or_a_page_is_no_data(server, out, content, said):
    server.content = content
    error = raised("DOWNLOAD_NOT_DATA", server.url, out)
    assert said in error.found and "download" in error.mend
    assert len(server.asked) == 1
    assert_only(out)


def test_a_length_that_is_no_number_is_unsaid(server, out):
    server.length, server.headers = "untold", {"Content-Length": "abc"}
    assert "`sha256`" in raised("DOWNLOAD_FAILED", server.url, out).mend
    download(server.url, out, sha256(CONTENT), **QUICK)
    assert_only(out, CONTENT)


def test_known_checksum_in_capitals_is_the_same(server, out):
    assert download(server.url, out, sha256(CONTENT).upper(), **QUICK).sha256 == sha256(CONTENT)


def test_connection_cut_midway_is_resumed_with_range(server, out):
    server.cuts = [MIDWAY]
    got = download(server.url, out, **QUICK)
    assert len(server.asked) == 2
    assert server.asked[1]["Range"] == f"bytes={MIDWAY}-"
    assert server.asked[1]["If-Range"] == '"one"'
    assert got.sha256 == sha256(CONTENT)
    assert_only(out, CONTENT)


def test_last_modified_stands_in_for_a_weak_etag(server, out):
    date = "Thu, 01 Jan 2026 00:00:00 GMT"
    server.headers, server.cuts = {"ETag": 'W/"one"', "Last-Modified": date}, [MIDWAY]
    download(server.url, out, **QUICK)
    assert server.asked[1]["If-Range"] == date
    assert_only(out, CONTENT)


def test_server_without_range_starts_again(server, out):
    server.ranges, server.cuts = False, [MIDWAY]
    download(server.url, out, **QUICK)
    assert ["Range" in asked for asked in server.asked] == [False, True]
    assert_only(out, CONTENT)


def test_server_that_gives_less_than_the_rest_is_asked_for_more(server, out):
    server.cuts, server.most = [MIDWAY], 60_000
    download(server.url, out, **QUICK)
    assert server.asked[2]["Range"] == f"bytes={MIDWAY + 60_000}-"
    assert_only(out, CONTENT)


def test_part_from_elsewhere_is_not_joined(server, out):
    server.cuts, server.shift, server.most = [MIDWAY], -MIDWAY, len(CONTENT) - MIDWAY
    download(server.url, out, **QUICK)
    assert_only(out, CONTENT)


def test_file_that_became_shorter_is_not_joined(server, out):
    server.headers, server.cuts = {}, [MIDWAY]

    def shorten(n):
        if n == 2:
            server.content = OTHER[:250_000]

    server.before = shorten
    download(server.url, out, sha256(OTHER[:250_000]), **QUICK)
    assert_only(out, OTHER[:250_000])


def test_range_that_is_refused_starts_again(server, out):
    server.cuts = [MIDWAY]

    def refuse(n):
        server.status = 416 if n == 2 else 200

    server.before = refuse
    download(server.url, out, **QUICK)
    assert ["Range" in asked for asked in server.asked] == [False, True, False]
    assert_only(out, CONTENT)


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_file_that_changed_between_tries_is_not_joined(server, out, heeds_if_range):
    server.heeds_if_range, server.cuts = heeds_if_range, [MIDWAY]

    def change(n):
        if n == 2:
            server.content, server.headers = OTHER, {"ETag": '"two"'}

    server.before = change
    assert download(server.url, out, **QUICK).sha256 == sha256(OTHER)
    assert server.asked[1]["Range"] == f"bytes={MIDWAY}-"
    assert_only(out, OTHER)


@pytest.mark.parametrize(("known", "resumes"), [("", False), (sha256(CONTENT), True)])
def test_without_etag_only_a_checksum_makes_resuming_safe(server, out, known, resumes):
    server.headers, server.cuts = {}, [MIDWAY]
    download(server.url, out, known, **QUICK)
    assert ("Range" in server.asked[1]) == resumes
    assert_only(out, CONTENT)


def test_server_that_always_closes_fails_and_a_later_call_finishes(server, out):
    server.cuts = [100_000, 50_000, 25_000]
    error = raised("DOWNLOAD_FAILED", server.url, out)
    assert f"175000 of {len(CONTENT)} bytes" in error.found
    assert "run again" in error.mend
    assert not out.exists()
    assert (out.parent / f".{out.name}.partial").read_bytes() == CONTENT[:175_000]
    assert download(server.url, out, **QUICK).sha256 == sha256(CONTENT)
    assert len(server.asked) == 4
    assert server.asked[3]["Range"] == "bytes=175000-"
    assert_only(out, CONTENT)


def test_partial_of_another_url_or_without_facts_is_not_used(server, out):
    server.cuts = [MIDWAY]
    raised("DOWNLOAD_FAILED", server.url, out, tries=1)
    download(server.url + "?other", out, **QUICK)
    assert "Range" not in server.asked[1]
    out.unlink()
    (out.parent / f".{out.name}.partial").write_bytes(b"x" * MIDWAY)
    server.status = 503
    assert raised("DOWNLOAD_FAILED", server.url, out, tries=1).found.startswith("0 of unknown")
    server.status = 200
    download(server.url, out, **QUICK)
    assert "Range" not in server.asked[3]
    assert_only(out, CONTENT)


def test_nothing_is_asked_when_all_came_but_was_not_yet_renamed(server, out):
    server.cuts = [MIDWAY]
    raised("DOWNLOAD_FAILED", server.url, out, tries=1)
    (out.parent / f".{out.name}.partial").write_bytes(CONTENT)
    download(server.url, out, **QUICK)
    assert len(server.asked) == 1
    assert_only(out, CONTENT)


def test_silent_server_is_given_up(server, out):
    over = threading.Event()
    server.before = lambda _: over.wait(5)
    error = raised("DOWNLOAD_FAILED", server.url, out, tries=1, timeout_s=0.1)
    over.set()
    assert "Timeout" in error.found


def test_wrong_checksum_names_both_and_leaves_nothing(server, out):
    out.write_bytes(b"the wrong file of an earlier run")
    error = raised("DOWNLOAD_CHECKSUM", server.url, out, sha256(OTHER))
    assert sha256(OTHER) in error.expected
    assert sha256(CONTENT) in error.found
    assert "`sha256` in the sheet" in error.mend
    assert_only(out)


@pytest.mark.parametrize("known", ["", sha256(CONTENT)])
def test_file_that_is_there_is_not_asked_for(server, out, known):
    out.write_bytes(CONTENT)
    assert download(server.url, out, known, **QUICK).sha256 == sha256(CONTENT)
    assert server.asked == []


def test_file_that_is_there_with_another_sum_is_replaced(server, out):
    out.write_bytes(OTHER)
    download(server.url, out, sha256(CONTENT), **QUICK)
    assert_only(out, CONTENT)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "DOWNLOAD_NOT_FOUND"),
        (410, "DOWNLOAD_NOT_FOUND"),
        (401, "DOWNLOAD_REFUSED"),
        (403, "DOWNLOAD_REFUSED"),
    ],
)
def test_final_answers_are_not_tried_again(server, out, status, code):
    server.status = status
    error = raised(code, server.url, out)
    assert len(server.asked) == 1
    assert str(status) in error.found
    assert server.url in error.expected
    assert_only(out)


def test_busy_server_is_tried_again_after_growing_waits(server, out, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.status = 503

    def recover(n):
        if n == 3:
            server.status = 200

    server.before = recover
    download(server.url, out, tries=3, wait_s=0.25)
    assert waits == [0.25, 0.5]
    assert_only(out, CONTENT)


def test_body_of_unsaid_length_needs_a_checksum(server, out):
    server.length = "untold"
    error = raised("DOWNLOAD_FAILED", server.url, out)
    assert "`sha256`" in error.mend
    assert_only(out)
    download(server.url, out, sha256(CONTENT), **QUICK)
    assert_only(out, CONTENT)


def test_chunked_body_is_known_to_be_whole(server, out):
    server.length, server.cuts = "chunked", [MIDWAY]
    download(server.url, out, **QUICK)
    assert ["Range" in asked for asked in server.asked] == [False, False]
    assert_only(out, CONTENT)


def test_bytes_are_kept_as_sent(server, out):
    server.headers = {"Content-Encoding": "gzip"}
    download(server.url, out, **QUICK)
    assert server.asked[0]["Accept-Encoding"] == "identity"
    assert_only(out, CONTENT)


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_on_a_terminal_else_a_log_line(server, out, monkeypatch, capsys, caplog, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    caplog.set_level(logging.INFO, "atlasmap")
    download(server.url, out, **QUICK)
    assert ("100%" in capsys.readouterr().err) == terminal
    assert (f"from byte 0 of {len(CONTENT)}" in caplog.text) == (not terminal)


def test_disk_that_is_full_is_an_error_to_mend(server, out, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atlasmap.data.download.Downloader.receive", full)
    error = raised("DOWNLOAD_FAILED", server.url, out)
    assert "No space left" in error.found
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "url", ["s3://bucket/cells.h5ad", "hf://owner/model", "gs://b/c.h5ad", "file:///d/c.h5ad"]
)
def test_other_kinds_of_url_are_refused_before_anything_runs(out, tmp_path, url):
    assert "https or ftp" in raised("URL_SCHEME", url, out).expected
    with pytest.raises(AtlasmapError, match="URL_SCHEME"):
        load_config(
            {"atlas": "a", "datasets": "d", "reference": {"scvi_tools": url, "adata": "a.h5ad"}}
        )
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text(f"id\tpath\trole\na\t{url}\treference\n")
    with pytest.raises(AtlasmapError, match="URL_SCHEME") as error:
        read_sheet(sheet)
    assert ("without file://" in error.value.mend) == url.startswith("file")


@pytest.mark.parametrize("name", ["builtin:pbmc68k_reduced", "builtin:", "builtin:Simulated"])
def test_no_other_builtin_is_made(out, name):
    with pytest.raises(AtlasmapError, match="SHEET_BUILTIN"):
        fetch(name, out, "", SimulateSettings())
    assert_only(out)


def ftp_that(monkeypatch, *happens):
    """pooch's FTP downloader (it knows only port 21), with its answers in turn."""
    answers = list(happens)

    class Ftp:
        def __init__(self, **_):
            pass

        def __call__(self, url, output_file, pooch):
            answer = answers.pop(0)
            with open(output_file, "wb") as file:
                file.write(CONTENT if answer is None else CONTENT[:MIDWAY])
            if answer is not None:
                raise answer

    monkeypatch.setattr(pooch, "FTPDownloader", Ftp)


def test_ftp_is_tried_again(out, monkeypatch):
    ftp_that(monkeypatch, EOFError(), ftplib.error_temp("426 closed"), None)
    assert download("ftp://127.0.0.1/cells.h5ad", out, **QUICK).sha256 == sha256(CONTENT)
    assert_only(out, CONTENT)


@pytest.mark.parametrize(
    ("answer", "code"),
    [("550 no such file", "DOWNLOAD_NOT_FOUND"), ("530 not logged in", "DOWNLOAD_REFUSED")],
)
def test_ftp_answers_are_not_tried_again(out, monkeypatch, answer, code):
    ftp_that(monkeypatch, ftplib.error_perm(answer))
    assert answer in raised(code, "ftp://127.0.0.1/cells.h5ad", out).found
    assert not out.exists()
