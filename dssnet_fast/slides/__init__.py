"""Slides: from a scanner's file to pixels at the model's resolution, and where to look in them.

Readers (`open_slide`) give levels of pixels; `Resampled` gives the analysed image from them;
`glass` says which parts hold something; `region` which parts were asked for.
"""
