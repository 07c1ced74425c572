"""One client for folders and object stores, and atomic writes of local files."""
