"`python -m mrhd_nb`: the command line"
import sys
from .programs.cli import main

if __name__ == "__main__": sys.exit(main())
