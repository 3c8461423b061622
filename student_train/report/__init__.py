"""Runs side by side: `student-train compare` as text, `student-train report` as one HTML page."""
