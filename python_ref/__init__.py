"""The reference: DSSNet in plain PyTorch, its losses, data and training.

This package knows nothing of the fast inference path; it is what that path is checked against.
Import it as `dssnet_fast.python_ref`.
"""
