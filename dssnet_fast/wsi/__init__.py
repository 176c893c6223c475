"""Whole slides: from a scanner's file to nuclei in QuPath.

    python -m dssnet_fast.wsi SLIDE... --out DIR

A slide is cut into tiles; each tile's nuclei are found, measured and stored; what tiles cut is
joined; then the outputs are written in one pass over what was stored.
"""

# What the extra `wsi` brings, by the names that are imported.
PACKAGES = ("openslide", "orjson", "pyarrow", "shapely")
