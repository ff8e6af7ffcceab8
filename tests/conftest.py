"""Makes this folder importable, so that tests in its subfolders reach ``support``."""
