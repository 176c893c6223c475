"""Triton kernels of the inference path, one file a stage; import it as `dssnet_fast.kernels`.

The kernels arrive with the backend `triton`; see `docs/architecture.md`.
"""
