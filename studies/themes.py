"""Colours of studies' figures on light and on dark pages."""

THEMES = {
    "light": {"text": "#2b333b", "line": "#9aa3ad", "second": "#b5452c", "first": "#1b7f5c"},
    "dark": {"text": "#d5dbe1", "line": "#5b6673", "second": "#f08a6c", "first": "#5cc79f"},
}
