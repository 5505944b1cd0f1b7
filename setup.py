"""只声明可选的编译扩展；其余元数据都在 pyproject.toml。

`optional=True`：没有编译器也能安装，搜索改走 NumPy/torch，结果逐位相同，只是慢些。
不用 -march=native：指令集在运行时挑选，装好的包换一台机器也能用。
-ffp-contract=off：裁决的 float64 求和次序与舍入是定义的一部分，不许编译器合并成 FMA。
"""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "algorithm.semantic_id.search._native",
            sources=["algorithm/semantic_id/search/kernel/native.cpp"],
            depends=sorted(glob("algorithm/semantic_id/search/kernel/*.h")),  # 由 native.cpp 包含
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
