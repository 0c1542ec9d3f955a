"""`minicpmv serve` under mixed requests for minutes, while its engine is killed again and again.

    python -m tests.bench.soak build/demo --minutes 15

Clients ask whole and streamed, with and without pictures, with logprobs; some hang up, some send
what is no request, some send half of it. Every answer to the same greedy question must be the same.
An engine that is killed at work costs the one request that it was answering, and nothing else; one
that is stopped costs those whose clients gave up. Prints requests, kills, statuses, and the memory
of server and engine before and after; exit code 1 if something else failed.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.web import ROOT, WebServer

CHAT = "/v1/chat/completions"
PICTURE = base64.b64encode((ROOT / "configs/demo/sample.png").read_bytes()).decode()
SEEING = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
QUESTIONS = ("What colour is the shape?", "这个图形是什么颜色？", "Describe the picture.")
BAD: tuple[tuple[Any, int], ...] = (
    (b"{", 400),
    (b"\xff", 400),
    ({"messages": []}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "n": 3}, 400),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "\udc00": 1}, 400),
    ({"messages": [{"role": "user", "content": "x " * 20_000}]}, 400),  # longer than the window
    ({"messages": [{"role": "user", "content": "x"}], "model": "other"}, 404),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": "data:;base64,AAAA"}]}]}, 400),
)  # fmt: skip
CLIENTS, PATIENCE_SECONDS = 6, 25.0
KILL_SECONDS = (8.0, 20.0)  # between two
REST_SECONDS = 12.0  # until what is idle has been dropped
DIED = "engine_died"


class Soak:
    """What is asked, and what comes of it. From any thread."""

    def __init__(self, server: WebServer, seed: int) -> None:
        """Asks every question once: the answers that are expected from then on."""
        self._server, self._seed = server, seed
        self._lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.faults: list[str] = []
        self._over = threading.Event()
        self._expected = {
            (question, sees): self._text(self._ask(self._question(question, sees))[1])
            for question in QUESTIONS
            for sees in (True, False)
        }

    def run(self, seconds: float) -> None:
        """Lets all clients ask, and engines die."""
        self._over.clear()
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(CLIENTS)]
        threads.append(threading.Thread(target=self._kill_engines))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._over.set()
        for thread in threads:
            thread.join()

    def note(self, what: str, fault: str | None = None) -> None:
        """Counts an outcome."""
        with self._lock:
            self.statuses[what] += 1
            if fault is not None:
                self.faults.append(fault)

    def _client(self, number: int) -> None:
        rng = random.Random(self._seed * 1000 + number)
        kinds: tuple[tuple[Callable[[random.Random], None], int], ...] = (
            (self._whole, 10),
            (self._streamed, 10),
            (self._told, 3),
            (self._hang_up, 5),
            (self._bad, 5),
            (self._half, 2),
        )
        functions, weights = zip(*kinds, strict=True)
        while not self._over.is_set():
            try:
                rng.choices(functions, weights)[0](rng)
            except TimeoutError:
                self.note("gave up")
            except (OSError, http.client.HTTPException) as error:
                self.note("no answer", f"{type(error).__name__}: {error}")

    def _kill_engines(self) -> None:
        rng = random.Random(self._seed)
        while not self._over.wait(rng.uniform(*KILL_SECONDS)):
            number = rng.choice([signal.SIGKILL] * 6 + [signal.SIGTERM] * 2 + [signal.SIGSTOP])
            for engine in self._server.children:
                try:
                    os.kill(engine, number)
                    self.kills[number.name] += 1
                except ProcessLookupError:
                    pass

    def _whole(self, rng: random.Random) -> None:
        question, sees = rng.choice(QUESTIONS), rng.random() < 0.5
        status, answer = self._ask(self._question(question, sees))
        if self._is_answer(status, answer):
            self._compare(question, sees, self._text(answer))

    def _told(self, rng: random.Random) -> None:
        fields = {"logprobs": True, "top_logprobs": rng.randrange(21)}
        status, answer = self._ask(self._question(QUESTIONS[0], True, **fields))
        if self._is_answer(status, answer):
            told = answer["choices"][0]["logprobs"]["content"]
            if len(told) != answer["usage"]["completion_tokens"]:
                self.note("wrong", f"{len(told)} logprobs: {answer}")

    def _streamed(self, rng: random.Random) -> None:
        question, sees = rng.choice(QUESTIONS), rng.random() < 0.5
        connection, answer = self._send(self._question(question, sees, stream=True))
        if answer.status != 200:
            self._is_answer(answer.status, json.loads(answer.read()))
        else:
            lines = answer.read().decode().split("\n\n")
            events = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
            errors = [event for event in events if "error" in event]
            if errors:
                self._is_answer(503, errors[0])
            else:
                self.note("200 stream")
                deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
                self._compare(question, sees, "".join(deltas))
        connection.close()

    def _hang_up(self, rng: random.Random) -> None:
        """Without a word, after its request, or within the answer."""
        is_stream = rng.random() < 0.5
        body = json.dumps(self._question("hello", rng.random() < 0.3, stream=is_stream)).encode()
        connection = self._connection()
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        if is_stream:
            connection.getresponse().read(rng.randrange(1, 300))
        else:
            time.sleep(rng.uniform(0, 0.3))
        connection.close()
        self.note("hung up")

    def _half(self, rng: random.Random) -> None:
        """A head without its body, or less; it stays for some time."""
        connection = self._connection()
        connection.connect()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "Content-Length: 1000\r\n\r\n{"
        connection.sock.sendall(head[: rng.randrange(len(head) + 1)].encode())
        self._over.wait(rng.uniform(0, 3))
        connection.close()
        self.note("half a request")

    def _bad(self, rng: random.Random) -> None:
        body, expected = rng.choice(BAD)
        status, answer = self._ask(body)
        if status == expected:
            self.note(f"{status} as it should be")
        else:  # one of these needs the engine, to count tokens
            self._is_answer(status, answer)

    def _is_answer(self, status: int, answer: dict[str, Any]) -> bool:
        if status == 200:
            self.note("200 whole")
            return True
        code = answer.get("error", {}).get("code")
        is_expected = status == 429 or (status == 503 and code == DIED)
        self.note(f"{status} {code}", None if is_expected else f"{status}: {answer}")
        return False

    def _compare(self, question: str, sees: bool, text: str) -> None:
        expected = self._expected[question, sees]
        if text != expected:
            self.note("wrong", f"{question}: {text!r}, expected {expected!r}")

    def _question(self, text: str, sees: bool, **fields: Any) -> dict[str, Any]:
        content = [SEEING, {"type": "text", "text": text}] if sees else text
        turn = {"role": "user", "content": content}
        return {"messages": [turn], "temperature": 0, "max_tokens": 64, **fields}

    def _text(self, answer: dict[str, Any]) -> str:
        return str(answer["choices"][0]["message"]["content"])

    def _ask(self, body: Any) -> tuple[int, dict[str, Any]]:
        connection, answer = self._send(body)
        result = answer.status, json.loads(answer.read())
        connection.close()
        return result

    def _send(self, body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self._connection()
        connection.request("POST", CHAT, raw, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self._server.host, self._server.port, timeout=PATIENCE_SECONDS
        )


def memory_mib(pids: list[int]) -> float:
    """Returns the resident memory of processes, MiB."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        total += int(line.split()[1])
    return total / 1024


