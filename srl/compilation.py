"""Compile functions of tensors to machine code that all processes of a user share.

:func:`compiled` traces a function once for the shapes of its arguments and compiles the trace with
TorchInductor: on the CPU ahead of time into a shared library, on CUDA with ``torch.compile`` and CUDA graphs.
A library is stored in the user's cache folder under a digest of the trace and of everything else that the
machine code depends on, so that each trace is compiled once, and other processes load it in milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkstemp

import torch as th
from torch import fx

from srl.errors import NotCompiled


@dataclass(frozen=True)
class Compiled:
    """A compiled function."""

    #: Takes one list of tensors like those that it was compiled for, which are not checked.
    run: Callable[[list[th.Tensor]], Sequence[th.Tensor]]
    #: Seconds of compilation; 0 if the code was in the cache.
    seconds: float = 0.0


#: Days after which an unused library is removed from the cache.
_KEPT_DAYS = 30
#: A program that tests the compiler and the headers of the standard library.
_PROBE = "#include <vector>\nint main() { return std::vector<int>(1).size() != 1; }\n"


def cache_folder() -> Path:
    """The folder of compiled code: ``symmetric-rl`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "symmetric-rl"


@cache
def why_not(device_type: str) -> str | None:
    """Why this machine cannot compile for a device.

    :param device_type: ``"cpu"`` or ``"cuda"``.
    :return: The reason in one line; None if a compiler works.
    """
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton, which compiles for CUDA, is not available"
    # TorchInductor's choice
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}; the environment variable CXX names another)"
    command = [compiler, "-x", "c++", "-fsyntax-only", "-"]
    probe = subprocess.run(command, input=_PROBE, capture_output=True, text=True, check=False)
    if probe.returncode:
        *_, last = ["", *probe.stderr.strip().splitlines()]
        return f"the C++ compiler {compiler} does not work" + (f": {last}" if last else "")
    return None


def compiled(function: Callable[..., Sequence[th.Tensor]], arguments: Sequence[th.Tensor]) -> Compiled:
    """Compile a function for the shapes, dtypes and strides of its arguments.

    :param function: A function of tensors that returns tensors. It may change its arguments in place with
        ``copy_`` and must not have other effects, depend on the values of tensors, or draw random numbers.
    :param arguments: Example arguments. They are not changed.
    :return: The compiled function.
    :raises NotCompiled: If compilation fails for any reason.
    """
    device = arguments[0].device
    reason = why_not(device.type)
    if reason is not None:
        raise NotCompiled(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own code
            graph = _trace(function, arguments)
            return (_on_cuda if device.type == "cuda" else _on_cpu)(graph, arguments)
    except NotCompiled:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise NotCompiled(f"{type(error).__name__}: {lines[0] if lines else ''}") from error


def _trace(function: Callable[..., Sequence[th.Tensor]], arguments: Sequence[th.Tensor]) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    with th.no_grad():
        trace = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = trace(*arguments)
    for node in graph.graph.nodes:
        if th.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotCompiled(f"it draws random numbers ({node.target})")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _on_cuda(graph: fx.GraphModule, arguments: Sequence[th.Tensor]) -> Compiled:
    # CUDA graphs do not support functions that change their arguments
    written = _without_effects(graph)
    function = th.compile(graph, fullgraph=True, dynamic=False, mode="reduce-overhead")

    @th.no_grad()
    def run(arguments: list[th.Tensor]) -> Sequence[th.Tensor]:
        results = function(*arguments)
        n_results = len(results) - len(written)
        th._foreach_copy_([arguments[index] for index in written], list(results[n_results:]))
        # The next replay of the graph overwrites these results
        return [result.clone() for result in results[:n_results]]

    with _locked(_cache_file(graph, arguments)), _in_this_process():
        began = time.perf_counter()
        run([argument.clone() for argument in arguments])
    return Compiled(run, time.perf_counter() - began)


def _without_effects(graph: fx.GraphModule) -> list[int]:
    """Change a trace to return the values that it writes into its arguments, after its own results.

    :return: The indices of the arguments.
    """
    placeholders = list(graph.graph.find_nodes(op="placeholder"))
    writes = [
        node
        for node in graph.graph.find_nodes(op="call_function", target=th.ops.aten.copy_.default)
        if node.args[0] in placeholders
    ]
    written = [placeholders.index(node.args[0]) for node in writes]
    values = [node.args[1] for node in writes]
    for node in writes:
        graph.graph.erase_node(node)
    (output,) = graph.graph.find_nodes(op="output")
    output.args = ([*output.args[0], *values],)
    graph.recompile()
    return written


def _on_cpu(graph: fx.GraphModule, arguments: Sequence[th.Tensor]) -> Compiled:
    file = _cache_file(graph, arguments)
    # Processes that start together wait for the first one
    with _locked(file):
        if file.exists():
            with suppress(RuntimeError):  # it is damaged
                os.utime(file)
                return Compiled(_load(file))
        began = time.perf_counter()
        _remove_old(file.parent)
        _compile(graph, arguments, file)
        return Compiled(_load(file), time.perf_counter() - began)


def _load(file: Path) -> Callable[[list[th.Tensor]], Sequence[th.Tensor]]:
    return th._C._aoti.AOTIModelContainerRunnerCpu(str(file), 1).run  # type: ignore[attr-defined, no-any-return]


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Compile without worker processes and semaphores, which an interrupted run would leave behind."""
    from torch._inductor import config

    with suppress(ImportError):  # TorchInductor shows progress bars if tqdm is installed
        from tqdm import tqdm  # type: ignore[import-untyped]

        if not hasattr(tqdm, "_lock"):
            tqdm.set_lock(threading.RLock())
    with config.patch(compile_threads=1):
        yield


def _compile(graph: fx.GraphModule, arguments: Sequence[th.Tensor], file: Path) -> None:
    with th.no_grad(), _in_this_process():
        from torch._inductor import aot_compile

        made = aot_compile(graph, tuple(arguments))
    assert isinstance(made, str)
    handle, temporary = mkstemp(dir=file.parent)
    os.close(handle)
    try:
        shutil.copyfile(made, temporary)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _cache_file(graph: fx.GraphModule, arguments: Sequence[th.Tensor]) -> Path:
    """The file of a trace's library for this kind of machine."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(graph.code.encode())
    for name, constant in sorted(graph.named_buffers()):
        digest.update(f"{name} {constant.dtype}".encode() + constant.cpu().numpy().tobytes())
    for argument in arguments:
        digest.update(f"{argument.dtype} {tuple(argument.shape)} {argument.stride()}".encode())
    digest.update(_platform().encode())
    digest.update(str(th.get_num_threads()).encode())
    return folder / f"{digest.hexdigest()[:32]}.so"


@cache
def _platform() -> str:
    """The dependencies of machine code: torch, the chosen compiler, the C library, and the processor."""
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor = "".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    parts = (
        th.__version__, os.environ.get("CXX"), platform.machine(), *platform.libc_ver(), processor,
        th.backends.cpu.get_cpu_capability(),
    )  # fmt: skip
    return repr(parts)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_old(folder: Path) -> None:
    """Remove libraries that were not used for long, such as those of other versions of torch and srl."""
    oldest = time.time() - _KEPT_DAYS * 86_400
    for file in folder.glob("*.so"):
        with suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()
                file.with_suffix(".lock").unlink()
