"""HTML pages: templates, number formatting, colours."""
