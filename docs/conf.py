"""How `make docs` builds this folder: every Markdown file here, strictly, without the network.

A page may link to other pages, to their headings, and to files outside this folder that are not Markdown.
"""

from __future__ import annotations

from deltalog import __version__

project = "deltalog"
copyright = "the deltalog authors"
version = release = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3  # [text](storage.md#a-heading) works, and a heading that went away is an error
nitpicky = True

html_theme = "alabaster"
html_theme_options = {"description": "An event-sourced CRDT delta log", "page_width": "1100px"}
html_show_sourcelink = False
html_copy_source = False
