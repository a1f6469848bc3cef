"""Servers behind real ports: an application in a thread, and `vlm serve` as a process."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import uvicorn

WAIT = 240
"""Seconds: starting takes five of a processor, of which a busy machine may give little."""


class Server:
    """An application served from a thread on a free port."""

    def __init__(self, app):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()


class Relay:
    """Stands between a client and a server on this machine; `cut` breaks every connection, and later ones work."""

    def __init__(self, url):
        self.server = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open, self.threads = [], []
        self.start(self.accept)

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            ends = [client, socket.create_connection(self.server)]
            self.open += ends
            for source, target in (ends, ends[::-1]):
                self.start(self.pass_on, source, target)

    def start(self, work, *arguments):
        self.threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self.threads[-1].start()

    def pass_on(self, source, target):
        """The end of one direction is the end of both, as with HTTP it may be."""
        with suppress(OSError):  # cut
            while piece := source.recv(1 << 16):
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def cut(self):
        while self.open:
            end = self.open.pop()
            with suppress(OSError):  # it may have ended by itself
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for thread in self.threads:
            thread.join(WAIT)


class ServeProcess:
    """A running `vlm serve`: its address, its lines, and signals to it."""

    def __init__(self, home, checkpoint, *options):
        command = [sys.executable, "-m", "vlm.cli.main", "serve", "-m", str(checkpoint), "--device", "cpu", *options]
        env = {
            **os.environ,
            "VLM_HOME": str(home),
            "TMPDIR": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=home
        )
        self.lines, self.url = [], ""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        try:
            self.await_start()
        except BaseException:
            self.kill()
            raise

    def await_start(self):
        deadline = time.monotonic() + WAIT
        while not self.url:
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.05)
        while httpx.get(f"{self.url}/health", verify=False, timeout=WAIT).status_code != 200:
            time.sleep(0.05)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(WAIT)
        self.process.stdout.close()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"(https?://\S+) for people", line):
                self.url = found[1]

    def end(self, signal_):
        self.process.send_signal(signal_)
        code = self.process.wait(WAIT)
        self.reader.join(WAIT)
        return code
