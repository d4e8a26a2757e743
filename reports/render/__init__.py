"""From the analysis to HTML, Markdown, LaTeX, JSON and CSV."""
