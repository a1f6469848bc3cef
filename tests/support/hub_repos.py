"""Repositories of a local hub, read and written as the real client does it: commits, branches, large files by parts.

`HubRepos.answer` takes a request and returns (status, headers, body); `local_hub.Handler` sends it. No storage by
chunks ("xet"): a hub without it answers a client without it as it did before.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from support.model_cards import card_faults

COMMIT = "a" * 40
JSON = {"Content-Type": "application/json"}
READ_TOKEN, WRITE_TOKEN = "hf_read", "hf_write"
"""The tokens that the hub knows."""

Answer = tuple[int, dict[str, str], bytes]


def is_large(name: str) -> bool:
    """Whether the hub stores a file as a large one."""
    return name.endswith((".bin", ".safetensors", ".model"))


def blob_id(content: bytes) -> str:
    """What git calls a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs(name: str, content: bytes) -> dict[str, object]:
    """What the hub says of a large file."""
    digest = hashlib.sha256(content).hexdigest()
    known = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
    return {"lfs": known} if is_large(name) else {}


@dataclass
class Repo:
    """Commits (name -> content) and where each branch is."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 39 + "1": {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 39 + "1"})

    def at(self, revision: str) -> str | None:
        """Return the commit of a branch or a commit."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        """Commit files to a branch; return the commit."""
        listed = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in sorted(files.items())]
        commit = hashlib.sha1(f"{branch} {len(self.commits)} {listed}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


def published(files: dict[str, bytes], commit: str = COMMIT, *, private: bool = False) -> Repo:
    """Return a repository with one commit."""
    return Repo(private, {commit: dict(files)}, {"main": commit})


class HubRepos:
    """Repositories by name, the large files that were sent, and the tokens that count.

    Attributes:
        objects: sha256 -> content of each large file.
        sent: paths of the PUT requests that arrived whole, in order.
        part_size: larger files are sent in parts of that many bytes.
        refuse_puts: number of PUT requests after which each one is answered 500; None: never.
    """

    def __init__(self, url: str):
        self.url = url
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.sent: list[str] = []
        self.part_size = 1 << 40
        self.refuse_puts: int | None = None

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer | None:
        """Return what the hub's API answers; None where the path is none of it."""
        parts, query = urlsplit(path), parse_qs(urlsplit(path).query)
        where = unquote(parts.path)
        if token not in (None, READ_TOKEN, WRITE_TOKEN):
            return 401, JSON | {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        if found := re.fullmatch("/lfs/([0-9a-f]{64})(?:/([0-9]+|done|verify))?", where):
            return self.store(method, found[1], found[2], body)
        if where == "/api/validate-yaml":
            faults = card_faults(json.loads(body)["content"])
            return (
                400 if faults else 200,
                JSON,
                said({"errors": [{"message": text} for text in faults], "warnings": []}),
            )
        if where == "/api/whoami-v2":
            return (200, JSON, said({"name": "ada", "type": "user"})) if token else denied()
        if where == "/api/repos/create":
            return self.create(json.loads(body), token)
        batch = re.fullmatch("/([^/]+/[^/]+)[.]git/info/lfs/objects/batch", where)
        found = batch or re.fullmatch("/api/models/([^/]+/[^/]+?)(/.*)?", where)
        if found is None:
            return None
        repo = self.repos.get(found[1])
        if repo is None or (repo.private and token is None):
            return 401, JSON | {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if method != "GET" and token != WRITE_TOKEN:
            return (403, JSON | {"X-Error-Message": "You need write rights"}, b"{}") if token else denied()
        if batch:
            return self.batch(json.loads(body))
        return self.of_repo(found[1], repo, method, (found[2] or "").strip("/"), query, body)

    def of_repo(
        self, name: str, repo: Repo, method: str, rest: str, query: dict[str, list[str]], body: bytes
    ) -> Answer:
        verb, _, more = rest.partition("/")
        revision = more.partition("/")[0] or "main"
        if verb == "branch" and method == "POST":
            if more in repo.branches:
                return 409, JSON, said({"error": "Reference already exists"})
            repo.branches[more] = repo.branches["main"]
            return 200, JSON, b"{}"
        commit = repo.at(revision)
        if commit is None:
            return 404, JSON | {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}"
        files = repo.commits[commit]
        if verb == "tree":
            listed = [
                {"type": "file", "path": n, "size": len(c), "oid": blob_id(c), **lfs(n, c)} for n, c in files.items()
            ]
            return 200, JSON, said(listed)
        if verb in ("", "revision"):
            siblings = [{"rfilename": n, "size": len(c), "blobId": blob_id(c), **lfs(n, c)} for n, c in files.items()]
            about = {"id": name, "sha": commit, "siblings": siblings, "private": repo.private}
            return 200, JSON, said(about | {"downloads": 0, "tags": []})
        if verb == "preupload":
            asked = json.loads(body)["files"]
            return 200, JSON, said({"files": [self.mode(files, one["path"]) for one in asked]})
        if verb == "commit":
            return self.commit(name, repo, revision, [json.loads(line) for line in body.splitlines()])
        return 404, JSON, b"{}"

    def create(self, asked: dict[str, str], token: str | None) -> Answer:
        name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
        if token != WRITE_TOKEN:
            return (403, JSON | {"X-Error-Message": "You don't have the rights"}, b"{}") if token else denied()
        if not name.startswith(("ada/", "org/")):
            said_no = f"You don't have the rights to create a model under the namespace {name.partition('/')[0]!r}"
            return 403, JSON | {"X-Error-Message": said_no}, b"{}"
        if name in self.repos:
            return 409, JSON, said({"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        self.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, JSON, said({"url": f"{self.url}/{name}", "name": name})

    @staticmethod
    def mode(files: dict[str, bytes], name: str) -> dict[str, object]:
        """Say how a file is sent, and what the branch holds under its name."""
        known = {}
        if (content := files.get(name)) is not None:
            known = {"oid": hashlib.sha256(content).hexdigest() if is_large(name) else blob_id(content)}
        return {"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False, **known}

    def batch(self, asked: dict[str, list[dict[str, object]]]) -> Answer:
        """Say where to send the large files that are not here yet."""
        objects = []
        for one in asked["objects"]:
            place, size = f"{self.url}/lfs/{one['oid']}", int(str(one["size"]))
            upload: dict[str, object] = {"href": place}
            if size > self.part_size:
                numbers = range(1, -(-size // self.part_size) + 1)
                header = {"chunk_size": str(self.part_size)} | {str(n): f"{place}/{n}" for n in numbers}
                upload = {"href": f"{place}/done", "header": header}
            actions = (
                {}
                if one["oid"] in self.objects
                else {"actions": {"upload": upload, "verify": {"href": f"{place}/verify"}}}
            )
            objects.append({**one, **actions})
        return 200, {"Content-Type": "application/vnd.git-lfs+json"}, said({"transfer": "basic", "objects": objects})

    def store(self, method: str, oid: str, part: str | None, body: bytes) -> Answer:
        """Take a large file, or a part of one; check it against its name."""
        if method == "PUT":
            if self.refuse_puts is not None and len(self.sent) >= self.refuse_puts:
                return 500, {}, b"try later"
            self.sent.append(oid if part is None else f"{oid}/{part}")
            if part is not None:
                self.parts.setdefault(oid, {})[int(part)] = body
                return 200, {"ETag": f'"{part}"'}, b""
        elif part == "done":
            body = b"".join(content for _, content in sorted(self.parts.pop(oid, {}).items()))
        elif part == "verify":
            return (200, JSON, b"{}") if oid in self.objects else (404, JSON, b"{}")
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, JSON, said({"error": "the content is not what its name says"})
        self.objects[oid] = body
        return 200, JSON, b"{}"

    def commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, dict[str, str]]]) -> Answer:
        """Take a commit, whole or not at all."""
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, JSON, said({"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        commit = repo.add(branch, files)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}
        return 200, JSON, said(answer | {"hookOutput": ""})


def said(value: object) -> bytes:
    """Return the body of an answer."""
    return json.dumps(value).encode()


def denied() -> Answer:
    """Return the answer to somebody without a token."""
    return 401, JSON | {"X-Error-Message": "Invalid username or password."}, b"{}"