def main(argv: list[str] | None = None) -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    command = [sys.executable, "-m", "convert.cli", "serve", str(args.bundle.resolve())]
    command += ["--port", "0", "--threads", "1", "--queue", "4"]
    with (
        tempfile.TemporaryDirectory() as home,
        (Path(home) / "log").open("w+b") as log,
        WebServer(command, Path(home), log) as server,
    ):
        soak = Soak(server, args.seed)
        soak.run(min(60.0, args.minutes * 6))  # what is allocated once is allocated now
        time.sleep(REST_SECONDS)
        before = memory_mib([server.pid]), memory_mib(server.children)
        soak.run(args.minutes * 60)
        time.sleep(REST_SECONDS)
        Soak(server, args.seed)  # it still answers
        after = memory_mib([server.pid]), memory_mib(server.children)
        engines = server.children
        exit_code = server.interrupt()
        log.seek(0)
        said = log.read().decode(errors="replace")
    if exit_code != 0 or any(Path(f"/proc/{engine}").exists() for engine in engines):
        soak.note("bad end", f"exit code {exit_code}, engines {engines}")
    if "Traceback" in said:
        soak.note("a mistake of ours", said[said.index("Traceback") :])
    print(f"requests   {sum(soak.statuses.values()):,}")
    for what, count in sorted(soak.statuses.items()):
        print(f"  {what:<28} {count:>8,}")
    print(f"kills      {sum(soak.kills.values())} ({dict(soak.kills)})")
    for name, one, other in zip(("server", "engine"), before, after, strict=True):
        print(f"{name} RSS {one:8.1f} MiB before, {other:8.1f} MiB after")
    for fault in soak.faults[:20]:
        print(f"FAULT {fault:.300}")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
