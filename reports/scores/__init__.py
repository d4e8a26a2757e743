"""`workbench verdict`: other people's scores, judged as cells are."""
