"""Train small vision-language models and measure what their data does to them.

Start reading at :mod:`vlmkit.train`; docs/map.md has the map of the code.
"""

__version__ = "0.1.0"
