"""The roof: the command line and what it runs. The only place that may know all packages; nothing imports it."""
