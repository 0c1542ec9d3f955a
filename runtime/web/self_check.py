"""Checks every part that an answer needs, as the app does on the phone."""

from __future__ import annotations

from typing import Any

from convert.bundle.manifest import Bundle
from quantize.errors import ToolkitError
from runtime.engine_client.protocol import Field, Op
from runtime.sessions.engine_session import EngineSession
from runtime.web.failures import error_code
from runtime.web.jobs import Job

Result = dict[str, Any]


def check_weights(bundle: Bundle, job: Job) -> Result:
    """Reads all files of a bundle.

    Raises:
        StoppedError: the user ended it.
    """

    def advance(_: str, done: int, total: int, /) -> None:
        job.check()
        job.advance("verify", done, total)

    try:
        bundle.verify_hashes(advance)
    except ToolkitError as error:
        return failure("weights", error)
    size = sum(record.size for record in bundle.manifest.files.values())
    return _result("weights", True, f"{size} bytes")


def check_engine(bundle: Bundle, session: EngineSession, job: Job) -> list[Result]:
    """Looks at the engine and has it answer the bundle's golden prompts.

    Raises:
        StoppedError: the user ended it.
    """
    client = session.client()
    hello = client.hello
    target = hello[Field.TARGET]
    record = bundle.manifest.targets.get(target)
    found = hello[Field.PROGRAM_ID]
    features = "; ".join([", ".join(hello[Field.CPU_FEATURES]), *hello.get(Field.REFUSED, ())])
    results = [
        _result("engine", True, f"{hello[Field.TOOLKIT_VERSION]}, {target}"),
        _result("processor", True, f"{hello[Field.CPU]} ({features})"),
        _result("program", record is not None and record.program_id == found, found[:16]),
    ]
    try:
        line = client.request(Op.SELF_CHECK, on_progress=job.advance, cancelled=job.is_stopped)
    except ToolkitError as error:
        job.check()
        return [*results, failure("answer", error)]
    for answer in line[Field.CHECKS]:
        said = f"{answer[Field.QUESTION]} {answer[Field.TEXT]}"
        passed = answer[Field.PASSED]
        expected = "" if passed else f" (expected: {answer[Field.EXPECTED]})"
        results.append(_result("answer", passed, said + expected))
    memory = line[Field.PEAK_RSS_BYTES] >> 20
    return [*results, _result("memory", True, f"{memory} MiB")]


def failure(name: str, error: Exception) -> Result:
    """Returns what the page shows of a check that failed."""
    return _result(name, False, f"{error_code(error)}: {error}")


def _result(name: str, ok: bool, detail: str) -> Result:
    return {"name": name, "ok": ok, "detail": detail}
