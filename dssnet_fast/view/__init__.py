"""A local web page for looking at the results of `python -m dssnet_fast.wsi`.

`python -m dssnet_fast.view DIR` serves a folder of results on 127.0.0.1: the slide, its nuclei in
the colours of their classes, and the numbers of each nucleus. Nothing is computed beforehand and
nothing is written; tiles are made of the slide, the OME-TIFF maps and the Parquet table when the
page asks for them.

Two systems of coordinates: px of the slide's finest level, which the page's picture is drawn in,
and those of the outputs, which are the same less the summary's `origin`. Addresses and answers use
the outputs'.
"""
