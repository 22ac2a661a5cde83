"""``python -m wsgi_isr MODULE:APP COMMAND``."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.exit("the command line needs click: pip install 'wsgi-isr[cli]'")

if __name__ == "__main__":
    main(prog_name="python -m wsgi_isr")
