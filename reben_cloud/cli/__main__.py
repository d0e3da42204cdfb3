"""``python -m reben_cloud.cli``."""

from reben_cloud.cli import main

main()
