"""Which folders are packages. Everything else about the project is in pyproject.toml."""

from setuptools import setup

setup(
    # `kernels` and `python_ref` are top-level folders of the repository, but nothing except
    # `dssnet_fast` may land at the top level of site-packages.
    packages=[
        "dssnet_fast",
        "dssnet_fast.backends",
        "dssnet_fast.kernels",
        "dssnet_fast.python_ref",
    ],
    package_dir={
        "dssnet_fast": "dssnet_fast",
        "dssnet_fast.kernels": "kernels",
        "dssnet_fast.python_ref": "python_ref",
    },
    package_data={"dssnet_fast": ["models/*.safetensors", "models/*.md", "py.typed"]},
)
