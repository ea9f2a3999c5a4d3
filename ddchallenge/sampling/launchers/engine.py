"""A container engine, docker or podman, used through its command line."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ddchallenge.errors import RequestError, RunError
from ddchallenge.jsonio import printable

__all__ = ["ENGINES", "QUESTIONS", "Engine", "EngineName", "find_engine", "last_lines"]

EngineName = Literal["podman", "docker"]
# Tried in this order: podman needs no daemon, and no group that is root by another name.
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)

ANSWER_SECONDS: Final = 60.0  # an engine that is busy with an image's layers answers late
# Of the service, where there is one: the program alone cannot run anything.
QUESTIONS: Final[dict[EngineName, tuple[str, ...]]] = {
    "podman": ("info", "--format", "{{.Version.Version}} {{.Host.ServiceIsRemote}}"),
    "docker": ("version", "--format", "{{.Server.Version}}"),
}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers: ``name`` says whose options it takes, ``program`` is its path.

    ``direct`` means that a container can be given our pipes themselves: podman from version 4 on,
    where it runs on this machine. All else copies what goes through them, twice, in small pieces.
    """

    name: EngineName
    program: str
    version: str
    direct: bool = False

    @property
    def ends_late(self) -> bool:
        """Whether ``run`` takes ``--timeout``: podman from version 4 on."""
        return self.name == "podman" and not self.version.startswith(("1.", "2.", "3."))

    def command(self, *arguments: str) -> list[str]:
        """The argument list of ``engine arguments...``; never a line for a shell."""
        return [self.program, *arguments]

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a short command to its end.

        Raises :class:`RunError` when the engine does not answer within a minute.
        """
        return _ask(self.program, *arguments)

    def read(self, *arguments: str) -> str | None:
        """What a short command prints, stripped; None where it fails."""
        done = self.ask(*arguments)
        return done.stdout.strip() if done.returncode == 0 else None


def find_engine(wanted: EngineName | None = None) -> Engine:
    """The ``wanted`` engine, or the first that is installed and works.

    Raises :class:`RequestError` that says what is the matter with each.
    """
    problems: list[str] = []
    for name in (wanted,) if wanted else ENGINES:
        program = shutil.which(name)
        if program is None:
            problems.append(f"{name} is not installed.")
            continue
        done = _ask(program, *QUESTIONS[_flavour(name, program)])
        if done.returncode == 0 and done.stdout.strip():
            version, _, remote = printable(done.stdout.strip()[:64]).partition(" ")
            direct = remote == "false" and not version.startswith(("1.", "2.", "3."))
            return Engine(_flavour(name, program), program, version, direct)
        problems.append(_problem(name, done.stderr))
    if wanted and (other := _working(wanted)):
        raise RequestError(
            f"{wanted} was asked for and cannot be used here: {problems[0]}\n"
            f"{other} works: name --engine {other}, or leave --engine out."
        )
    if all(problem.endswith("not installed.") for problem in problems):
        which = f"{wanted} is not installed" if wanted else "Neither podman nor docker is installed"
        raise RequestError(
            f"{which}, and --launcher container needs a container engine.\n"
            "Install podman or docker, or run your own code with --launcher process."
        )
    if wanted:
        raise RequestError(f"{wanted} was asked for and cannot be used here: {problems[0]}")
    raise RequestError("No container engine can be used here.\n" + "\n".join(problems))


def _working(without: EngineName) -> EngineName | None:
    """Another engine that answers, for advice."""
    for name in ENGINES:
        program = shutil.which(name)
        if name == without or program is None:
            continue
        try:
            done = _ask(program, *QUESTIONS[_flavour(name, program)])
        except (RequestError, RunError):
            continue
        if done.returncode == 0 and done.stdout.strip():
            return name
    return None


def _flavour(name: EngineName, program: str) -> EngineName:
    """Podman installs itself as docker, too, and goes on taking its own options."""
    if name == "docker" and "podman" in _ask(program, "--version").stdout.lower():
        return "podman"
    return name


def _ask(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"{program} {arguments[0]} has not answered for {ANSWER_SECONDS:.0f} seconds.\n"
            f"Look whether `{program} ps` answers, and restart the engine if it does not."
        ) from None
    except OSError as error:
        raise RequestError(f"{program} cannot be started: {error.strerror}.") from None


def _problem(name: EngineName, said: str) -> str:
    text = said.lower()
    if "permission denied" in text or "newuidmap" in text or "subuid" in text:
        advice = (
            "ask to be in the group docker, or use podman."
            if name == "docker"
            else "it needs lines for you in /etc/subuid and /etc/subgid (man podman, rootless)."
        )
        return f"{name} may not be used by this user: {advice}"
    if "cannot connect" in text or "daemon running" in text or "connection refused" in text:
        return f"{name} is installed, but its service is not running: start it, as in `systemctl start {name}`."  # noqa: E501
    return f"{name} does not work: {last_lines(said, 1) or 'it says nothing'}"


def last_lines(text: str, count: int) -> str:
    """The last ``count`` lines that are not blank, safe to print, at most 300 characters each."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(printable(line[:300]) for line in lines[-count:])
