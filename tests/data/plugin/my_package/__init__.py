"""One of each kind that a package of your own can add to the workbench."""
