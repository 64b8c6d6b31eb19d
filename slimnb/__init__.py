"""slimnb: slimmable and once-for-all networks on one small core. The names a notebook needs most; the rest by module.

The names are listed in the stub beside this file and imported on first use, so that a chapter's parameters are checked
without waiting for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
