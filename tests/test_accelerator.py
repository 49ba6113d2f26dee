"""What runs on a GPU, run on a pretended one: the device "toy" of accelerator/toy.cpp."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent / "accelerator"


def test_the_checks_pass_on_another_device_than_the_cpu(tmp_path):
    """In a process of their own: a device, once registered, stays."""
    compiler = next(filter(shutil.which, ["g++", "clang++"]), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("the device is compiled on Linux, by g++ or clang++")
    library = tmp_path / "toy.so"
    subprocess.run([compiler, "-std=c++20", "-O0", "-w", "-shared", "-fPIC",
                    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                    *(f"-I{folder}" for folder in include_paths()), str(HERE / "toy.cpp"),
                    *(f"-L{folder}" for folder in library_paths()), "-ltorch_cpu", "-lc10",
                    "-o", str(library)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "checks.py")],
        env=os.environ | {"TOY": str(library), "PAPER_UTILS_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]
