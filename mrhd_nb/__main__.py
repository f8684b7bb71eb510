"`python -m mrhd_nb` is `mrhd`"
from mrhd_nb.programs.cli import main
raise SystemExit(main())
