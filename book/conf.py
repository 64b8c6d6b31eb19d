"""Sphinx settings of the book. Built by tools/website.py from executed notebooks; nothing runs here."""

project = "slimnb"
author = "the slimnb founders"
copyright = "2026, the slimnb founders"
html_title = "slimnb"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_design", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # the default loads two scripts from elsewhere
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# The page of public names is made from their docstrings.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 80
strip_signature_backslash = True
default_role = "code"  # docstrings name parameters in single backticks

# One script served with the pages (tools/website.py puts it there), so that mathematics needs no network.
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_show_sourcelink = False
html_copy_source = True
html_show_search_summary = False  # search would fetch each page it finds, which a browser refuses for files
html_theme_options = {
    "logo": {"text": "slimnb", "alt_text": "slimnb: slimmable networks"},
    "navbar_end": [],
    "navbar_persistent": [],  # else the theme shows two search fields
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "use_download_button": True,
    "home_page_in_toc": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"
