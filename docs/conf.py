"""How the documentation is built: `make docs`, which first runs generated.py."""

import atlasmap

project, author, copyright = "atlasmap", "the atlasmap developers", "the atlasmap developers"
version = release = atlasmap.__version__
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "atlasmap"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True}
html_static_path = ["images"]
nitpicky = True
copybutton_exclude = ".linenos, .gp, .go"
