"""A local server that speaks the protocol of the Hugging Face hub, as far as pushing and pulling use it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens of the user "me"; READER may not write
LARGE = (".safetensors", ".mp4")  # suffixes that go to the storage of large files


@dataclass
class Repo:
    """A repository: its commits in order, each a name -> content of all files."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.mp4 filter=lfs\n"}])
    messages: list[str] = field(default_factory=list)

    def sha(self, index: int) -> str:
        return hashlib.sha1(f"{index}".encode()).hexdigest()

    def at(self, revision: str) -> int | None:
        """The commit of a revision: main or a hash."""
        if revision == "main":
            return len(self.commits) - 1
        return next((index for index in range(len(self.commits)) if self.sha(index) == revision), None)


@dataclass
class Hub:
    """The server's repositories and its next faults; `requests` holds what was asked, in order."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)  # Range headers of downloads of large files
    drops: list[int] = field(default_factory=list)  # bytes after which downloads of large files break off
    statuses: dict[str, int] = field(default_factory=dict)  # words of a request -> status of its answer
    gated: set[str] = field(default_factory=set)


class RefusalError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def blob(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """The server, while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked = f"{self.command} {path}"
            hub.requests.append(asked)
            size = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding") == "chunked":
                self.body = b"".join(iter(self.chunk, b""))
            else:
                self.body = self.rfile.read(size)
            try:
                for words, status in hub.statuses.items():
                    if words in asked:
                        raise RefusalError(status, message="by the test")
                for pattern, method in ROUTES.items():
                    if found := re.fullmatch(pattern, asked):
                        method(self, **found.groupdict())
                        return
                raise RefusalError(404, message=f"no route for {asked}")
            except RefusalError as refusal:
                codes = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self.reply(refusal.status, {"error": refusal.message}, {k: v for k, v in codes.items() if v})

        do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

        def chunk(self) -> bytes:
            size = int(self.rfile.readline(), 16)
            found = self.rfile.read(size)
            self.rfile.readline()
            return found

        def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):
                    self.wfile.write(body)

        def token(self) -> str:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def repo(self, name: str) -> Repo:
            if self.token() not in ("", WRITER, READER):
                raise RefusalError(401, message="Invalid credentials in Authorization header")
            if name not in hub.repos or (hub.repos[name].private and not self.token()):
                raise RefusalError(404 if self.token() else 401, "RepoNotFound", "Repository not found")
            if name in hub.gated:
                raise RefusalError(403, "GatedRepo", "Access to it is restricted")
            return hub.repos[name]

        def commit_of(self, name: str, revision: str) -> tuple[Repo, int]:
            repo = self.repo(name)
            index = repo.at(revision)
            if index is None:
                raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return repo, index

        def need_writer(self, user: str) -> None:
            if self.token() != WRITER or user != "me":
                raise RefusalError(403, message="You do not have the rights to write there")

        def make(self) -> None:
            asked = json.loads(self.body)
            self.need_writer(asked["organization"])
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repos:
                raise RefusalError(409, message="You already created this model repo")
            hub.repos[name] = Repo(private=bool(asked.get("private") or asked.get("visibility") == "private"))
            self.reply(200, {"url": f"{hub.url}/{name}", "name": name})

        def info(self, name: str, revision: str | None = None) -> None:
            repo, index = self.commit_of(name, revision or "main")
            files = [{"rfilename": file} for file in repo.commits[index]]
            self.reply(200, {"id": name, "sha": repo.sha(index), "private": repo.private, "siblings": files})

        def tree(self, name: str, revision: str) -> None:
            repo, index = self.commit_of(name, revision)
            found = []
            for path, content in repo.commits[index].items():
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
                if path.endswith(LARGE):
                    oid = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
                found.append(entry)
            self.reply(200, found)

        def check_card(self) -> None:
            _, header, text = json.loads(self.body)["content"].split("---\n", 2)
            known = yaml.safe_load(header)
            wrong = [key for key in ("library_name", "tags") if key not in known] or ([] if text.strip() else ["text"])
            self.reply(400 if wrong else 200, {"errors": [{"message": key} for key in wrong], "warnings": []})

        def modes(self, name: str, revision: str) -> None:
            repo, index = self.commit_of(name, revision)
            self.need_writer(name.split("/")[0])
            files = repo.commits[index]
            self.reply(200, {"files": [
                {
                    "path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False, "oid": blob(files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(self.body)["files"]
            ]})  # fmt: skip

        def batch(self, name: str) -> None:
            self.need_writer(name.split("/")[0])
            objects = []
            for item in json.loads(self.body)["objects"]:
                places = {"upload": {"href": f"{hub.url}/storage/{item['oid']}"}}
                objects.append(item if item["oid"] in hub.stored else {**item, "actions": places})
            self.reply(200, {"transfer": "basic", "objects": objects})

        def store(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise RefusalError(400, message="the content does not match its hash")
            hub.stored[oid] = self.body
            self.reply(200, {})

        def commit(self, name: str, revision: str) -> None:
            repo, index = self.commit_of(name, revision)
            self.need_writer(name.split("/")[0])
            files = dict(repo.commits[index])
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo.messages.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
                else:
                    assert line["key"] == "deletedFile"
                    del files[value["path"]]
            repo.commits.append(files)
            sha = repo.sha(len(repo.commits) - 1)
            self.reply(200, {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha})

        def file(self, name: str, revision: str, path: str) -> None:
            repo, index = self.commit_of(name, revision)
            if path not in repo.commits[index]:
                raise RefusalError(404, "EntryNotFound", "Entry not found")
            content = repo.commits[index][path]
            headers = {"X-Repo-Commit": repo.sha(index), "ETag": f'"{blob(content)}"'}
            if not path.endswith(LARGE):
                self.reply(200, content, headers)
                return
            oid = hashlib.sha256(content).hexdigest()
            hub.stored.setdefault(oid, content)
            large = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            elsewhere = hub.url.replace("127.0.0.1", "localhost")  # another host, as the hub's own storage is
            self.reply(302, b"", {**headers, **large, "Location": f"{elsewhere}/storage/{oid}"})

        def content(self, oid: str) -> None:
            assert not self.token()  # it is not for that host
            content, wanted = hub.stored[oid], self.headers.get("Range")
            hub.ranges.append(wanted)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{oid}"')
            self.end_headers()
            self.wfile.write(content[start : start + (hub.drops.pop(0) if hub.drops else len(content))])

        def log_message(self, *args: object) -> None:
            pass

    name, revision = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
    ROUTES: dict[str, Callable[..., None]] = {
        r"POST /api/repos/create": Handler.make,
        rf"GET /api/models/{name}": Handler.info,
        rf"GET /api/models/{name}/revision/{revision}": Handler.info,
        rf"GET /api/models/{name}/tree/{revision}": Handler.tree,
        r"POST /api/validate-yaml": Handler.check_card,
        rf"POST /api/models/{name}/preupload/{revision}": Handler.modes,
        rf"POST /{name}\.git/info/lfs/objects/batch": Handler.batch,
        r"PUT /storage/(?P<oid>\w+)": Handler.store,
        r"GET /storage/(?P<oid>\w+)": Handler.content,
        rf"POST /api/models/{name}/commit/{revision}": Handler.commit,
        rf"(?:GET|HEAD) /{name}/resolve/{revision}/(?P<path>.+)": Handler.file,
    }
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield hub
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
