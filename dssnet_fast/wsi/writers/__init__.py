"""The outputs of a slide: each writer takes, piece by piece, what `dssnet_fast.wsi.results` gives.

Every file appears whole or not at all, and the same nuclei give the same bytes, however they are
divided into tables.
"""
