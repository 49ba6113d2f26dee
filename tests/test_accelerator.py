"""What runs on a GPU, run on a pretended one: the device "toy" of accelerator/toy.cpp."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent / "accelerator"


def run(*command: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True,
                          timeout=600)


def compiler() -> str:
    """One that knows C++20, as torch's headers ask; the test is skipped where there is none."""
    pytest.importorskip("setuptools")  # which torch.utils.cpp_extension imports
    for name in filter(shutil.which, ("g++", "clang++")):
        if not run(name, "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull).returncode:
            return name
    pytest.skip("the device needs g++ or clang++ with C++20")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the device is compiled on Linux")
def test_the_checks_pass_on_another_device_than_the_cpu(tmp_path):
    """In a process of their own: a device, once registered, stays."""
    name, library = compiler(), tmp_path / "toy.so"
    from torch.utils.cpp_extension import include_paths, library_paths

    compiled = run(name, "-std=c++20", "-O0", "-w", "-shared", "-fPIC",
                   f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                   *(f"-I{folder}" for folder in include_paths()), str(HERE / "toy.cpp"),
                   *(f"-L{folder}" for folder in library_paths()), "-ltorch_cpu", "-lc10",
                   "-o", str(library))
    assert not compiled.returncode, compiled.stderr[-3_000:]
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               str(HERE / "checks.py"), TOY=str(library),
               PAPER_UTILS_CACHE=str(tmp_path / "cache"))
    assert not done.returncode, done.stdout[-5_000:] + done.stderr[-2_000:]
