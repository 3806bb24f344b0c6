"""``srl push`` and ``srl pull``: runs on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from srl.cli.options import Unset
from srl.errors import MissingExtra, UserError


@dataclass
class Push:
    """Publish a finished run on the Hugging Face Hub, with a model card."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    repo: tyro.conf.Positional[str]
    """Repository on the Hub, as OWNER/NAME. It is created if it does not exist."""
    video: Unset[Path] = None
    """An MP4 video of the agent. By default replay.mp4 in the run directory, if it exists."""
    private: bool = False
    """Make a new repository private."""
    dry_run: Unset[Path] = None
    """Write the repository's files to this folder, which must not exist, and publish nothing."""


@dataclass
class Pull:
    """Download a run from the Hugging Face Hub into a run directory. Nothing in it is executed."""

    repo: tyro.conf.Positional[str]
    """Repository on the Hub, as OWNER/NAME."""
    out: Unset[Path] = None
    """The new run directory, which must not exist. By default runs/hub/OWNER/NAME."""
    revision: Unset[str] = None
    """A branch, tag or commit. By default the latest commit."""


def push(options: Push, command: str) -> int:
    """Run ``srl push``; return the exit status."""
    _check_package("srl push")
    from srl.rundir.files import check_writable
    from srl.sharing import VIDEO, check_repo, finished_run, package
    from srl.sharing import push as publish

    video = options.video
    if video is None and (options.run / VIDEO).is_file():
        video = options.run / VIDEO
    check_repo(options.repo)
    finished_run(options.run)
    if video is not None and (video.suffix.lower() != ".mp4" or not video.is_file()):
        raise UserError(f"--video {video}: must be an MP4 file.")
    if options.dry_run is None:
        print(f"Published: {publish(options.run, options.repo, video=video, private=options.private)}")
        return 0
    if options.dry_run.exists():
        raise UserError(f"--dry-run {options.dry_run}: exists. Name a new folder.")
    check_writable(options.dry_run)
    options.dry_run.mkdir(parents=True)
    package(options.run, options.repo, options.dry_run, video)
    print(f"Written: {options.dry_run}. Nothing was published.")
    return 0


def pull(options: Pull, command: str) -> int:
    """Run ``srl pull``; return the exit status."""
    _check_package("srl pull")
    from srl.sharing import check_repo
    from srl.sharing import pull as download

    check_repo(options.repo)
    out = options.out or Path("runs") / "hub" / options.repo
    spec = download(options.repo, out, revision=options.revision)
    print(
        f"{spec.algorithm.label} on {spec.env}, seed {spec.seed}, is in {out}. Loading its model executes "
        "code that the file holds: load models of people you trust."
    )
    return 0


def _check_package(what: str) -> None:
    if find_spec("huggingface_hub") is None:
        raise MissingExtra(what, "huggingface_hub", "share")
