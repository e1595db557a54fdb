"""Builds the optional C++ extension; everything else is in pyproject.toml."""

import os
import sys
from glob import glob

from setuptools import setup


def native_extension() -> dict:
    """The arguments that add the CPU kernels, or none where torch or a compiler is missing."""
    if os.environ.get("TRISELECT_NATIVE", "1") == "0":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print(
            "triselect: torch is not importable here, leaving the C++ kernels out", file=sys.stderr
        )
        return {}

    class OptionalBuild(BuildExtension):
        """A failed build leaves the extension out; `triselect env` then says how to get it."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # Objects stay: the next build compiles what changed, an editable one or a wheel.
            self.build_temp = os.path.join("build", "native")

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if os.environ.get("TRISELECT_NATIVE") == "required":
                    raise
                print(f"triselect: the C++ kernels were left out: {error}", file=sys.stderr)
                self.extensions = []

    # The file name carries the torch it was built for, so that another torch never loads it.
    version = torch.__version__.split("+")[0].replace(".", "_")
    extension = CppExtension(
        f"triselect._native_torch_{version}",
        sorted(glob("kernels/*/native.cpp")),
        depends=sorted(glob("kernels/*/*.h")),
        include_dirs=[os.path.abspath("kernels/shared")],
        # No -march: instruction sets are chosen at run time (kernels/shared/isa.h). No -std: torch
        # adds the one that its headers need.
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fopenmp",
            "-Wall",
            "-Wno-psabi",
            "-Wno-uninitialized",  # GCC 12: false alarms in its own AVX-512 headers
            "-Wno-maybe-uninitialized",
            "-Wno-unknown-pragmas",
        ],
        extra_link_args=["-fopenmp"],
    )
    build = OptionalBuild.with_options(no_python_abi_suffix=True)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build}}


setup(**native_extension())
